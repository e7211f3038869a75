"""What a scorer of the loop is, and many numbers per completion into one. Pure.

What isn't finite becomes NaN: selection sets it aside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import mul
from statistics import fmean, pstdev
from typing import Protocol, Self

from ultramed_rl.config.rewards import Ensemble
from ultramed_rl.records import Completion, Prompt


@dataclass
class Scores:
    """What a term says of completions, in their order.

    Attributes:
        values: a number of each; NaN where there is none to be had.
        details: of each, numbers by name that the term's own is made of; they are kept beside the reward.
        errors: by prompt id, why its answers have no numbers, so that the prompt is set aside.
    """

    values: list[float]
    details: list[dict[str, float]]
    errors: dict[str, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, count: int) -> Self:
        """Of so many completions nothing is said yet."""
        return cls([math.nan] * count, [{} for _ in range(count)])


class Term(Protocol):
    """Gives each completion a number, higher is better."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float] | Scores:
        """One number for each completion, in their order; NaN where there is none to be had.

        Completions name their prompt by `prompt_id`.
        """


def with_prompts(
    prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[tuple[Prompt, Completion]]:
    """Each completion with its prompt, in the order of the completions."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    missing = sorted({c.prompt_id for c in completions} - by_id.keys())
    assert not missing, f"completions of unknown prompts: {missing[:5]}"
    return [(by_id[completion.prompt_id], completion) for completion in completions]


def weighted_sum(weights: Sequence[float], values: Sequence[Sequence[float]]) -> list[float]:
    """sum_t weights[t] * values[t][i] for each completion i; NaN where any of its values isn't finite."""
    assert len(weights) == len(values), f"{len(weights)} weights of {len(values)} terms"
    return _by_completion(values, lambda column: math.fsum(map(mul, weights, column)))


def combine_members(config: Ensemble, values: Sequence[Sequence[float]]) -> list[float]:
    """An ensemble's reward of each completion from its members' rewards values[member][completion]."""
    assert len(values) == len(config.paths), f"{len(values)} members, {len(config.paths)} paths"
    if config.combine == "min":
        return _by_completion(values, min)
    penalty = config.penalty or 0.0
    return _by_completion(values, lambda rewards: fmean(rewards) - (penalty and penalty * pstdev(rewards)))


def _by_completion(
    values: Sequence[Sequence[float]], combine: Callable[[Sequence[float]], float]
) -> list[float]:
    columns = list(zip(*values, strict=True))
    return [combine(column) if all(map(math.isfinite, column)) else math.nan for column in columns]
