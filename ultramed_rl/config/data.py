"""Where prompts come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ultramed_rl.config.base import Section


class QuestionSource(Section):
    """Rows with a question column, and perhaps an answer column."""

    type: Literal["question"] = "question"
    uri: str
    column: str = "question"
    answer_column: str | None = None
    limit: int | None = Field(default=None, gt=0)


class MessagesSource(Section):
    """Rows with a chat under `messages` (role/content) or `conversations` (from/value)."""

    type: Literal["messages"] = "messages"
    uri: str
    column: str = "messages"
    limit: int | None = Field(default=None, gt=0)


class VignetteSource(Section):
    """DrugSwap rows: a clinical vignette with lettered options and its key; inconsistent rows are dropped."""

    type: Literal["vignette"] = "vignette"
    uri: str
    limit: int | None = Field(default=None, gt=0)


PromptSource = Annotated[QuestionSource | MessagesSource | VignetteSource, Field(discriminator="type")]


class Prompts(Section):
    """The prompt pool. A seeded part is held out for evaluation and never trained on."""

    sources: list[PromptSource] = Field(min_length=1)
    system: str | None = Field(default=None, description="system message put before every prompt")
    suffix: str | None = Field(default=None, description="text added to the end of every user message")
    max_prompt_tokens: int = Field(default=512, gt=0)
    too_long: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="a prompt over max_prompt_tokens stops the run, or is dropped and counted",
    )
    held_out: int = Field(default=64, gt=0, description="prompts kept for evaluation")
    per_round: int = Field(default=64, gt=0)
    reuse: bool = Field(default=False, description="reshuffle and start over when the pool is used up")
