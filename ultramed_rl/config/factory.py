"""A stage of the data factory: what it reads, the models that it asks, its step; with steps that bring rows in, clean and
picture them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from ultramed_rl.config.base import Checked, Section
from ultramed_rl.config.benchmarks import TaskChoice
from ultramed_rl.config.cluster import DataCluster, SamplingCluster
from ultramed_rl.config.factory_steps import (
    EMBEDDER,
    HASHED,
    Answer,
    Asking,
    Bench,
    Candidates,
    Evolve,
    Feedback,
    Pairs,
    RuleJudge,
    Score,
    Textbook,
    Topics,
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


FURTHER_INPUTS = ("exemplars_from", "judged", "labels")  # keys of steps that name rows beside the input
_TEMPERATURE = "of this model's answers; null: the step's"


class ApiGeneratorConfig(Endpoint):
    """A model behind an OpenAI-compatible API."""

    type: Literal["api"] = "api"
    temperature: Temperature | None = Field(default=None, description=_TEMPERATURE)


class EngineGeneratorConfig(ModelSettings):
    """A model on this project's own engines, see `cluster.rollout`."""

    type: Literal["engine"] = "engine"
    path: Address = Field(description="a local directory, a hub id or offline://NAME")
    chat_template: Address | None = Field(
        default=None, description="chatml, llama3 or a Jinja file; null: its tokenizer's own"
    )
    temperature: Temperature | None = Field(default=None, description=_TEMPERATURE)

    @property
    def model(self) -> Model:
        """What the engines load."""
        return Model(**self.model_dump(exclude={"type", "temperature"}))


GeneratorConfig = Annotated[ApiGeneratorConfig | EngineGeneratorConfig, Field(discriminator="type")]
DataStep = Annotated[
    Records
    | Vignettes
    | Paragraphs
    | Sample
    | Textbook
    | Topics
    | Evolve
    | Answer
    | Score
    | Deduplicate
    | Decontaminate
    | Candidates
    | Feedback
    | RuleJudge
    | Pairs
    | Bench
    | Report,
    Field(discriminator="type"),
]


class EngineConfig(Checked):
    """The engines of one generator: what is planned and started."""

    type: Literal["engine"] = "engine"
    policy: Model
    cluster: SamplingCluster


class DataConfig(AnyConfig):
    """A stage of the data factory: rows in, rows out, and what became of those that fell out."""

    type: Literal["data"] = "data"
    input: list[Address] = Field(
        min_length=1, description="rows behind URIs: files, package://, hf://, stage://"
    )
    limit: Count | None = Field(default=None, description="of each input at most so many rows")
    step: DataStep = Field(description="what happens to the rows")
    generators: dict[Name, GeneratorConfig] = Field(
        default={}, description="name: the model that a step asks; candidates asks two or more"
    )
    max_failed_share: Share = Field(
        default=0.2, description="share of failed records above which a stage ends as failed"
    )
    cluster: DataCluster = DataCluster()
    tracking: Tracking = Tracking()

    def problems(self) -> list[str]:
        found = [*_generator_rules(self), *_length_rules(self), *_exemplar_rules(self.step)]
        return found + (device_rules(self.cluster) if self.engines else [])

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


def _generator_rules(config: DataConfig) -> list[str]:
    names, step = list(config.generators), config.step
    given = f"generators={names}"
    if isinstance(step, Candidates):
        return [] if len(names) > 1 else [f"{given}: candidates are of two models or more; name them"]
    if isinstance(step, Asking):
        return [] if len(names) == 1 else [f"{given}: step {step.type} asks one model; name just that"]
    return [f"{given}: step {step.type} asks no model; remove them"] if names else []


def _length_rules(config: DataConfig) -> list[str]:
    if not isinstance(config.step, Asking):
        return []
    most = config.step.max_tokens
    return [
        f"generators.{name}.max_length={generator.max_length}: leaves no room for a prompt beside "
        f"step.max_tokens={most}; raise it or lower max_tokens"
        for name, generator in config.generators.items()
        if isinstance(generator, EngineGeneratorConfig) and generator.max_length <= most
    ]


def _exemplar_rules(step: DataStep) -> list[str]:
    if isinstance(step, Textbook) and step.exemplars and step.exemplars_from is None:
        return [
            f"step.exemplars={step.exemplars}: nothing to draw them from; set step.exemplars_from, or step.exemplars=0"
        ]
    return []
