"""What happens in a round besides training: sampling, pair selection, evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ultramed_rl.config.base import Section
from ultramed_rl.config.limits import (
    Factor,
    FactorOrZero,
    Few,
    PositiveShare,
    PositiveTemperature,
    Resamples,
    Samples,
    Temperature,
    Tokens,
)


class Sampling(Section):
    """How completions are drawn from the current policy."""

    n: Annotated[Samples, Field(ge=2)] = Field(default=8, description="completions per prompt")
    temperature: PositiveTemperature = Field(
        default=1.0, description="of the samples; 1 is the policy's own distribution"
    )
    top_p: PositiveShare = Field(
        default=1.0,
        description="sample from the likeliest tokens that together have this probability",
    )
    max_new_tokens: Tokens = Field(default=1024, description="longest completion")


class PairRule(Section):
    """How the scored completions of a prompt become a preference pair."""

    rejected: Literal["worst", "random", "near_low"] = Field(
        default="worst", description="near_low: the completion nearest to mean - 2 sigma (arXiv 2502.16825)"
    )
    min_margin: FactorOrZero = Field(default=0.0, description="pairs with a smaller reward gap are dropped")
    max_length_ratio: Annotated[Factor, Field(gt=1.0)] | None = Field(
        default=None, description="drop pairs whose longer side has more than this times the tokens"
    )
    include_reference_answer: bool = Field(
        default=False, description="score the data's own answer as one more candidate, as UltraMedical does"
    )


class Checkpoints(Section):
    """Which rounds end with a checkpoint. Engines get each round's weights from the policy, without one."""

    every: Few = Field(
        default=1,
        description="a checkpoint after every so many rounds, and after the last; what is lost goes back to the last one and "
        "trains again on the pairs that are kept",
    )


class Evaluation(Section):
    """Held-out evaluation of the starting policy and after rounds, with the same prompts and seeds each time."""

    every: Few = Field(default=1, description="after every so many rounds, and after the last")
    samples: Samples = Field(default=1, description="completions per held-out prompt")
    temperature: Temperature | None = Field(default=None, description="null: that of sampling")
    bootstrap: Resamples = Field(default=2000, description="paired bootstrap resamples")
