"""Where prompts come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.limits import Address, Column, Count, Factor, Few, PositiveShare, Text, Tokens


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
