"""Robust DPO: unbiased under known label noise."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ultramed_rl.learning.objectives.answers import Answers


def robust_dpo_loss(answers: Answers, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """((1 - e) L(h) - e L(-h)) / (1 - 2e), L(h) = -log sigmoid(beta h) (arXiv 2403.00409, section 3).

    Its expectation over labels that are flipped with probability e is DPO's loss on clean ones. [G] losses.
    """
    logits = beta * answers.margin(answers.logratios)
    clean, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
