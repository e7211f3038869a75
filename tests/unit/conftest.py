"""What unit tests have in common: they wait for nothing that they don't test."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest

# Before torch and BLAS are loaded: threads that divide tensors as small as these cost more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="package", autouse=True)
def quick_disk() -> Iterator[None]:
    """Nothing here can tell whether a file would outlive a power cut; processes that tests start sync as ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def pytest_collection_finish() -> None:
    """What was imported stays: the collector doesn't look through its million objects again and again."""
    gc.freeze()


@pytest.fixture
def taken() -> Iterator[None]:
    """SIGTERM is ours, until the test is over."""
    from ultramed_rl.tracking import heartbeat  # not above: it loads numpy

    before = signal.getsignal(signal.SIGTERM)
    heartbeat.take_sigterm()
    yield
    heartbeat._takes_sigterm = heartbeat._sigterm_came = False
    signal.signal(signal.SIGTERM, before)
