"""Both ends of the data factory: any questions to records, and a picture of records."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.embedding import EMBEDDER, HASHED
from ultramed_rl.config.limits import Address, Column, Count, CountOrZero, Few, Label, SmallSeed


class Records(Section):
    """Rows of another form to UltraMedical records; the columns say where things are."""

    type: Literal["records"] = "records"
    name: Label = Field(
        min_length=1, pattern=r"^[^,]*$", description="of the set: the first part of the records' ids"
    )
    kind: Literal["Exam", "Literature", "Open-End"] = Field(
        description="Exam: lettered options; Literature: a text and options; Open-End: neither"
    )
    question: Column = Field(description="column of the question, or of a chat whose first user turn it is")
    context: Column | None = Field(
        default=None, description="column of a text or list of texts before the question"
    )
    options: Column | list[Column] | None = Field(
        default=None, description="column of a mapping or list of options, or a column for each, in order"
    )
    choices: list[Label] | None = Field(
        default=None, min_length=2, description="options that are the same for all rows, as yes, no and maybe"
    )
    answer: Column | None = Field(
        default=None, description="column of the right option: its letter, its place from 0, or its text"
    )
    reply: Column | None = Field(default=None, description="column of an answer in words that is kept")
    id: Column | None = Field(default=None, description="column of an id; null: the row's number")

    @model_validator(mode="after")
    def _choice_has_options(self) -> Records:
        given = (self.options is not None) + (self.choices is not None)
        wanted = int(self.kind != "Open-End")
        if given != wanted or (self.answer is not None) != bool(wanted):
            raise ValueError(
                f"records: kind={self.kind}, options={self.options}, choices={self.choices}, answer={self.answer}: "
                "Exam and Literature have an answer and either options or choices, Open-End has none of them"
            )
        return self


class Vignettes(Section):
    """DrugSwap's questions, out of MedQA's training set, to records; those that point at a figure fall out."""

    type: Literal["vignettes"] = "vignettes"
    name: Label = Field(
        default="MedQA",
        min_length=1,
        pattern=r"^[^,]*$",
        description="of the set: the first part of the records' ids",
    )


class Sample(Section):
    """A seeded part of the records, so many of each set."""

    type: Literal["sample"] = "sample"
    sizes: dict[Label, CountOrZero] = Field(
        min_length=1, description="by set, how many of its records; sets that aren't here give none"
    )
    seed: SmallSeed = Field(default=0, description="of the choice")


class Report(Section):
    """The paper's table 1 of any records, distributions, candidate models, and a map of topics."""

    type: Literal["report"] = "report"
    judged: Address | None = Field(default=None, description="rows that feedback or rules wrote; null: none")
    originals: dict[Label, CountOrZero] = Field(
        default={}, description="by set, how many rows there were before all filtering"
    )
    embedder: Address = Field(default=HASHED, description=EMBEDDER)
    points: Count = Field(default=5000, description="records on the map, a seeded sample")
    clusters: Few | None = Field(default=None, description="null: by the number of points")
    seed: SmallSeed = Field(default=0, description="of the map's sample and its clusters")
