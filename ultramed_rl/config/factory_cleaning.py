"""Cleaning of instructions: which are repeated, and which stand in a benchmark."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ultramed_rl.config.base import Section
from ultramed_rl.config.benchmarks import TaskChoice
from ultramed_rl.config.embedding import EMBEDDER, HASHED
from ultramed_rl.config.limits import Address, Column, FactorOrZero, PositiveShare, Share, Words


class Columns(Section):
    """Where a row's id and its instruction are; an instruction may be a text, or a chat whose first user turn it is."""

    id: Column = Field(default="id", description="column of the row's id")
    instruction: Column = Field(default="conversations", description="column of the text, or of the chat")


class Deduplicate(Section):
    """Drop instructions that repeat another: the same words, nearly the same words, or a near vector."""

    type: Literal["deduplicate"] = "deduplicate"
    columns: Columns = Columns()
    keep: Literal["first", "longest", "best"] = Field(
        default="first", description="which of alike rows stays; best: by `score_column`, then the first"
    )
    score_column: Column = Field(default="difficulty", description="for keep=best: the column of a number")
    words: Annotated[Words, Field(ge=1, le=32)] = Field(default=3, description="words of a shingle")
    jaccard: PositiveShare | None = Field(
        default=0.8,
        description="shared part of two rows' shingles from which they are alike; null: off",
    )
    cosine: Annotated[PositiveShare, Field(gt=0.5)] | None = Field(
        default=0.975,
        description="cosine of two rows' vectors from which they are alike; null: off",
    )
    embedder: Address = Field(default=HASHED, description=EMBEDDER)


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


class Decontaminate(Section):
    """Drop instructions that stand in a benchmark; the defaults of distance and length are the paper's."""

    type: Literal["decontaminate"] = "decontaminate"
    columns: Columns = Columns()
    tasks: list[Annotated[TaskChoice, BeforeValidator(_named)]] = Field(
        default=["medqa", "medmcqa", "pubmedqa", "mmlu_medical"], min_length=1, validate_default=True
    )
    squared_l2: FactorOrZero = Field(
        default=0.05, lt=2.0, description="squared distance of unit vectors up to which they are near"
    )
    length: Share = Field(
        default=0.20,
        lt=1.0,
        description="difference of lengths up to which near ones count, of the longer",
    )
    least_words: Annotated[Words, Field(ge=1)] = Field(
        default=5, description="shorter questions are compared word by word alone"
    )
    ngram: Annotated[Words, Field(ge=4, le=64)] = Field(
        default=13, description="words in a row that tell a question"
    )
    overlap: PositiveShare = Field(
        default=0.5,
        description="part of a test item's n-grams from which a row holds the item",
    )
    embedder: Address = Field(default=HASHED, description=EMBEDDER)
