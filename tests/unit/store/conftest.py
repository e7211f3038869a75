"""Stores at URLs are empty before each test, and what fails there is tried again at once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.staged import empty_store
from ultramed_rl.store import remote, remote_folder


@pytest.fixture(autouse=True)
def empty_stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What fails is tried again at once; one file is on its way at a time."""
    monkeypatch.setattr(remote_folder, "LONGEST_WAIT_S", 0.0)
    monkeypatch.setattr(remote, "WORKERS", 1)
    empty_store()
    yield
    empty_store()
