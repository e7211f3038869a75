"""What happens in a round: prompts, sampling, pair selection, evaluation, training; the last also of offline stages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from ultramed_rl.config.base import Section, key
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
    Samples,
    Share,
    Text,
    Tokens,
    TooLong,
    TopP,
)

RUBRIC_COLUMNS = ("rubric", "rubrics")


class Rows(Section):
    """Rows behind a URI."""

    uri: Address = Field(
        description="hf://owner/name:split (pinned: owner/name@REVISION), package://name/path, or local files"
    )
    limit: Count | None = key(None, "read at most so many rows")
    ignore: list[Column] = key([], "columns that are passed over, though they may belong to the prompt")


class _Source(Rows):
    """What every source of prompts has."""

    columns: list[Column] = key(
        [],
        "other columns that are kept beside each prompt, for scorers that read them; rubric and rubrics are anyway",
    )
    share: PositiveShare | None = key(None, "its part of every round's prompts; null: as it has of all")


class QuestionSource(_Source):
    """Rows with a question column, and perhaps an answer column."""

    type: Literal["question"] = "question"
    column: Column = key("question", "where the question is")
    answer_column: Column | None = key(None, "where a reference answer is; null: there is none")


class MessagesSource(_Source):
    """Rows with a chat, in any of the forms of docs/recipe.md; asked up to its last user turn."""

    type: Literal["messages"] = "messages"
    column: Column | None = key(None, "where the turns are; null: the columns tell")


class VignetteSource(_Source):
    """DrugSwap rows: a clinical vignette with lettered options and its key; inconsistent rows are dropped."""

    type: Literal["vignette"] = "vignette"


PromptSource = Annotated[QuestionSource | MessagesSource | VignetteSource, Field(discriminator="type")]


class Prompts(Section):
    """The prompt pool. A seeded part is held out for evaluation and never trained on."""

    sources: list[PromptSource] = Field(min_length=1, description="where prompts are read from")
    system: Text | None = key(None, "system message put before every prompt")
    suffix: Text | None = key(None, "text added to the end of every user message")
    max_prompt_tokens: Tokens = key(512, "longest prompt, chat template included")
    too_long: TooLong = "refuse"  # of max_prompt_tokens
    held_out: Count = key(64, "prompts kept for evaluation")
    per_round: Count = key(64, "prompts of one round")
    reuse: bool = key(False, "reshuffle and start over when the pool is used up")
    unpaired_every: Annotated[Few, Field(ge=2)] | None = key(
        None,
        "curriculum: a prompt whose answers were scored and gave no pair (all right or all wrong, too near to each "
        "other) is asked again in the pass over the pool so many after that, others in the next one; null: all in the next one",
    )
    refill: Annotated[Factor, Field(gt=1.0)] | None = key(
        None,
        "ask others in the place of prompts that give no pair, until the round has per_round pairs or this many "
        "times per_round prompts are asked; null: none",
    )

    def problems(self) -> Iterator[str]:
        shares = [source.share for source in self.sources]
        if self.shares and (None in shares or abs(sum(self.shares) - 1.0) > 1e-6):
            yield f"sources: shares are {shares}; give every source one, and make them sum to 1"
        if self.unpaired_every is not None and not self.reuse:
            yield (
                f"unpaired_every={self.unpaired_every}: no prompt is asked twice with prompts.reuse=false; set "
                "prompts.reuse=true or prompts.unpaired_every=null"
            )

    @property
    def shares(self) -> list[float] | None:
        """Each source's part of a round, or None where rounds draw from all prompts alike."""
        given = [source.share for source in self.sources if source.share is not None]
        return given or None


class Sampling(Section):
    """How completions are drawn from the current policy."""

    n: Samples = key(8, "completions per prompt", ge=2)
    temperature: PositiveTemperature = key(1.0, "of the samples; 1 is the policy's own distribution")
    top_p: TopP = 1.0
    max_new_tokens: Tokens = key(1024, "longest completion")


class PairRule(Section):
    """How the scored completions of a prompt become a preference pair."""

    rejected: Literal["worst", "random", "near_low"] = key(
        "worst", "near_low: the completion nearest to mean - 2 sigma (arXiv 2502.16825)"
    )
    min_margin: FactorOrZero = key(0.0, "pairs with a smaller reward gap are dropped")
    max_length_ratio: Annotated[Factor, Field(gt=1.0)] | None = key(
        None, "drop pairs whose longer side has more than this times the tokens"
    )
    include_reference_answer: bool = key(False, "score the data's own answer too, as UltraMedical does")


class Checkpoints(Section):
    """Which rounds end with a checkpoint. Engines get each round's weights from the policy, without one."""

    every: Few = key(
        1,
        "after every so many rounds, and after the last; what is lost goes back to the last one and trains on the kept pairs",
    )


class Optimization(Section):
    """Steps, their size and their rate."""

    learning_rate: LearningRate = key(5e-7, "highest rate of the schedule")
    schedule: Literal["cosine", "linear", "constant"] = key("cosine", "how the rate falls after the warm-up")
    warmup: Share = key(0.1, "share of the schedule", lt=1.0)
    epochs: Few = key(1, "times that each sample is used")
    batch_size: BatchSize = key(128, "samples per optimizer step, over all ranks")
    micro_batch_tokens: Tokens = key(16384, "packed tokens per forward pass on a rank; a prompt counts once")
    weight_decay: FactorOrZero = key(0.0, "of AdamW")
    max_grad_norm: Factor = key(1.0, "longer gradients are scaled down to this norm")
    max_skipped_steps: CountOrZero = key(3, "steps with a non-finite gradient that a round or stage may skip")
    gradient_checkpointing: bool = key(True, "compute activations again in the backward pass, to save memory")
    checkpointed_layers: Few | None = key(
        None,
        "layers of which gradient_checkpointing is, from the first on; null: as few as `plan` finds room for, on CPU all",
    )

    def problems(self) -> Iterator[str]:
        if self.checkpointed_layers is not None and not self.gradient_checkpointing:
            yield (
                f"checkpointed_layers={self.checkpointed_layers}: with gradient_checkpointing=false none is computed again; "
                "remove one of them"
            )


class Training(Optimization):
    """One round of preference optimisation on this round's pairs."""

    schedule_scope: Literal["round", "run"] = key("round", "warm up and decay each round (RLHFlow), or once")
    overlap_training: bool = key(
        False,
        "take a step as soon as its pairs are there, while the round's others are still generated; "
        "batches then follow the order of the prompts, and rates are those of a pair for every prompt",
    )
    optimizer_state: Literal["reset", "keep"] = key(
        "reset",
        "Adam's moments at the start of a round: fresh ones, or the last round's. In bfloat16 the float32 weights "
        "that steps add up in go on either way, and lie beside each checkpoint (4 bytes a weight)",
    )


class StageTraining(Optimization):
    """An offline stage's whole training, with evaluation and saved states on the way."""

    # Without a default: what is right for one kind of stage is wrong for another.
    learning_rate: LearningRate = Field(description="highest rate of the schedule")
    max_steps: Count | None = key(None, "stop after so many steps; the schedule then ends there too")
    evaluate_every: Count | None = key(None, "steps between evaluations of held-out data; null: at the end")
    patience: Count | None = key(None, "stop after so many evaluations without a better held-out loss")
    save_every: Count | None = key(None, "steps between saved states, from which a killed stage goes on")
    keep: Literal["best", "last"] = key(
        "last", "the weights that become the stage's model: best is by held-out loss, the start included"
    )
