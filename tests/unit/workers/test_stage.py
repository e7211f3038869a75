"""What a stage asks of its ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulated.engine import SimulatedEngine
from tests.simulated.ray import Call, SimulatedRay
from tests.simulated.run import FAULTS, WORKERS, simulated
from tests.simulated.weights import read_weights
from tests.tiny import make_policy
from ultramed_rl.config import EvaluateConfig, parse_config
from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.evaluation.rubrics import read_verdicts
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.rewards.judge_client import JudgeClient
from ultramed_rl.workers.stage import RewardWorkers, StageWorkers


@pytest.mark.parametrize("sharing", [1, 2, 4])
def test_ranks_that_share_passes_score_the_same_answers_which_count_once(sharing: int) -> None:
    """An answer's number is its first token; ranks give them in an order of their own."""
    groups = [AnswerGroup([1], [[10 * i + k] for k in range(1 + i % 3)]) for i in range(7)]
    given: list[Any] = []

    def generate(method: object, shards: list[Any]) -> Any:
        given.extend(shards)
        numbers = [
            (rank, [(g, a, float(answer[0]))])
            for rank, (own, _) in enumerate(shards)
            for g, group in enumerate(own)
            for a, answer in enumerate(group.answers)
        ]
        return SimpleNamespace(follow=lambda: numbers[::-1])

    workers: Any = StageWorkers.__new__(StageWorkers)
    workers.by_rank, workers.generate = dict.fromkeys(range(4)), generate
    cluster = SimpleNamespace(trainer=TrainerGroup(ranks=4, sequence_parallel=sharing))
    workers.config = SimpleNamespace(cluster=cluster, training=SimpleNamespace(micro_batch_tokens=64))
    advanced: list[int] = []
    found = workers.score_start(groups, advanced.append)
    assert found == [[float(10 * i + k) for k in range(1 + i % 3)] for i in range(7)]
    assert sum(advanced) == sum(len(group.answers) for group in groups)
    assert all(given[rank] == given[rank - rank % sharing] for rank in range(4))


@pytest.mark.parametrize("how", ["", "dies", "hangs"])
def test_a_benchmark_judge_has_engines_that_start_when_it_asks(tmp_path: Path, how: str) -> None:
    engine = {"path": str(make_policy(tmp_path / "judge")), "max_length": 512, "kv_cache_gib": 0.1}
    grader = {"engine": engine, "max_tokens": 24, "retries": 0}
    settings = {
        "type": "evaluate",
        "run": {"name": "e", "directory": str(tmp_path)},
        "policies": {"p": str(make_policy(tmp_path / "policy"))},
        "policy": {"max_length": 128},
        "benchmarks": {
            "tasks": ["healthbench"],
            "protocols": [{"type": "greedy", "max_new_tokens": 8}],
            "grader": grader,
        },
        "cluster": {
            "device": "cpu",
            "device_memory_gib": 8.0,
            "rollout": {"kv_cache_gib": 0.1},
            "faults": FAULTS,
        },
    }
    config = parse_config(settings, kind=EvaluateConfig)
    assert config.benchmarks is not None and config.benchmarks.grader is not None
    struck: list[Call] = []

    def fate(call: Call) -> str:
        if call.method != "work" or struck:
            return ""
        struck.append(call)
        return how

    ray = SimulatedRay(WORKERS, fate, lambda key: "")
    with simulated(ray):
        workers = RewardWorkers(config)
        client = JudgeClient(config.benchmarks.grader)
        client.served = partial(workers.served, client)
        assert not ray.begun
        asked = [f"rubric|q{i}|a|1: x\n2: y" for i in range(40)]
        found = client.ask_for(asked, lambda reply: read_verdicts(reply.text))
        workers.stop()
    judge = SimulatedEngine(0)
    judge.weights = read_weights(tmp_path / "judge")
    assert [reply.text for reply in found] == [judge.judge(text) for text in asked]
    starts = [call for call in ray.begun if call.method == "start"]
    assert len(starts) == (2 if how else 1), "one engine, and another where it is lost"
