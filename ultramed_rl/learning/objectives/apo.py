"""Anchored preference optimisation: where chosen and rejected answers go is said for each, not for their margin alone."""

from __future__ import annotations

import torch

from ultramed_rl.learning.objectives.answers import Answers


def apo_zero_loss(answers: Answers, *, beta: float) -> torch.Tensor:
    """1 - sigmoid(beta r_c) + sigmoid(beta r_r), r log-ratios (arXiv 2408.06266, eq. 7, plus 1): chosen answers become
    likelier and rejected ones less so, for a policy worse than the chosen answers. [G] losses."""
    chosen, rejected = answers.chosen(answers.logratios), answers.rejected(answers.logratios)
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down_loss(answers: Answers, *, beta: float) -> torch.Tensor:
    """sigmoid(beta r_c) + 1 - sigmoid(beta (r_c - r_r)), r log-ratios (arXiv 2408.06266, eq. 8, plus 1): both become less
    likely, rejected ones more so, for a policy better than the chosen answers. [G] losses."""
    chosen, margin = answers.chosen(answers.logratios), answers.margin(answers.logratios)
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * margin)
