"""A reference whose weights are split over two ranks gives the logprobs of a whole one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.test_scoring import groups
from tests.tiny import make_model
from ultramed_rl.actors.scorer import ReferenceWorker, RewardWorker, Scorer
from ultramed_rl.config.cluster import ReplicaGroup

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize(
    ("kind", "worker"), [("policy", ReferenceWorker), ("reward", RewardWorker), ("gpt_oss", ReferenceWorker)]
)
def test_sharded_replicas_equal_a_whole_one(
    tiny_root: Path, tmp_path: Path, kind: str, worker: type[Scorer]
) -> None:
    import ray

    from ultramed_rl.cluster.connection import start_private_ray
    from ultramed_rl.cluster.group import WorkerGroup

    path = str(tiny_root / kind)
    if kind == "gpt_oss":  # biases, sinks and experts
        path = str(make_model(tmp_path, kind, max_position_embeddings=512))
    whole = worker(0, "cpu", "float32", 200)
    whole.load(path)  # type: ignore[attr-defined]
    expected = {(g, a): x for batch in whole.score(groups()) for g, a, x in batch}

    if not ray.is_initialized():
        start_private_ray(4)
    environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    remote = ray.remote(worker).options(num_cpus=1, runtime_env={"env_vars": environment})
    two = ReplicaGroup(replicas=2, shard=True)
    group = WorkerGroup(kind, lambda r: remote.remote(r, "cpu", "float32", 200, two), 2, takes_turns=False)
    group.call(worker.join, group.actors[0].rendezvous.remote())
    group.call(worker.load, path)  # type: ignore[attr-defined]
    # Unequal shards: the second rank must make empty passes while the first still gathers.
    shards = [groups()[:7], groups()[7:]]
    found = {
        (g + 7 * rank, a): number
        for rank, scores in group.generate(worker.score, [(shard,) for shard in shards]).follow()
        for g, a, number in scores
    }
    group.stop()
    assert found == pytest.approx(expected, abs=1e-4)
