"""Whether two processes on this machine can add up a number: over gloo, and over NCCL where there are GPUs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ultramed_rl.cli.doctor.devices import cuda_devices
from ultramed_rl.cli.doctor.finding import Finding
from ultramed_rl.cli.doctor.subprocesses import Outcome, run_python

_RANK = Path(__file__).with_name("all_reduce.py")
_TIMEOUT_S = 120.0
_GLOO_CURE = "let processes of this machine reach each other (firewall, GLOO_SOCKET_IFNAME=lo), and its name in /etc/hosts"
_NCCL_CURE = "run it with NCCL_DEBUG=INFO; often NCCL_P2P_DISABLE=1, NCCL_SOCKET_IFNAME or a larger /dev/shm is the fix"


def check_gloo(timeout_s: float = _TIMEOUT_S) -> Iterator[Finding]:
    """Two processes and a real all_reduce."""
    yield _finding("gloo", all_reduce("gloo", 2, timeout_s), 2, _GLOO_CURE)


def check_nccl(timeout_s: float = _TIMEOUT_S) -> Iterator[Finding]:
    """As many ranks as there are GPUs, two at most; nothing where there are none."""
    ranks = min(2, len(cuda_devices()))
    if ranks:
        yield _finding("nccl", all_reduce("nccl", ranks, timeout_s), ranks, _NCCL_CURE)


def all_reduce(backend: str, ranks: int, timeout_s: float) -> Outcome:
    """The first rank that failed, or the last one's outcome."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(ranks) as pool:
        meeting = os.path.join(folder, "meeting")
        quick = {"OMP_NUM_THREADS": "1"}
        jobs = [
            pool.submit(run_python, [str(_RANK), backend, str(rank), str(ranks), meeting], timeout_s, quick)
            for rank in range(ranks)
        ]
        outcomes = [job.result() for job in jobs]
    return next((outcome for outcome in outcomes if not outcome.worked), outcomes[-1])


def _finding(name: str, outcome: Outcome, ranks: int, fix: str) -> Finding:
    if outcome.worked:
        return Finding(name, "ok", f"all_reduce over {ranks} processes: {outcome.said}")
    return Finding(name, "fail", f"all_reduce over {ranks} processes: {outcome.said}", fix)
