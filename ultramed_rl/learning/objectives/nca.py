"""Noise-contrastive alignment: of a pair, of n answers, and InfoNCA."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ultramed_rl.learning.objectives.answers import Answers


def nca_pair_loss(answers: Answers, *, beta: float) -> torch.Tensor:
    """NCA of a pair (arXiv 2402.05369, section 4, its preference form): -log s(w) - (log s(-w) + log s(-l)) / 2, with
    w and l the scaled log-ratios of chosen and rejected, s the sigmoid. [G] losses."""
    chosen, rejected = beta * answers.chosen(answers.logratios), beta * answers.rejected(answers.logratios)
    return -F.logsigmoid(chosen) - (F.logsigmoid(-chosen) + F.logsigmoid(-rejected)) / 2


def nca_loss(answers: Answers, *, beta: float, reward_temperature: float) -> torch.Tensor:
    """NCA over K answers (arXiv 2402.05369, section 4): -sum_i (w_i log s(v_i) + log s(-v_i) / K), with
    w = softmax(reward / reward_temperature) and v the scaled log-ratios. [G] losses."""
    values = beta * answers.logratios
    weights = answers.log_softmax_by_group(answers.rewards / reward_temperature).exp()
    sizes = answers.sum_by_group(torch.ones_like(values))[answers.group]
    return -answers.sum_by_group(weights * F.logsigmoid(values) + F.logsigmoid(-values) / sizes)


def infonca_loss(answers: Answers, *, beta: float, reward_temperature: float) -> torch.Tensor:
    """InfoNCA over K answers (arXiv 2402.05369, section 3): cross entropy from softmax(reward / reward_temperature)
    to softmax(v), v the scaled log-ratios. A pair with a hard label is DPO. [G] losses."""
    weights = answers.log_softmax_by_group(answers.rewards / reward_temperature).exp()
    return -answers.sum_by_group(weights * answers.log_softmax_by_group(beta * answers.logratios))
