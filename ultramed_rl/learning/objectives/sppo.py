"""Self-play preference optimisation: each answer's log-ratio goes to how often it wins against the others."""

from __future__ import annotations

import torch

from ultramed_rl.learning.objectives.answers import Answers


def sppo_loss(answers: Answers, *, beta: float, reward_temperature: float) -> torch.Tensor:
    """Mean over K answers of (r_i - (P_i - 1/2) / beta)^2 (arXiv 2405.00675, eq. 4.7; beta is one over its eta).

    r are log-ratios; P_i, the chance that answer i wins against the policy's own, is the mean over all K answers k of
    sigmoid((reward_i - reward_k) / reward_temperature), itself among them. [G] losses.
    """
    same = answers.group[:, None] == answers.group
    gaps = (answers.rewards[:, None] - answers.rewards) / reward_temperature
    sizes = same.sum(1)
    wins = (gaps.sigmoid() * same).sum(1) / sizes
    return answers.sum_by_group((answers.logratios - (wins - 0.5) / beta).square() / sizes)


def sppo_hard_loss(answers: Answers, *, beta: float) -> torch.Tensor:
    """(r_c - 1 / (2 beta))^2 + (r_r + 1 / (2 beta))^2, r log-ratios: eq. 4.7 where the chosen answer always wins and the
    rejected one never does. [G] losses."""
    goal = 1 / (2 * beta)
    chosen, rejected = answers.chosen(answers.logratios), answers.rejected(answers.logratios)
    return (chosen - goal).square() + (rejected + goal).square()
