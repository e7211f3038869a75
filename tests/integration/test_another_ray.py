"""A run's own Ray beside somebody else's: neither disturbs the other, whichever ends first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.cluster.jobs import Job, run_job
from ultramed_rl.cluster.placement import disconnect
from ultramed_rl.cluster.private_ray import start_private_ray
from ultramed_rl.config.cluster import Devices

# As anybody's script: its agent takes the port that Ray gives every agent, 52365.
OTHER = """
import ray

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
two = ray.remote(lambda: 2).options(num_cpus=1)
print("up", flush=True)
while input():
    print("answer", ray.get(two.remote(), timeout=60), flush=True)
"""


class Worker:
    """An actor of our run."""

    def process(self) -> int:
        return os.getpid()


class OtherRay:
    """Somebody's script with a Ray of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

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
            assert process.stdout is not None and process.stdout.readline() == "up\n"
            yield OtherRay(process)
        finally:
            process.terminate()
            process.wait(timeout=60)


def test_either_ray_goes_on_when_the_other_ends() -> None:
    import ray

    with another_ray() as first:
        address = start_private_ray(2, dashboard=True)
        try:
            remote = ray.remote(Worker).options(num_cpus=1)
            group = WorkerGroup("policy", lambda rank: remote.remote(), 1, takes_turns=False)
            processes = group.call("process")
            run_job(Job(["true"], 0, 1, {}), Devices(device="cpu", address=address), lambda text: None)
            first.interrupt()
            assert group.call("process") == processes

            with another_ray() as second:
                folder = Path(ray.get_runtime_context().get_temp_dir())
                assert (folder / "session_latest" / "logs").is_dir()
                disconnect()
                assert not folder.exists()
                assert second.ask() == "answer 2\n"
        finally:
            disconnect()
