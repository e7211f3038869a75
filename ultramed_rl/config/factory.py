"""The data factory's steps that ask a language model: how each asks, and what it accepts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.embedding import EMBEDDER, HASHED
from ultramed_rl.config.limits import (
    Address,
    Few,
    FewOrZero,
    Label,
    Pattern,
    Points,
    PositiveShare,
    Seed,
    Temperature,
    Tokens,
    Words,
)

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


class Asking(Section):
    """How a step asks its model. Temperature and top_p are by default those of UltraMedical's scripts."""

    temperature: Temperature = Field(default=0.9, description="of the model's replies")
    top_p: PositiveShare = Field(
        default=0.7,
        description="sample from the likeliest tokens that together have this probability",
    )
    max_tokens: Tokens = Field(default=1024, description="of one reply")
    seed: Seed = Field(default=0, description="of sampling, and of what is drawn for a record")


class Textbook(Asking):
    """Multiple-choice questions out of textbook paragraphs, after two gates."""

    type: Literal["textbook"] = "textbook"
    exemplars: FewOrZero = Field(
        default=3, description="questions shown as examples, drawn for each paragraph"
    )
    exemplars_from: Address | None = Field(
        default=None, description="records to draw them from, as of MedQA's training set"
    )
    attempts: Few = Field(default=2, description="times that the question itself is asked for")
    name: Label = Field(default="TextBookQA", min_length=1, description="first part of the new records' ids")


class Topics(Asking):
    """A field of study to its subfields, or a subfield to instructions."""

    type: Literal["topics"] = "topics"
    mode: Literal["subfields", "instructions"] = Field(
        description="subfields of a field, or instructions of a subfield"
    )
    count: Few = Field(default=20, description="items asked for in one reply")
    attempts: Few = Field(default=2, description="times that a list is asked for")
    max_tokens: Tokens = Field(default=4096, description="of one reply")
    name: Label = Field(
        default="WikiInstruct", min_length=1, description="first part of the new records' ids"
    )


class Evolve(Asking):
    """Questions made harder, round by round (Evol-Instruct, arXiv 2304.12244)."""

    type: Literal["evolve"] = "evolve"
    rounds: Few = Field(default=2, description="times that a question is made harder")
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
    least_words: Words = Field(default=10, description="words that a round adds to the stem at least")
    most_words: Words = Field(default=20, gt=0, description="words that a round adds to the stem at most")
    attempts: Few = Field(default=2, description="of one round")
    on_miss: Literal["keep", "drop"] = Field(
        default="keep", description="a round that never fits: keep the earlier version, or drop the record"
    )
    keep: Literal["last", "every"] = Field(
        default="last", description="which rounds' versions become records"
    )
    name: Label | None = Field(
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
    attempts: Few = Field(default=3, description="answers asked for before the record is dropped")
    exemplars: FewOrZero = Field(default=3, description="solved questions shown from the second attempt on")
    exemplars_from: Address | None = Field(
        default=None,
        description="solved records, of which those most like the question are shown; null: none",
    )
    embedder: Address = Field(default=HASHED, description=EMBEDDER)
    max_tokens: Tokens = Field(default=2048, description="of one reply")
    refusals: list[Pattern] = Field(
        default=_REFUSALS, description="Python patterns, any case; an answer that begins so is a refusal"
    )


class Score(Asking):
    """How hard a question is, 1 to 10, and why."""

    type: Literal["score"] = "score"
    form: Literal["json", "text"] = Field(
        default="json", description="text: for a model that JSON is too much for"
    )
    threshold: Annotated[Points, Field(ge=1.0, le=10.0)] = Field(
        default=7.0, description="records below are dropped; 1 drops none"
    )
    attempts: Few = Field(default=2, description="times that a score is asked for")
    temperature: Temperature = Field(default=0.0, description="of the model's replies")
    top_p: PositiveShare = Field(
        default=1.0,
        description="sample from the likeliest tokens that together have this probability",
    )
    max_tokens: Tokens = Field(default=512, description="of one reply")


class Paragraphs(Section):
    """Passages out of documents, for the textbook step to ask about; no model is asked."""

    type: Literal["paragraphs"] = "paragraphs"
    least_words: Words = Field(default=40, gt=0, description="of a passage; shorter neighbours are joined")
    most_words: Words = Field(
        default=250, gt=0, description="of a passage, the headings above it not counted"
    )
    headings: bool = Field(default=True, description="put the headings above a passage before its text")
    notes: list[Pattern] = Field(
        default=[r"OpenMedicine Calculators?\b"],
        description="Python patterns, any case; a part that begins so speaks of the document, and is left out",
    )
    name: Label = Field(default="Paragraph", min_length=1, description="first part of the passages' ids")

    @model_validator(mode="after")
    def _ascends(self) -> Paragraphs:
        if self.least_words > self.most_words:
            raise ValueError(
                f"paragraphs.least_words={self.least_words}: exceeds paragraphs.most_words={self.most_words}; "
                "exchange them"
            )
        return self


FactoryStep = Annotated[Textbook | Topics | Evolve | Answer | Score, Field(discriminator="type")]
