"""Direct preference optimisation, with conservative label smoothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ultramed_rl.learning.objectives.answers import Answers


def dpo_loss(
    answers: Answers,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    length_normalized: bool = False,
    ld_alpha: float = 1.0,
) -> torch.Tensor:
    """DPO: -log sigmoid(beta h), h the difference of log-ratios (arXiv 2305.18290, eq. 7).

    `label_smoothing` e gives cDPO, (1 - e) L(h) + e L(-h) (Mitchell 2023, "A note on DPO with noisy preferences",
    eq. 3); `length_normalized` divides each log-ratio by its answer's tokens (arXiv 2411.15124, eq. 6); `ld_alpha` weighs
    the tokens beyond the shorter answer's length (LD-DPO, arXiv 2409.06411, its modified likelihood). [G] losses.
    """
    ratios = answers.logratios
    if ld_alpha < 1:
        assert answers.shared is not None
        ratios = answers.shared + ld_alpha * (ratios - answers.shared)
    logits = beta * answers.margin(ratios / answers.lengths if length_normalized else ratios)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
