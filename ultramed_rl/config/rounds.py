"""What happens in a round besides training: sampling, pair selection, evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ultramed_rl.config.base import Section


class Sampling(Section):
    """How completions are drawn from the current policy."""

    n: int = Field(default=8, ge=2, description="completions per prompt")
    temperature: float = Field(
        default=1.0, gt=0.0, description="of the samples; 1 is the policy's own distribution"
    )
    top_p: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="sample from the likeliest tokens that together have this probability",
    )
    max_new_tokens: int = Field(default=1024, gt=0, description="longest completion")


class PairRule(Section):
    """How the scored completions of a prompt become a preference pair."""

    rejected: Literal["worst", "random", "near_low"] = Field(
        default="worst", description="near_low: the completion nearest to mean - 2 sigma (arXiv 2502.16825)"
    )
    min_margin: float = Field(default=0.0, ge=0.0, description="pairs with a smaller reward gap are dropped")
    max_length_ratio: float | None = Field(
        default=None, gt=1.0, description="drop pairs whose longer side has more than this times the tokens"
    )
    include_reference_answer: bool = Field(
        default=False, description="score the data's own answer as one more candidate, as UltraMedical does"
    )


class Evaluation(Section):
    """Held-out evaluation after every round, with the same prompts and seeds each time."""

    samples: int = Field(default=1, gt=0, description="completions per held-out prompt")
    temperature: float | None = Field(default=None, ge=0.0, description="null: that of sampling")
    bootstrap: int = Field(default=2000, ge=100, description="paired bootstrap resamples")
