"""One stage of the data factory as a config: what it reads, its step, and the models that it asks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ultramed_rl.config.factory import Answer, Asking, Evolve, Paragraphs, Score, Textbook, Topics
from ultramed_rl.config.factory_cleaning import Decontaminate, Deduplicate
from ultramed_rl.config.factory_pairs import Bench, Candidates, Feedback, Pairs, RuleJudge
from ultramed_rl.config.factory_rows import Records, Report, Sample, Vignettes
from ultramed_rl.config.generation import Endpoint
from ultramed_rl.config.limits import Address, Count, Name, Share, Temperature, WorkersOrZero
from ultramed_rl.config.models import Model, ModelSettings
from ultramed_rl.config.run import AnyConfig, Tracking, device_rules
from ultramed_rl.config.sampling import SamplingCluster
from ultramed_rl.config.validate import Checked

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


class DataCluster(SamplingCluster):
    """The devices of the engines, and the processes of steps that ask no model."""

    workers: WorkersOrZero = Field(
        default=0,
        description="Ray Data's, a CPU each, for deduplicate and decontaminate; 0: the driver's own process",
    )


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
