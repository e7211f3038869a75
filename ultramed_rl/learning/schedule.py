"""The learning rate as a pure function of progress, so that resuming needs no scheduler state."""

from __future__ import annotations

import math


def learning_rate(progress: float, *, peak: float, warmup: float, shape: str) -> float:
    """Learning rate at `progress` in [0, 1) of the schedule.

    Linear warm-up over the first `warmup` share, then cosine or linear decay to zero, or constant.
    """
    assert 0.0 <= progress <= 1.0, progress
    if progress < warmup:
        return peak * progress / warmup
    decayed = (progress - warmup) / (1.0 - warmup)
    if shape == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * decayed))
    if shape == "linear":
        return peak * (1.0 - decayed)
    assert shape == "constant", shape
    return peak


def step_progress(step: int, steps: int, round_index: int = 0, rounds: int = 1) -> float:
    """Progress of step `step` of `steps` in round `round_index` of `rounds`.

    The middle of the step is taken, so that neither the first nor the last step has rate zero.
    """
    assert 0 <= step < steps and 0 <= round_index < rounds
    return (round_index + (step + 0.5) / steps) / rounds
