"""The data factory's steps that ask a language model: how each asks, and what it accepts."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.embedding import EMBEDDER, HASHED

OpenMethod = Literal["constrain", "concretise", "multi_step", "depth_breadth", "real_data"]
ChoiceMethod = Literal["constrain", "concretise", "distractors", "multi_step"]

_REFUSALS = [
    r"^(?:i['’]?m|i am|we are|we['’]?re) (?:very |so |really )?sorry,? (?:but )?(?:i|we) "
    r"(?:can ?not|can['’]t|am (?:not able|unable)|are (?:not able|unable)|won['’]t)\b",
    r"^(?:sorry|unfortunately|i apologi[sz]e),? (?:but )?(?:i|we) "
    r"(?:can ?not|can['’]t|am (?:not able|unable)|won['’]t)\b",
    r"^i (?:can ?not|can['’]t|am (?:not able|unable) to|won['’]t) (?:help|assist|answer|provide|fulfil|comply)",
    r"^as an? (?:ai|artificial intelligence|(?:large )?language model)\b",
]


def _check_patterns(name: str, patterns: list[str]) -> list[str]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{name}={pattern!r}: not a regular expression ({error}); escape what is meant literally with \\"
            ) from None
    return patterns


class Asking(Section):
    """How a step asks its model. Temperature and top_p are by default those of UltraMedical's scripts."""

    temperature: float = Field(default=0.9, ge=0.0, le=2.0, description="of the model's replies")
    top_p: float = Field(
        default=0.7,
        gt=0.0,
        le=1.0,
        description="sample from the likeliest tokens that together have this probability",
    )
    max_tokens: int = Field(default=1024, gt=0, description="of one reply")
    seed: int = Field(default=0, ge=0, description="of sampling, and of what is drawn for a record")


class Textbook(Asking):
    """Multiple-choice questions out of textbook paragraphs, after two gates."""

    type: Literal["textbook"] = "textbook"
    exemplars: int = Field(
        default=3, ge=0, description="questions shown as examples, drawn for each paragraph"
    )
    exemplars_from: str | None = Field(
        default=None, description="records to draw them from, as of MedQA's training set"
    )
    attempts: int = Field(default=2, gt=0, description="times that the question itself is asked for")
    name: str = Field(default="TextBookQA", min_length=1, description="first part of the new records' ids")


class Topics(Asking):
    """A field of study to its subfields, or a subfield to instructions."""

    type: Literal["topics"] = "topics"
    mode: Literal["subfields", "instructions"] = Field(
        description="subfields of a field, or instructions of a subfield"
    )
    count: int = Field(default=20, gt=0, description="items asked for in one reply")
    attempts: int = Field(default=2, gt=0, description="times that a list is asked for")
    max_tokens: int = Field(default=4096, gt=0, description="of one reply")
    name: str = Field(default="WikiInstruct", min_length=1, description="first part of the new records' ids")


class Evolve(Asking):
    """Questions made harder, round by round (Evol-Instruct, arXiv 2304.12244)."""

    type: Literal["evolve"] = "evolve"
    rounds: int = Field(default=2, gt=0, description="times that a question is made harder")
    open_methods: list[OpenMethod] = Field(
        default=["constrain", "concretise", "multi_step", "depth_breadth", "real_data"],
        min_length=1,
        description="ways to make an open question harder, one drawn for each round",
    )
    choice_methods: list[ChoiceMethod] = Field(
        default=["constrain", "concretise", "distractors", "multi_step"],
        min_length=1,
        description="ways to make a multiple-choice question harder, one drawn for each round",
    )
    least_words: int = Field(default=10, ge=0, description="words that a round adds to the stem at least")
    most_words: int = Field(default=20, gt=0, description="words that a round adds to the stem at most")
    attempts: int = Field(default=2, gt=0, description="of one round")
    on_miss: Literal["keep", "drop"] = Field(
        default="keep", description="a round that never fits: keep the earlier version, or drop the record"
    )
    keep: Literal["last", "every"] = Field(
        default="last", description="which rounds' versions become records"
    )
    name: str | None = Field(
        default=None,
        min_length=1,
        pattern=r"^[^,]*$",
        description="a set of their own, beside the originals: first part of the versions' ids; null: the record's",
    )

    @model_validator(mode="after")
    def _ascends(self) -> Evolve:
        if self.least_words > self.most_words:
            raise ValueError(
                f"evolve.least_words={self.least_words}: exceeds evolve.most_words={self.most_words}; "
                "exchange them"
            )
        return self

    @field_validator("open_methods", "choice_methods")
    @classmethod
    def _once(cls, methods: list[str], info: ValidationInfo) -> list[str]:
        if len({*methods}) < len(methods):
            raise ValueError(f"evolve.{info.field_name}={methods}: one stands there twice; name each once")
        return methods


class Answer(Asking):
    """Answers with their reasoning; of a multiple-choice question only one that gives the key."""

    type: Literal["answer"] = "answer"
    attempts: int = Field(default=3, gt=0, description="answers asked for before the record is dropped")
    exemplars: int = Field(default=3, ge=0, description="solved questions shown from the second attempt on")
    exemplars_from: str | None = Field(
        default=None,
        description="solved records, of which those most like the question are shown; null: none",
    )
    embedder: str = Field(default=HASHED, description=EMBEDDER)
    max_tokens: int = Field(default=2048, gt=0, description="of one reply")
    refusals: list[str] = Field(
        default=_REFUSALS, description="Python patterns, any case; an answer that begins so is a refusal"
    )

    @field_validator("refusals")
    @classmethod
    def _compiles(cls, patterns: list[str]) -> list[str]:
        return _check_patterns("answer.refusals", patterns)


class Score(Asking):
    """How hard a question is, 1 to 10, and why."""

    type: Literal["score"] = "score"
    form: Literal["json", "text"] = Field(
        default="json", description="text: for a model that JSON is too much for"
    )
    threshold: float = Field(
        default=7.0, ge=1.0, le=10.0, description="records below are dropped; 1 drops none"
    )
    attempts: int = Field(default=2, gt=0, description="times that a score is asked for")
    temperature: float = Field(default=0.0, ge=0.0, le=2.0, description="of the model's replies")
    top_p: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="sample from the likeliest tokens that together have this probability",
    )
    max_tokens: int = Field(default=512, gt=0, description="of one reply")


class Paragraphs(Section):
    """Passages out of documents, for the textbook step to ask about; no model is asked."""

    type: Literal["paragraphs"] = "paragraphs"
    least_words: int = Field(default=40, gt=0, description="of a passage; shorter neighbours are joined")
    most_words: int = Field(default=250, gt=0, description="of a passage, the headings above it not counted")
    headings: bool = Field(default=True, description="put the headings above a passage before its text")
    notes: list[str] = Field(
        default=[r"OpenMedicine Calculators?\b"],
        description="Python patterns, any case; a part that begins so speaks of the document, and is left out",
    )
    name: str = Field(default="Paragraph", min_length=1, description="first part of the passages' ids")

    @field_validator("notes")
    @classmethod
    def _compiles(cls, patterns: list[str]) -> list[str]:
        return _check_patterns("paragraphs.notes", patterns)

    @model_validator(mode="after")
    def _ascends(self) -> Paragraphs:
        if self.least_words > self.most_words:
            raise ValueError(
                f"paragraphs.least_words={self.least_words}: exceeds paragraphs.most_words={self.most_words}; "
                "exchange them"
            )
        return self


FactoryStep = Annotated[Textbook | Topics | Evolve | Answer | Score, Field(discriminator="type")]
