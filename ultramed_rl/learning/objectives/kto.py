"""Kahneman-Tversky optimisation, unpaired and paired."""

from __future__ import annotations

import torch

from ultramed_rl.learning.objectives.answers import Answers


def kto_loss(
    answers: Answers,
    kl: torch.Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """KTO (arXiv 2402.01306, eq. 8): w_D (1 - sigmoid(beta (r - z))) for wanted answers, and
    w_U (1 - sigmoid(beta (z - r))) for unwanted ones, r their log-ratios and z the reference point.

    `kl` is the scalar z, of `kl_estimate` over the whole batch's mismatched answers. [A] losses: each answer counts alone.
    """
    gain = beta * (answers.logratios - kl)
    wanted = desirable_weight * (1 - torch.sigmoid(gain))
    unwanted = undesirable_weight * (1 - torch.sigmoid(-gain))
    return torch.where(answers.desirable, wanted, unwanted)


def kto_pair_loss(
    answers: Answers, chosen_kl: torch.Tensor, rejected_kl: torch.Tensor, *, beta: float
) -> torch.Tensor:
    """Paired KTO (arXiv 2402.01306, eq. 8, both sides of a pair), the variant UltraMedical trained with.

    A chosen answer is compared with the rejected ones' KL estimate (scalars, of `kl_estimate` over the whole batch) and the
    other way round. [G] losses: the mean of both sides.
    """
    chosen, rejected = answers.chosen(answers.logratios), answers.rejected(answers.logratios)
    wanted = 1 - torch.sigmoid(beta * (chosen - rejected_kl))
    unwanted = 1 - torch.sigmoid(beta * (chosen_kl - rejected))
    return (wanted + unwanted) / 2


def kl_estimate(logratios: torch.Tensor) -> torch.Tensor:
    """KTO's reference point (arXiv 2402.01306, section 4.1): the batch mean of log pi - log pi_ref, not below
    zero, without gradient. [K] -> scalar."""
    return logratios.detach().mean().clamp(min=0)
