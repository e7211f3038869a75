"""A stage of the data factory: what it reads, the models that it asks, its step; with steps that bring rows in, clean and
picture them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from ultramed_rl.config.base import Section, key, order_rules
from ultramed_rl.config.benchmarks import Task
from ultramed_rl.config.cluster import DataCluster, SamplingCluster
from ultramed_rl.config.factory_steps import (
    HASHED,
    Answer,
    Asking,
    Bench,
    Candidates,
    Embedder,
    Evolve,
    Feedback,
    Pairs,
    RuleJudge,
    Score,
    Textbook,
    Topics,
    WriteRubric,
)
from ultramed_rl.config.limits import (
    Address,
    Column,
    Count,
    CountOrZero,
    FactorOrZero,
    Few,
    Label,
    Name,
    Pattern,
    PositiveShare,
    SetName,
    Share,
    SmallSeed,
    Temperature,
    Words,
)
from ultramed_rl.config.models import Endpoint, Model, ModelSettings
from ultramed_rl.config.run import AnyConfig, Tracking, device_rules


class Records(Section):
    """Rows of another form to UltraMedical records; the columns say where things are."""

    type: Literal["records"] = "records"
    name: SetName = Field(description="of the set: the first part of the records' ids")
    kind: Literal["Exam", "Literature", "Open-End"] = Field(
        description="Exam: lettered options; Literature: a text and options; Open-End: neither"
    )
    question: Column = Field(description="column of the question, or of a chat whose first user turn it is")
    context: Column | None = key(None, "column of a text or list of texts before the question")
    options: Column | list[Column] | None = key(
        None, "column of options: texts, by label or in order, lines A., B., ...; or a column for each"
    )
    choices: list[Label] | None = key(
        None, "options that are the same for all rows, as yes, no and maybe", min_length=2
    )
    answer: Column | None = key(None, "column of the right option: its label, its place, or its text")
    first_place: Literal[0, 1, "auto"] = key(
        "auto", "of answers that are places, the first option's; auto: the input tells, or is refused"
    )
    reply: Column | None = key(None, "column of an answer in words that is kept")
    id: Column | None = key(None, "column of an id; null: the row's number")
    max_misfit_share: Share = key(0.05, "share of rows that may not fit")

    def problems(self) -> Iterator[str]:
        is_choice = self.kind != "Open-End"
        listed = (self.options is not None) + (self.choices is not None)
        if listed != is_choice or (self.answer is not None) != is_choice:
            yield (
                f"kind={self.kind}, options={self.options}, choices={self.choices}, answer={self.answer}: "
                "Exam and Literature have an answer and either options or choices, Open-End has none of them"
            )


class Vignettes(Section):
    """DrugSwap's questions, out of MedQA's training set, to records; those that point at a figure fall out."""

    type: Literal["vignettes"] = "vignettes"
    name: SetName = key("MedQA", "of the set: the first part of the records' ids")
    max_misfit_share: Share = key(0.05, "share of rows that may not fit")


class Sample(Section):
    """A seeded part of the records, so many of each set."""

    type: Literal["sample"] = "sample"
    sizes: dict[Label, CountOrZero] = Field(min_length=1, description="records of each set; others give none")
    seed: SmallSeed = key(0, "of the choice")


class Report(Section):
    """The paper's table 1 of any records, distributions, candidate models, and a map of topics."""

    type: Literal["report"] = "report"
    judged: Address | None = key(None, "rows that feedback or rules wrote; null: none")
    originals: dict[Label, CountOrZero] = key({}, "by set, how many rows there were before all filtering")
    embedder: Embedder = HASHED
    points: Count = key(
        2000, "records on the map, a seeded sample; the map's time grows with them, the rest with the rows"
    )
    clusters: Few | None = key(None, "null: by the number of points")
    seed: SmallSeed = key(0, "of the map's sample and its clusters")


class Paragraphs(Section):
    """Passages out of documents, for the textbook step to ask about; no model is asked."""

    type: Literal["paragraphs"] = "paragraphs"
    least_words: Words = key(40, "of a passage; shorter neighbours are joined", gt=0)
    most_words: Words = key(250, "of a passage, the headings above it not counted", gt=0)
    headings: bool = key(True, "put the headings above a passage before its text")
    notes: list[Pattern] = key(
        [r"OpenMedicine Calculators?\b"],
        "Python patterns, any case; a part that begins so speaks of the document, and is left out",
    )
    name: Label = key("Paragraph", "first part of the passages' ids", min_length=1)

    def problems(self) -> Iterator[str]:
        yield from order_rules(self, "least_words", "most_words")


class Columns(Section):
    """Where a row's id and its instruction are; an instruction may be a text, or a chat whose first user turn it is."""

    id: Column = key("id", "column of the row's id")
    instruction: Column = key("conversations", "column of the text, or of the chat")


class Deduplicate(Section):
    """Drop instructions that repeat another: the same words, or others that ask the same and have the same answer."""

    type: Literal["deduplicate"] = "deduplicate"
    columns: Columns = Columns()
    keep: Literal["first", "longest", "best"] = key("first", "of alike rows; best: by `score_column`")
    score_column: Column = key("difficulty", "for keep=best: the column of a number")
    near: bool = key(True, "also those whose words differ in nothing of content; false: the same words alone")


class Decontaminate(Section):
    """Drop instructions that stand in a benchmark; the defaults of distance and length are the paper's."""

    type: Literal["decontaminate"] = "decontaminate"
    columns: Columns = Columns()
    tasks: list[Task] = Field(
        default=["medqa", "medmcqa", "pubmedqa", "mmlu_medical"], min_length=1, validate_default=True
    )
    squared_l2: FactorOrZero = key(0.05, "squared distance of unit vectors up to which they are near", lt=2.0)
    length: Share = key(0.20, "difference of lengths up to which near ones count, of the longer", lt=1.0)
    least_words: Annotated[Words, Field(ge=1)] = key(5, "shorter questions are compared word by word alone")
    ngram: Annotated[Words, Field(ge=4, le=64)] = key(13, "words in a row that tell a question")
    content: PositiveShare = key(
        0.85, "part of two questions' words of content from which they are near, of the shorter one"
    )
    overlap: PositiveShare = key(0.5, "part of a test item's n-grams from which a row holds the item")
    embedder: Embedder = HASHED


FURTHER_INPUTS = ("exemplars_from", "judged", "labels")  # keys of steps that name rows beside the input
_TEMPERATURE = "of this model's answers; null: the step's"


class ApiGeneratorConfig(Endpoint):
    """A model behind an OpenAI-compatible API."""

    type: Literal["api"] = "api"
    temperature: Temperature | None = key(None, _TEMPERATURE)


class EngineGeneratorConfig(ModelSettings):
    """A model on this project's own engines, see `cluster.rollout`."""

    type: Literal["engine"] = "engine"
    path: Address = Field(
        description="a local directory, a hub id (perhaps org/name@REVISION) or offline://NAME"
    )
    chat_template: Address | None = key(None, "chatml, llama3 or a Jinja file; null: its tokenizer's own")
    temperature: Temperature | None = key(None, _TEMPERATURE)

    @property
    def model(self) -> Model:
        return Model(**self.model_dump(exclude={"type", "temperature"}))


GeneratorConfig = Annotated[ApiGeneratorConfig | EngineGeneratorConfig, Field(discriminator="type")]
_Questions = (
    Records | Vignettes | Paragraphs | Sample | Textbook | Topics | Evolve | Answer | Score | WriteRubric
)
_Judged = Candidates | Feedback | RuleJudge | Pairs | Bench
DataStep = Annotated[_Questions | Deduplicate | Decontaminate | _Judged | Report, Field(discriminator="type")]


class EngineConfig(Section):
    """The engines of one generator: what is planned and started."""

    type: Literal["engine"] = "engine"
    policy: Model
    cluster: SamplingCluster


class DataConfig(AnyConfig):
    """A stage of the data factory: rows in, rows out, and what became of those that fell out."""

    type: Literal["data"] = "data"
    input: list[Address] = Field(min_length=1, description="URIs of rows: files, package://, hf://, stage://")
    limit: Count | None = key(None, "of each input at most so many rows")
    step: DataStep = Field(description="what happens to the rows")
    generators: dict[Name, GeneratorConfig] = key({}, "name: a model to ask; candidates asks several")
    max_failed_share: Share = key(0.2, "share of failed records above which a stage ends as failed")
    cluster: DataCluster = DataCluster()
    tracking: Tracking = Tracking()

    def problems(self) -> Iterator[str]:
        names, step = list(self.generators), self.step
        if isinstance(step, Candidates) and len(names) < 2:
            yield f"generators={names}: candidates are of two models or more; name them"
        elif isinstance(step, Asking) and not isinstance(step, Candidates) and len(names) != 1:
            yield f"generators={names}: step {step.type} asks one model; name just that"
        elif names and not isinstance(step, Asking):
            yield f"generators={names}: step {step.type} asks no model; remove them"
        for name, generator in self.generators.items():
            most = step.max_tokens if isinstance(step, Asking) else 0
            if isinstance(generator, EngineGeneratorConfig) and generator.max_length <= most:
                yield (
                    f"generators.{name}.max_length={generator.max_length}: leaves no room for a prompt beside "
                    f"step.max_tokens={most}; raise it or lower max_tokens"
                )
        if isinstance(step, Textbook) and step.exemplars and step.exemplars_from is None:
            yield (
                f"step.exemplars={step.exemplars}: nothing to draw them from; set step.exemplars_from, or "
                "step.exemplars=0"
            )
        if self.engines:
            yield from device_rules(self.cluster, "auto", {})

    @property
    def further_inputs(self) -> dict[str, str]:
        """By key, the URIs that the step reads beside `input`."""
        named = {key: getattr(self.step, key, None) for key in FURTHER_INPUTS}
        return {key: uri for key, uri in named.items() if uri}

    def step_for(self, name: str) -> DataStep:
        """The step as it asks the generator of this name."""
        warmth = self.generators[name].temperature if name else None
        return self.step if warmth is None else self.step.model_copy(update={"temperature": warmth})

    @property
    def engines(self) -> dict[str, EngineConfig]:
        """By the names of generators that are our own engines, what is to be started."""
        return {
            name: EngineConfig(policy=generator.model, cluster=self.cluster)
            for name, generator in self.generators.items()
            if isinstance(generator, EngineGeneratorConfig)
        }
