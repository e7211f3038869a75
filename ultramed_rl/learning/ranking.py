"""All pairs of a ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RankedPairs:
    """P pairs of answers out of G groups that are laid end to end.

    Attributes:
        better, worse: [P] indices of answers.
        gap: [P] the better one's score minus the worse one's; positive.
        group: [P] index of the pair's group.
        weight: [P] one over the number of pairs of its group.
        counts: pairs of each group; on the host.
    """

    better: torch.Tensor
    worse: torch.Tensor
    gap: torch.Tensor
    group: torch.Tensor
    weight: torch.Tensor
    counts: tuple[int, ...]


def ranked_pairs(scores: Sequence[Sequence[float]], device: torch.device | str = "cpu") -> RankedPairs:
    """Every pair of answers of a group whose scores differ: C(n, 2) of them where none are tied.

    Args:
        scores: for each group its answers' scores.
    """
    rows: list[tuple[int, int, float, int]] = []
    start = 0
    for group, own in enumerate(scores):
        rows += [
            (start + i, start + j, a - b, group)
            for i, a in enumerate(own)
            for j, b in enumerate(own)
            if a > b
        ]
        start += len(own)
    counts = [0] * len(scores)
    for *_, group in rows:
        counts[group] += 1
    assert all(counts), (
        f"groups {[i for i, n in enumerate(counts) if not n][:4]} have no two answers that differ in score"
    )

    better, worse, gaps, owners = zip(*rows, strict=True)
    places = torch.tensor([better, worse, owners]).to(device, non_blocking=True)
    numbers = torch.tensor([gaps, [1.0 / counts[owner] for owner in owners]]).to(device, non_blocking=True)
    return RankedPairs(places[0], places[1], numbers[0], places[2], numbers[1], tuple(counts))
