"""Which samples go together: global batches, rank shards, micro-batches, padding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch


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


def shard_batch(
    batch: Sequence[int], lengths: Sequence[int], micro_size: int, ranks: int
) -> list[list[MicroBatch]]:
    """Split a global batch over ranks into micro-batches of at most `micro_size` samples.

    Samples of similar length share a micro-batch (less padding); micro-batches are dealt to ranks from
    the longest down, to the least loaded rank, then every rank is filled up to the same count.

    Returns:
        for each rank its micro-batches; every index of `batch` is in exactly one that is no filler.
    """
    ordered = sorted(batch, key=lambda i: (-lengths[i], i))
    groups = [tuple(ordered[i : i + micro_size]) for i in range(0, len(ordered), micro_size)]
    per_rank = -(-len(groups) // ranks)
    shards: list[list[MicroBatch]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for group in groups:
        rank = min((r for r in range(ranks) if len(shards[r]) < per_rank), key=lambda r: (loads[r], r))
        shards[rank].append(MicroBatch(group))
        loads[rank] += len(group) * lengths[group[0]]
    shortest = min(batch, key=lambda i: (lengths[i], i))
    for shard in shards:
        shard.extend(MicroBatch((shortest,), filler=True) for _ in range(per_rank - len(shard)))
    return shards


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Length-sorted batches whose padded size stays within `budget` tokens (a longer sample goes alone)."""
    batches: list[list[int]] = []
    current: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if current and lengths[index] * (len(current) + 1) > budget:
            batches.append(current)
            current = []
        current.append(index)
    return [*batches, current] if current else batches


@dataclass(frozen=True)
class PaddedBatch:
    """Right-padded sequences: `input_ids`, `attention_mask`, `completion_mask`, each [B, L]."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    completion_mask: torch.Tensor


def pad_batch(
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int, device: torch.device | str = "cpu"
) -> PaddedBatch:
    """Pad (prompt ids, completion ids) pairs on the right; the completion mask marks the answers' tokens."""
    width = max(len(prompt) + len(completion) for prompt, completion in sequences)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    attention = torch.zeros_like(ids)
    completion_mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(sequences):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor([*prompt, *completion])
        attention[row, :end] = 1
        completion_mask[row, len(prompt) : end] = True
    return PaddedBatch(ids.to(device), attention.to(device), completion_mask.to(device))
