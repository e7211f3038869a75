"""SLiC's hinge loss on log-ratios."""

from __future__ import annotations

import torch

from ultramed_rl.learning.objectives.answers import Answers


def hinge_loss(answers: Answers, *, beta: float) -> torch.Tensor:
    """max(0, 1 - beta h), h the difference of log-ratios (SLiC-HF, arXiv 2305.10425, eq. 1, in the log-ratio form of
    RSO, arXiv 2309.06657, section 3.2). [G] losses."""
    return torch.relu(1 - beta * answers.margin(answers.logratios))
