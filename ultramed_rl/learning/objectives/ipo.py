"""Identity preference optimisation."""

from __future__ import annotations

import torch

from ultramed_rl.learning.objectives.answers import Answers


def ipo_loss(answers: Answers, *, beta: float, length_normalized: bool) -> torch.Tensor:
    """(h - 1 / (2 beta))^2, h the difference of log-ratios (arXiv 2310.12036, eq. 17; beta is its tau).

    With `length_normalized` the log-ratios are means over tokens, so that the target doesn't depend on length.
    [G] losses.
    """
    ratios = answers.logratios / answers.lengths if length_normalized else answers.logratios
    return (answers.margin(ratios) - 1 / (2 * beta)).square()
