"""Scores of n answers out of comparisons of two. Pure: who compares is given.

`compare(i, j)` gives the points of answer i against j: 1 it is better, 0 it is worse, 0.5 neither, None nobody can say.
Scores are 0 to 1 and in the order of the answers; one alone has 0.5, and NaN whoever was in no comparison that could be read.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from itertools import combinations
from statistics import fmean

Compare = Callable[[int, int], Awaitable[float | None]]


async def round_robin(count: int, compare: Compare) -> list[float]:
    """Each against each, n (n - 1) / 2 comparisons: an answer's mean points."""
    if count == 1:
        return [0.5]
    pairs = list(combinations(range(count), 2))
    points: list[list[float]] = [[] for _ in range(count)]
    found = await asyncio.gather(*(compare(i, j) for i, j in pairs))
    for (i, j), point in zip(pairs, found, strict=True):
        if point is not None:
            points[i].append(point)
            points[j].append(1.0 - point)
    return [fmean(own) if own else math.nan for own in points]


async def knockout(count: int, compare: Compare) -> list[float]:
    """The best in n - 1 comparisons: neighbours are compared, and whoever won goes on. The last has 1, losers of the first stage
    have 0, others stand between by how far they came. The one of a tie, or where nobody can say, that doesn't go on has the
    score of the one that does."""
    if count < 3:
        return await round_robin(count, compare)
    read: set[int] = set()
    came: dict[int, int] = {}  # stages that one has passed, of those that went out
    tied: dict[int, int] = {}  # with whom, that went on
    left, stage = list(range(count)), 0
    while len(left) > 1:
        pairs = list(zip(left[::2], left[1::2], strict=False))
        found = await asyncio.gather(*(compare(i, j) for i, j in pairs))
        following = []
        for (i, j), points in zip(pairs, found, strict=True):
            read.update(() if points is None else (i, j))
            winner, other = (j, i) if points == 0.0 else (i, j)
            following.append(winner)
            if points in (0.0, 1.0):
                came[other] = stage
            else:
                tied[other] = winner
        left = following + left[2 * len(pairs) :]
        stage += 1
    came[left[0]] = stage

    def passed(i: int) -> int:
        return came[i] if i in came else passed(tied[i])

    return [passed(i) / stage if i in read else math.nan for i in range(count)]
