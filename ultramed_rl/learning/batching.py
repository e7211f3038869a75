"""Which samples go together, global batches, rank shards and micro-batches by token budget; and at what learning rate.

Batches and rates are functions of the step, so that resuming needs no state of a sampler or scheduler.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MicroBatch:
    """Indices of one rank's forward pass. `filler` repeats a sample with weight zero.

    Fillers keep every rank at the same number of passes, which ZeRO-3's collectives require.
    """

    indices: tuple[int, ...]
    filler: bool = False


def epoch_batches(count: int, batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Shuffled global batches over all epochs; the last batch of an epoch may be smaller."""
    batches: list[list[int]] = []
    for epoch in range(epochs):
        order = list(range(count))
        random.Random(f"{seed}:{epoch}").shuffle(order)
        batches.extend(order[i : i + batch_size] for i in range(0, count, batch_size))
    return batches


def ordered_batches(count: int, batch_size: int) -> list[list[int]]:
    """Batches of samples as they come, each once; the last one may be smaller."""
    return [list(range(i, min(i + batch_size, count))) for i in range(0, count, batch_size)]


def count_steps(count: int, batch_size: int, epochs: int, max_steps: int | None = None) -> int:
    """How many batches `epoch_batches` gives, at most `max_steps`."""
    steps = -(-count // batch_size) * epochs
    return steps if max_steps is None else min(steps, max_steps)


def shard_batch(
    batch: Sequence[int], lengths: Sequence[int], budget: int, ranks: int, *, padded: bool = False
) -> list[list[MicroBatch]]:
    """Split a global batch over ranks by tokens, and each rank's part into micro-batches.

    Samples are dealt from the longest down to the least loaded rank, so that ranks finish together. A
    micro-batch holds at most `budget` tokens; a longer sample goes alone. Ranks with fewer micro-batches
    split theirs, or add fillers where there is nothing to split.

    Args:
        lengths: tokens of every sample, indexed as `batch` does.
        padded: whether a micro-batch is computed as rows, so that each sample costs as much as its longest one.

    Returns:
        for each rank its micro-batches; every index of `batch` is in exactly one that is no filler.
    """
    parts: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(batch, key=lambda i: (-lengths[i], i)):
        rank = loads.index(min(loads))
        parts[rank].append(index)
        loads[rank] += lengths[index]
    shards = [_fill_bins(part, lengths, budget, padded) for part in parts]
    passes = max(len(shard) for shard in shards)
    shortest = min(batch, key=lambda i: (lengths[i], i))
    return [list(_stretch(shard, passes, shortest)) for shard in shards]


def _fill_bins(indices: Iterable[int], lengths: Sequence[int], budget: int, padded: bool) -> list[list[int]]:
    """Best-fit decreasing: `indices` come longest first, each goes to the fullest bin that has room."""
    bins: list[list[int]] = []
    rooms: list[int] = []
    for index in indices:
        # A bin's first is its longest.
        costs = [lengths[own[0]] if padded else lengths[index] for own in bins]
        fitting = [b for b, room in enumerate(rooms) if room >= costs[b]]
        if fitting:
            best = min(fitting, key=lambda b: rooms[b])
            bins[best].append(index)
            rooms[best] -= costs[best]
        else:
            bins.append([index])
            rooms.append(budget - lengths[index])
    return bins


def _stretch(bins: list[list[int]], passes: int, shortest: int) -> Iterable[MicroBatch]:
    while len(bins) < passes and any(len(b) > 1 for b in bins):
        largest = max(bins, key=len)
        bins[bins.index(largest)] = largest[::2]
        bins.append(largest[1::2])
    yield from (MicroBatch(tuple(b)) for b in bins)
    yield from (MicroBatch((shortest,), filler=True) for _ in range(passes - len(bins)))


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Batches of samples of similar length within `budget` tokens (a longer sample goes alone)."""
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not batches or lengths[index] > room:
            batches.append([])
            room = budget
        batches[-1].append(index)
        room -= lengths[index]
    return batches


def learning_rate(progress: float, *, peak: float, warmup: float, shape: str) -> float:
    """Learning rate at `progress` in [0, 1) of the schedule.

    Linear warm-up over the first `warmup` share, then cosine or linear decay to zero, or constant.
    """
    assert 0.0 <= progress <= 1.0, progress
    if progress < warmup:
        return peak * progress / warmup
    decayed = (progress - warmup) / (1.0 - warmup)
    if shape == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * decayed))
    if shape == "linear":
        return peak * (1.0 - decayed)
    assert shape == "constant", shape
    return peak


def step_progress(step: int, steps: int, round_index: int = 0, rounds: int = 1) -> float:
    """Progress of step `step` of `steps` in round `round_index` of `rounds`.

    The middle of the step is taken, so that neither the first nor the last step has rate zero.
    """
    assert 0 <= step < steps and 0 <= round_index < rounds
    return (round_index + (step + 0.5) / steps) / rounds
