"""What happens in a round: prompts, sampling, pair selection, evaluation, training; the last also of offline stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.limits import (
    Address,
    BatchSize,
    Column,
    Count,
    CountOrZero,
    Factor,
    FactorOrZero,
    Few,
    LearningRate,
    PositiveShare,
    PositiveTemperature,
    Resamples,
    Samples,
    Share,
    Temperature,
    Text,
    Tokens,
)


class _Source(Section):
    """What every source of prompts has."""

    uri: Address = Field(description="hf://owner/name:split, package://name/path, or local files")
    limit: Count | None = Field(default=None, description="read at most so many rows")
    share: PositiveShare | None = Field(
        default=None,
        description="its part of every round's prompts; null: as much as it has of all",
    )


class QuestionSource(_Source):
    """Rows with a question column, and perhaps an answer column."""

    type: Literal["question"] = "question"
    column: Column = Field(default="question", description="where the question is")
    answer_column: Column | None = Field(
        default=None, description="where a reference answer is; null: there is none"
    )


class MessagesSource(_Source):
    """Rows with a chat under `messages` (role/content) or `conversations` (from/value)."""

    type: Literal["messages"] = "messages"
    column: Column = Field(default="messages", description="where the chat is")


class VignetteSource(_Source):
    """DrugSwap rows: a clinical vignette with lettered options and its key; inconsistent rows are dropped."""

    type: Literal["vignette"] = "vignette"


PromptSource = Annotated[QuestionSource | MessagesSource | VignetteSource, Field(discriminator="type")]


class Prompts(Section):
    """The prompt pool. A seeded part is held out for evaluation and never trained on."""

    sources: list[PromptSource] = Field(min_length=1, description="where prompts are read from")
    system: Text | None = Field(default=None, description="system message put before every prompt")
    suffix: Text | None = Field(default=None, description="text added to the end of every user message")
    max_prompt_tokens: Tokens = Field(default=512, description="longest prompt, chat template included")
    too_long: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="a prompt over max_prompt_tokens stops the run, or is dropped and counted",
    )
    held_out: Count = Field(default=64, description="prompts kept for evaluation")
    per_round: Count = Field(default=64, description="prompts of one round")
    reuse: bool = Field(default=False, description="reshuffle and start over when the pool is used up")
    unpaired_every: Annotated[Few, Field(ge=2)] | None = Field(
        default=None,
        description="curriculum: a prompt whose answers were scored and gave no pair (all right or all wrong, too near to each "
        "other) is asked again in the pass over the pool so many after that, others in the next one; null: all in the next one",
    )
    refill: Annotated[Factor, Field(gt=1.0)] | None = Field(
        default=None,
        description="ask others in the place of prompts that give no pair, until the round has per_round pairs or this many "
        "times per_round prompts are asked; null: none",
    )

    @model_validator(mode="after")
    def _shares_make_a_whole(self) -> Prompts:
        shares = [source.share for source in self.sources]
        given = [share for share in shares if share is not None]
        if given and (len(given) < len(shares) or abs(sum(given) - 1.0) > 1e-6):
            raise ValueError(
                f"prompts.sources: shares are {shares}; give every source one, and make them sum to 1"
            )
        return self

    @model_validator(mode="after")
    def _curriculum_has_passes(self) -> Prompts:
        if self.unpaired_every is not None and not self.reuse:
            raise ValueError(
                f"prompts.unpaired_every={self.unpaired_every}: no prompt is asked twice with prompts.reuse=false; set "
                "prompts.reuse=true or prompts.unpaired_every=null"
            )
        return self

    @property
    def shares(self) -> list[float] | None:
        """Each source's part of a round, or None where rounds draw from all prompts alike."""
        given = [source.share for source in self.sources if source.share is not None]
        return given or None


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
