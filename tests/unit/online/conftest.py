"""Simulated runs: the cases, each one's unbroken run, and what makes them quick."""

from __future__ import annotations

import pytest

from tests.simulated.cases import Cases, make_models
from ultramed_rl.online import run as online_run
from ultramed_rl.store import shards


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """All cases, on models made for them."""
    root = tmp_path_factory.mktemp("simulated")
    (root / "models").mkdir()
    return Cases(make_models(root / "models"), root)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files, so that a phase has several; no report, whose figures take longer than the run."""
    monkeypatch.setattr(shards, "SHARD_RECORDS", 5)
    monkeypatch.setattr(online_run, "write_own_report", lambda *_: None)
