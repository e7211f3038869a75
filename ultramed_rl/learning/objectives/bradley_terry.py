"""Reward-model losses on a pair of rewards, and all pairs of a ranking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def bradley_terry_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | float = 0.0, centering: float = 0.0
) -> torch.Tensor:
    """-log sigmoid(r_c - r_r - margin) + centering (r_c + r_r)^2.

    The first term is Ouyang et al. 2022, eq. 1, with the margin of Llama 2 (arXiv 2307.09288, eq. 2); the
    second holds the rewards' mean near zero (arXiv 2312.09244, eq. 2).

    [B] rewards, and a scalar or [B] by which the chosen should lead, to [B] losses.
    """
    return -F.logsigmoid(chosen - rejected - margin) + centering * (chosen + rejected).square()


def log_exp_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(r_r - r_c)) (arXiv 2204.05862, section 2.2), stable for large gaps. [B], [B] -> [B]."""
    return F.softplus(rejected - chosen)


@dataclass(frozen=True)
class RankedPairs:
    """P pairs of answers out of G groups that are laid end to end."""

    better: torch.Tensor  # [P] index of the better answer
    worse: torch.Tensor  # [P] index of the worse answer
    gap: torch.Tensor  # [P] the better one's score minus the worse one's; positive
    group: torch.Tensor  # [P] index of the pair's group
    weight: torch.Tensor  # [P] one over the number of pairs of its group
    counts: tuple[int, ...]  # pairs of each group; on the host


def ranked_pairs(scores: Sequence[Sequence[float]], device: torch.device | str = "cpu") -> RankedPairs:
    """Every pair of answers of a group whose scores differ: C(n, 2) of them where none are tied. `scores`: for each
    group its answers' scores."""
    rows: list[tuple[int, int, int, float, float]] = []
    start, counts = 0, list[int]()
    for group, own in enumerate(scores):
        pairs = [(i, j) for i, a in enumerate(own) for j, b in enumerate(own) if a > b]
        rows += [(start + i, start + j, group, own[i] - own[j], 1.0 / len(pairs)) for i, j in pairs]
        start, counts = start + len(own), [*counts, len(pairs)]
    alike = [group for group, count in enumerate(counts) if not count]
    assert not alike, f"groups {alike[:4]} have no two answers that differ in score"

    *places, gaps, weights = zip(*rows, strict=True)
    better, worse, groups = torch.tensor(places).to(device, non_blocking=True)
    gap, weight = torch.tensor([gaps, weights]).to(device, non_blocking=True)
    return RankedPairs(better, worse, gap, groups, weight, tuple(counts))
