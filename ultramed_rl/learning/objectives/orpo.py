"""Odds-ratio preference optimisation, without a reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ultramed_rl.learning.objectives.answers import Answers, chosen_nll


def orpo_loss(answers: Answers, *, beta: float) -> torch.Tensor:
    """NLL(chosen) - beta log sigmoid(log odds(chosen) - log odds(rejected)) (arXiv 2403.07691, eqs. 6-7).

    P(y) is the geometric mean of the answer's token probabilities, odds(y) = P / (1 - P). The NLL is taken over the
    chosen answer's tokens. [G] losses.
    """
    means = answers.logprobs / answers.lengths
    means = means.clamp(max=-torch.finfo(means.dtype).eps)  # a certain answer has infinite odds
    log_odds = means - torch.log(-torch.expm1(means))
    return chosen_nll(answers) - beta * F.logsigmoid(answers.margin(log_odds))
