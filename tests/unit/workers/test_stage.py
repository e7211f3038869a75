"""What a stage asks of its ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.workers.stage import StageWorkers


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
