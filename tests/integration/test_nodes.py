"""A run over three nodes, one of which is lost in the middle, and which no stranger joins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.nodes import Node, ray_nodes
from tests.stranger import join_as_stranger
from tests.tiny import tiny_run

# Two nodes hold the engines, the third policy and reward model: SimPO has no reference.
CHANGES: dict[str, Any] = {
    "objective": {"type": "simpo"},
    "prompts__per_round": 10,
    "policy__max_length": 320,
    "sampling__max_new_tokens": 200,
    "cluster__nodes": 3,
    "cluster__layout": "disaggregated",
    "cluster__policy": {"ranks": 1, "zero_stage": 1},
    "cluster__rollout": {"engines": 4, "max_num_seqs": 4, "kv_cache_gib": 0.1, "enforce_eager": True},
    "cluster__faults": {"start_s": 60.0, "hang_s": 120.0},
}


@pytest.mark.slow
def test_two_rounds_over_three_nodes_go_on_when_one_is_lost(tiny_root: Path) -> None:
    settings = tiny_run(tiny_root, run__name="nodes", **CHANGES)
    del settings["reference"]
    config, run = tiny_root / "nodes.yaml", tiny_root / "runs" / "nodes"
    config.write_text(yaml.safe_dump(settings))
    with ray_nodes(3, cpus=2) as (variables, nodes):
        said = join_as_stranger(variables["RAY_ADDRESS"])
        assert "InvalidAuthToken" in said and "joined" not in said
        driver = subprocess.Popen(
            [sys.executable, "-m", "ultramed_rl.cli", "run", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | variables,
        )
        wait_until(driver, lambda: (run / "rounds/001/prompts.json").exists())
        assert sorted(len(node.workers("RolloutWorker")) for node in nodes) == [0, 2, 2]
        (home,) = [node for node in nodes if node.workers("PolicyWorker")]
        assert home.workers("RewardWorker") and not home.workers("RolloutWorker")
        victim = next(node for node in nodes if node is not home)
        victim.remove()
        output, _ = driver.communicate(timeout=900)
        assert driver.returncode == 0, output
        assert output.count("rollout: a worker is started again") >= 2, output
        check_engines(nodes, victim)
    scored = pq.read_table(run / "rounds/001/scored.parquet").to_pylist()
    answers = [(row["prompt_id"], row["sample"]) for row in scored]
    assert len(answers) == len(set(answers)) == 10 * 4, "answers lost or doubled"
    assert {row["policy_version"] for row in scored} == {1}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows if "eval_win_rate" in row] == [0, 1]


def check_engines(nodes: list[Node], victim: Node) -> None:
    assert not victim.workers("RolloutWorker")
    assert all(node.process.poll() is None for node in nodes if node is not victim), "another node died"


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 900
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.01)
