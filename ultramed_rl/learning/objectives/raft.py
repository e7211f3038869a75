"""Rejection-sampled fine-tuning: the best of a prompt's answers, imitated."""

from __future__ import annotations

import torch

from ultramed_rl.learning.objectives.answers import Answers, chosen_nll


def raft_loss(answers: Answers) -> torch.Tensor:
    """-log pi(y_1) / |y_1|, y_1 the best of the answers (RAFT, arXiv 2304.06767, algorithm 1). [G] losses."""
    return chosen_nll(answers)
