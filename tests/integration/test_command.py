"""Foreign commands on a real Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ultramed_rl.cluster.command import run_command
from ultramed_rl.cluster.connection import start_private_ray, stop_private_ray
from ultramed_rl.config.cluster import StageCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[StageCluster]:
    """One Ray for all commands here."""
    start_private_ray(2)
    yield StageCluster(device="cpu", start_timeout_s=60.0)
    stop_private_ray()


def run_python(code: str, cluster: StageCluster, say: Callable[[str], Any], **variables: str) -> None:
    run_command(["python", "-c", code], cluster, gpus=0, variables=variables, say=say)


def test_a_command_is_followed_to_its_end(cluster: StageCluster) -> None:
    said: list[str] = []
    code = "import os, sys; print(sys.executable, os.environ['MARK'])"
    run_python(code, cluster, said.append, MARK="two  words")
    assert f"{sys.executable} two  words" in "".join(said).splitlines()


def test_a_failed_command_raises_with_its_last_lines(cluster: StageCluster) -> None:
    with pytest.raises(RuntimeError, match=r"^python -c .*: exit code 3[\s\S]*boom 7$"):
        code = "import sys; [print('boom', i) for i in range(8)]; sys.exit(3)"
        run_python(code, cluster, lambda text: None)


def test_an_interrupt_stops_the_command(cluster: StageCluster, tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        if "started" in text.splitlines():
            os.kill(os.getpid(), signal.SIGINT)

    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); print('started', flush=True); time.sleep(300)"
    with pytest.raises(KeyboardInterrupt):
        run_python(code, cluster, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_a_command_ends_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, code])
    wait_until(lambda: mark.is_file() and mark.read_text() != "", 60)
    driver.kill()
    driver.wait()
    process = int(mark.read_text())
    wait_until(lambda: not Path(f"/proc/{process}").exists(), 60)


DRIVER = """
import sys
from ultramed_rl.cluster.command import run_command
from ultramed_rl.config.cluster import Devices
run_command([sys.executable, "-c", sys.argv[1]], Devices(device="cpu"), gpus=0, variables={})
"""


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
