"""Commands as jobs of a real Ray cluster."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ultramed_rl.cluster.connection import start_private_ray, stop_private_ray
from ultramed_rl.cluster.jobs import run_job
from ultramed_rl.config.cluster import StageCluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[StageCluster]:
    """One Ray for all jobs here, named by its address as somebody's would be."""
    address = start_private_ray(2, dashboard=True)
    yield StageCluster(device="cpu", address=address, start_timeout_s=60.0)
    stop_private_ray()


def run_python(code: str, cluster: StageCluster, say: Callable[[str], Any], **variables: str) -> None:
    run_job(["python", "-c", code], cluster, gpus=0, variables=variables, say=say)


def test_a_job_is_followed_to_its_end(cluster: StageCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")  # the config's address wins
    said: list[str] = []
    code = "import os, sys; print(sys.executable, os.environ['MARK'])"
    run_python(code, cluster, said.append, MARK="two  words")
    assert f"{sys.executable} two  words" in "".join(said).splitlines()
    assert os.environ["RAY_ADDRESS"] == "nowhere:1"


def test_a_failed_job_raises_with_its_last_lines(cluster: StageCluster) -> None:
    with pytest.raises(RuntimeError, match=r"Ray job ultramed_rl-\w+: failed .*exit code 3[\s\S]*boom 7$"):
        code = "import sys; [print('boom', i) for i in range(8)]; sys.exit(3)"
        run_python(code, cluster, lambda text: None)


def test_an_interrupt_stops_the_job(cluster: StageCluster, tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        if "started" in text.splitlines():
            os.kill(os.getpid(), signal.SIGINT)

    mark = tmp_path / "pid"
    code = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); print('started', flush=True); time.sleep(300)"
    with pytest.raises(KeyboardInterrupt):
        run_python(code, cluster, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_no_cluster_at_the_address() -> None:
    nowhere = StageCluster(device="cpu", address="http://127.0.0.1:9", start_timeout_s=5.0)
    with pytest.raises(
        RuntimeError, match=r"cluster\.address='http://127\.0\.0\.1:9': no Ray cluster takes jobs"
    ):
        run_python("pass", nowhere, lambda text: None)
