"""Both ends of the data factory: any questions to records, and a picture of records."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.embedding import EMBEDDER, HASHED


class Records(Section):
    """Rows of another form to UltraMedical records; the columns say where things are."""

    type: Literal["records"] = "records"
    name: str = Field(
        min_length=1, pattern=r"^[^,]*$", description="of the set: the first part of the records' ids"
    )
    kind: Literal["Exam", "Literature", "Open-End"] = Field(
        description="Exam: lettered options; Literature: a text and options; Open-End: neither"
    )
    question: str = Field(description="column of the question, or of a chat whose first user turn it is")
    context: str | None = Field(
        default=None, description="column of a text or list of texts before the question"
    )
    options: str | list[str] | None = Field(
        default=None, description="column of a mapping or list of options, or a column for each, in order"
    )
    choices: list[str] | None = Field(
        default=None, min_length=2, description="options that are the same for all rows, as yes, no and maybe"
    )
    answer: str | None = Field(
        default=None, description="column of the right option: its letter, its place from 0, or its text"
    )
    reply: str | None = Field(default=None, description="column of an answer in words that is kept")
    id: str | None = Field(default=None, description="column of an id; null: the row's number")

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
    name: str = Field(
        default="MedQA",
        min_length=1,
        pattern=r"^[^,]*$",
        description="of the set: the first part of the records' ids",
    )


class Sample(Section):
    """A seeded part of the records, so many of each set."""

    type: Literal["sample"] = "sample"
    sizes: dict[str, int] = Field(
        min_length=1, description="by set, how many of its records; sets that aren't here give none"
    )
    seed: int = Field(default=0, ge=0, description="of the choice")


class Report(Section):
    """The paper's table 1 of any records, distributions, candidate models, and a map of topics."""

    type: Literal["report"] = "report"
    judged: str | None = Field(default=None, description="rows that feedback or rules wrote; null: none")
    originals: dict[str, int] = Field(
        default={}, description="by set, how many rows there were before all filtering"
    )
    embedder: str = Field(default=HASHED, description=EMBEDDER)
    points: int = Field(default=5000, gt=0, description="records on the map, a seeded sample")
    clusters: int | None = Field(default=None, gt=0, description="null: by the number of points")
    seed: int = Field(default=0, ge=0, description="of the map's sample and its clusters")
