"""DPO-Positive: DPO that does not buy its margin with a less likely chosen answer."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ultramed_rl.learning.objectives.answers import Answers


def dpop_loss(answers: Answers, *, beta: float, penalty: float) -> torch.Tensor:
    """-log sigmoid(beta (h - penalty max(0, -r_c))), h the difference of log-ratios and r_c the chosen one (arXiv
    2402.13228, its DPOP loss; `penalty` is its lambda). [G] losses."""
    lost = torch.relu(-answers.chosen(answers.logratios))
    return -F.logsigmoid(beta * (answers.margin(answers.logratios) - penalty * lost))
