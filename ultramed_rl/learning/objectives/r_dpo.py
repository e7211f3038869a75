"""Length-regularised DPO."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ultramed_rl.learning.objectives.answers import Answers


def r_dpo_loss(answers: Answers, *, beta: float, length_weight: float) -> torch.Tensor:
    """-log sigmoid(beta h + length_weight (|y_c| - |y_r|)), h the difference of log-ratios, lengths in tokens (arXiv
    2403.19159, its R-DPO loss; `length_weight` is its alpha): what a longer chosen answer wins by length needs no margin.
    [G] losses."""
    return -F.logsigmoid(
        beta * answers.margin(answers.logratios) + length_weight * answers.margin(answers.lengths)
    )
