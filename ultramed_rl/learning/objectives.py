"""Preference objectives on log-ratios, and the Bradley-Terry loss of a reward model."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def dpo_loss(
    chosen_logratio: torch.Tensor,
    rejected_logratio: torch.Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """DPO (arXiv 2305.18290, eq. 7), with conservative label smoothing (cDPO, Mitchell 2023).

    Args:
        chosen_logratio, rejected_logratio: [B] log pi - log pi_ref of whole completions, in nats.

    Returns:
        [B] losses.
    """
    logits = beta * (chosen_logratio - rejected_logratio)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def kto_pair_loss(
    chosen_logratio: torch.Tensor,
    rejected_logratio: torch.Tensor,
    chosen_kl: torch.Tensor,
    rejected_kl: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """Paired KTO (arXiv 2402.01306, eq. 8, both sides of a pair), the variant UltraMedical trained with.

    A chosen completion is compared with the rejected ones' KL estimate and the other way round.

    Args:
        chosen_logratio, rejected_logratio: [B] log pi - log pi_ref, in nats.
        chosen_kl, rejected_kl: scalars from `kl_estimate` over the whole batch, without gradient.

    Returns:
        [B] losses: the mean of both sides.
    """
    desirable = 1 - torch.sigmoid(beta * (chosen_logratio - rejected_kl))
    undesirable = 1 - torch.sigmoid(beta * (chosen_kl - rejected_logratio))
    return (desirable + undesirable) / 2


def kl_estimate(logratios: torch.Tensor) -> torch.Tensor:
    """KTO's reference point: the batch mean of log pi - log pi_ref, not below zero."""
    return logratios.detach().mean().clamp(min=0)


def bradley_terry_loss(chosen_reward: torch.Tensor, rejected_reward: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(r_chosen - r_rejected) (Ouyang et al. 2022, eq. 1): [B], [B] -> [B]."""
    return -F.logsigmoid(chosen_reward - rejected_reward)
