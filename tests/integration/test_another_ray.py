"""A run's own Ray beside somebody else's: neither disturbs the other, whichever ends first; and nobody else gets in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.stranger import join_as_stranger
from ultramed_rl.actors.deepspeed_setup import join_ranks, open_store
from ultramed_rl.cli.communication import judge_ports
from ultramed_rl.cluster.command import run_command
from ultramed_rl.cluster.connection import LOGS, connect, disconnect, start_private_ray
from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.config.cluster import Devices

# As anybody's script: open, and its agent takes the port that Ray gives every agent, 52365.
OTHER = """
import ray

context = ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
two = ray.remote(lambda: 2).options(num_cpus=1)
print(context.address_info["gcs_address"], flush=True)
while input():
    print("answer", ray.get(two.remote(), timeout=60), flush=True)
"""


class Rank:
    """A rank of our run."""

    def meet(self) -> int:
        """Join the ranks, which are this one alone; returns the process."""
        self.store = open_store(1)
        join_ranks(0, 1, self.store.host, self.store.port, "cpu")
        return os.getpid()

    def process(self) -> int:
        return os.getpid()


class OtherRay:
    """Somebody's script with a Ray of its own."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process, self.address = process, address

    def ask(self) -> str:
        """What its Ray computes now."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go on\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=60)


@contextmanager
def another_ray() -> Iterator[OtherRay]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # Its folder is what it would have in /tmp, but for those who share this machine with the test.
    with tempfile.TemporaryDirectory(prefix="other-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"RAY_TMPDIR": folder},
        )
        try:
            assert process.stdout is not None
            yield OtherRay(process, process.stdout.readline().strip())
        finally:
            process.terminate()
            process.wait(timeout=60)


def family(root: int) -> list[psutil.Process]:
    process = psutil.Process(root)
    return [process, *process.children(recursive=True)]


def listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    connections = [c for process in processes for c in process.net_connections("tcp")]
    return {(c.laddr.ip, c.laddr.port) for c in connections if c.status == psutil.CONN_LISTEN}


def test_a_private_ray_lets_nobody_in_and_goes_on_when_another_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("WANDB_API_KEY", "314159")
    before = listening([psutil.Process()])  # what earlier tests left in this process
    with another_ray() as first:
        assert "joined and saw 314159" in join_as_stranger(first.address)
        assert judge_ports("other", family(first.process.pid)).level == "warn"

        start_private_ray(3)
        connect(Devices(device="cpu"))  # what runs call: it takes the Ray that is there
        try:
            remote = ray.remote(Rank).options(num_cpus=1, runtime_env={"env_vars": {"DS_ACCELERATOR": "cpu"}})
            group = WorkerGroup("policy", lambda rank: remote.remote(), 1, takes_turns=False)
            processes = group.call(Rank.meet)
            check_closed(first, before)
            run_command(["true"], Devices(device="cpu"), gpus=0, variables={}, say=lambda text: None)
            first.interrupt()
            assert group.call(Rank.process) == processes

            with another_ray() as second:
                folder = Path(ray.get_runtime_context().get_temp_dir()).parent
                assert (folder / LOGS).is_dir()
                disconnect()
                assert not folder.exists()
                assert second.ask() == "answer 2\n"
        finally:
            disconnect()


def check_closed(beside: OtherRay, before: set[tuple[str, int]]) -> None:
    """The Ray of this process listens on loopback, turns strangers away, and tells nobody its token."""
    import ray

    ours = [p for p in family(os.getpid()) if p not in family(beside.process.pid)]
    found = judge_ports("ours", ours)
    assert found.level == "ok" and "127.0.0.1:" in found.text
    assert {ip for ip, _ in listening(ours) - before} == {"127.0.0.1", "::ffff:127.0.0.1"}

    said = join_as_stranger(ray.get_runtime_context().gcs_address)
    assert "InvalidAuthToken" in said and "joined" not in said

    (token,) = {p.environ()["RAY_AUTH_TOKEN"] for p in ours if p.name() in ("raylet", "gcs_server")}
    assert len(token) == 64 and token not in os.environ.values()
    assert not [p for p in ours if token in " ".join(p.cmdline())]
    folder = Path(ray.get_runtime_context().get_temp_dir()).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if token.encode() in path.read_bytes()]
