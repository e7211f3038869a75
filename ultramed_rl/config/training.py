"""How weights are optimised: what a round of the online loop and the offline stages share, and where they differ."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ultramed_rl.config.base import Section
from ultramed_rl.config.limits import (
    BatchSize,
    Count,
    CountOrZero,
    Factor,
    FactorOrZero,
    Few,
    LearningRate,
    Share,
    Tokens,
)


class Optimization(Section):
    """Steps, their size and their rate."""

    learning_rate: LearningRate = Field(default=5e-7, description="highest rate of the schedule")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="how the rate falls after the warm-up; constant: not at all"
    )
    warmup: Share = Field(default=0.1, lt=1.0, description="share of the schedule")
    epochs: Few = Field(default=1, description="times that each sample is used")
    batch_size: BatchSize = Field(default=128, description="samples per optimizer step, over all ranks")
    micro_batch_tokens: Tokens = Field(
        default=16384, description="packed tokens per forward pass on one rank; a prompt counts once"
    )
    weight_decay: FactorOrZero = Field(default=0.0, description="of AdamW")
    max_grad_norm: Factor = Field(default=1.0, description="longer gradients are scaled down to this norm")
    max_skipped_steps: CountOrZero = Field(
        default=3,
        description="steps (of a round or a stage) whose gradient may be non-finite: skipped, then it stops",
    )
    gradient_checkpointing: bool = Field(
        default=True, description="compute activations again in the backward pass, to save memory"
    )


class Training(Optimization):
    """One round of preference optimisation on this round's pairs."""

    schedule_scope: Literal["round", "run"] = Field(
        default="round", description="warm up and decay within each round (RLHFlow), or once over the run"
    )
    overlap_training: bool = Field(
        default=False,
        description="take a step as soon as its pairs are there, while the round's others are still generated; "
        "batches then follow the order of the prompts, and rates are those of a pair for every prompt",
    )
    optimizer_state: Literal["reset", "keep"] = Field(
        default="reset",
        description="Adam's moments at the start of a round: fresh ones, or the last round's. In bfloat16 the float32 weights "
        "that steps add up in go on either way, and lie beside each checkpoint (4 bytes a weight)",
    )


class StageTraining(Optimization):
    """An offline stage's whole training, with evaluation and saved states on the way."""

    learning_rate: LearningRate = Field(
        description="highest rate of the schedule"
    )  # what is right for one kind of stage is wrong for another
    max_steps: Count | None = Field(
        default=None, description="stop after so many steps; the schedule then ends there too"
    )
    evaluate_every: Count | None = Field(
        default=None,
        description="steps between evaluations of the held-out data; null: at the end only",
    )
    patience: Count | None = Field(
        default=None, description="stop after so many evaluations without a better held-out loss"
    )
    save_every: Count | None = Field(
        default=None, description="steps between saved states, from which a killed stage goes on"
    )
    keep: Literal["best", "last"] = Field(
        default="last",
        description="the weights that become the stage's model: best is by held-out loss, the start included",
    )
