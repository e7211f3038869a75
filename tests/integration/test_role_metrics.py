"""What a run records is on the metrics endpoint of its node, under the names that docs/cluster.md gives."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from ultramed_rl.cluster.connection import start_private_ray, stop_private_ray
from ultramed_rl.cluster.metrics import RoleMetrics
from ultramed_rl.tracking.stall import RoleState

WANTED = {
    ("items_total", "reward"): 7.0,
    ("restarts_total", "reward"): 1.0,
    ("quarantined_prompts_total", "rollout"): 2.0,
    ("waiting", "reward"): 9.0,
    ("held", "reward"): 5.0,
    ("busy_workers", "reward"): 2.0,
    ("starting_workers", "reward"): 1.0,
    ("turn_seconds_count", "reward"): 3.0,
}
_LINE = re.compile(r"^ray_ultramed_rl_(\w+)\{(.*)\} (\S+)$", re.MULTILINE)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:  # the agent is still starting
        return False


def wait_for(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.5)


def exported(url: str) -> dict[tuple[str, str], float]:
    """Numbers by name and role, of the run `tiny`."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    found = {}
    for name, labels, value in _LINE.findall(text):
        tags = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if tags["run"] == "tiny" and "le" not in tags:
            found[name, tags["role"]] = float(value)
    return found


def record() -> None:
    metrics = RoleMetrics("tiny")
    for items, seconds in ((3, 0.5), (4, 2.0), (0, 0.2)):
        metrics.turn("reward", items, seconds)
    metrics.count("restarts", "reward")
    metrics.count("quarantined_prompts", "rollout")
    metrics.count("quarantined_prompts", "rollout")
    for waiting in (7, 9):
        metrics.observe([RoleState("reward", 4, 1, 2, waiting, 5, 20, ("rollout",), 0.0)])


class Recorder:
    """A process of its own, alive while what it recorded is exported."""

    def __init__(self) -> None:
        record()

    def ready(self) -> bool:
        return True


def test_the_endpoint_exports_what_was_recorded_by_run_and_role(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_metrics_report_interval_ms", "500")
    start_private_ray(1)
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wait_for(lambda: answers(url), 300)
    # Ray's processes look for the agent for 30 s after their start, a bound in its code: on a machine at work the agent
    # starts later than that, and this process's numbers are dropped. One that starts now finds it.
    fresh = {"env_vars": {"ULTRAMED_RL_TEST_METRICS": "1"}}
    recorder = ray.remote(Recorder).options(runtime_env=fresh).remote()
    ray.get(recorder.ready.remote())
    found: dict[tuple[str, str], float] = {}

    def all_found() -> bool:  # at once: between two reports of a process its gauges are not there
        found.clear()
        found.update(exported(url))
        return not WANTED.items() - found.items()

    wait_for(all_found, 60)
    stop_private_ray()
    assert {key: found.get(key) for key in WANTED} == WANTED


def test_the_page_on_clusters_names_every_metric() -> None:
    text = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    missing = [name for name, _ in WANTED if f"ray_ultramed_rl_{name.removesuffix('_count')}" not in text]
    assert not missing
