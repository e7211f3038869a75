"""A number for every answer, from a group of workers that share them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ultramed_rl.actors.scorer import AnswerNumber
from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.learning.packing import AnswerGroup


def number_answers(
    workers: WorkerGroup,
    method: Callable[..., Iterator[list[AnswerNumber]]],
    groups: Sequence[AnswerGroup],
    arguments: tuple[Any, ...],
    advance: Callable[[int], None],
) -> list[list[float]]:
    """A number for every answer of every group, the groups dealt to the workers in turn.

    Args:
        method: of the workers: (groups, *arguments) to (group, answer, number) as they are done.
        advance: told of each pass's answers.
    """
    count = len(workers)
    shards = [(groups[rank::count], *arguments) for rank in range(count)]
    values: list[list[float | None]] = [[None] * len(g.answers) for g in groups]
    with workers.on_device():
        for rank, numbers in workers.stream(method, shards):
            for group, answer, number in numbers:
                values[rank + group * count][answer] = number
            advance(len(numbers))
    assert all(v is not None for row in values for v in row), "an answer was not scored"
    return [[float(v) for v in row if v is not None] for row in values]
