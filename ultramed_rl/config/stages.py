"""Kinds of stages beside the online run: those that train (sft, reward, preference), sample and score."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ultramed_rl.config.base import Section
from ultramed_rl.config.benchmarks import Benchmarks, benchmark_rules
from ultramed_rl.config.cluster import (
    SamplingCluster,
    ScoringCluster,
    StageCluster,
)
from ultramed_rl.config.limits import (
    Address,
    Column,
    Count,
    CountOrZero,
    Factor,
    FactorOrZero,
    Few,
    Label,
    Name,
    PositiveShare,
    Resamples,
    Samples,
    Share,
    Temperature,
    Tokens,
)
from ultramed_rl.config.models import Model, ModelSettings
from ultramed_rl.config.objectives import Objective
from ultramed_rl.config.rewards import ContrastSampling, Reward
from ultramed_rl.config.rounds import Prompts, StageTraining
from ultramed_rl.config.run import AnyConfig, Tracking, device_rules, length_rules, reward_rules


class _Source(Section):
    """Rows behind a URI: hf://owner/name:split, package://name/path, or local files."""

    uri: Address = Field(description="hf://owner/name:split, package://name/path, or local files")
    weight: Factor = Field(
        default=1.0, description="how often its rows are used: 0.5 a seeded half, 2 each twice"
    )
    limit: Count | None = Field(default=None, description="read at most so many rows")
    max_misfit_share: Share = Field(default=0.05, description="share of rows that may not fit")


class ConversationSource(_Source):
    """Chats to imitate: UltraMedical's and ShareGPT's `conversations`, `messages`, or TRL's prompt/completion."""

    column: Column | None = Field(default=None, description="where the turns are; null: the columns tell")


class PreferenceSource(_Source):
    """Answers in order of preference: UltraMedical-Preference, UltraFeedback, TRL's forms, this project's pairs."""

    category: Label | None = Field(default=None, description="name in held-out figures; null: the row's own")


class _Data(Section):
    """What is common to the data of all stages."""

    held_out: CountOrZero = Field(default=0, description="prompts kept out of training, to evaluate on")
    too_long: Literal["refuse", "drop"] = Field(
        default="refuse",
        description="a sample over model.max_length stops the stage, or is dropped and counted",
    )


class ConversationData(_Data):
    """What to fine-tune on. The mixture is shuffled by the run's seed."""

    sources: list[ConversationSource] = Field(min_length=1)
    evaluation_sources: list[ConversationSource] = Field(default=[], description="held-out data of their own")


class PreferenceData(_Data):
    """What to prefer. Splits are by prompt, never by pair."""

    sources: list[PreferenceSource] = Field(min_length=1)
    evaluation_sources: list[PreferenceSource] = Field(default=[], description="held-out data of their own")


class BradleyTerry(Section):
    """-log sigmoid(r_chosen - r_rejected - margin) (arXiv 2203.02155, eq. 1)."""

    type: Literal["bradley_terry"] = "bradley_terry"
    margin: Literal["none", "score_difference"] = Field(
        default="none", description="how far the better answer should lead: the data's score gap, scaled"
    )
    margin_scale: Factor = Field(default=1.0, description="factor on the score gap")
    centering: FactorOrZero = Field(
        default=0.0, description="weight of (r_chosen + r_rejected)^2 (arXiv 2312.09244)"
    )


class LogExp(Section):
    """log(1 + exp(r_rejected - r_chosen)) (arXiv 2204.05862): Bradley-Terry without its extras."""

    type: Literal["log_exp"] = "log_exp"


RewardObjective = Annotated[BradleyTerry | LogExp, Field(discriminator="type")]


class _Stage(AnyConfig):
    """Sections and rules of every offline stage."""

    engine: Literal["native", "openrlhf"] = Field(
        default="native", description="openrlhf: hand the stage to OpenRLHF's own trainer (CUDA only)"
    )
    model: Model
    training: StageTraining
    cluster: StageCluster = StageCluster()
    tracking: Tracking = Tracking()

    def problems(self) -> list[str]:
        """Rules that span sections; each broken one is a line."""
        return [*_training_rules(self), *_cluster_rules(self)]


class SftConfig(_Stage):
    """Supervised fine-tuning: the NLL of the assistant's turns, a mean over the batch's tokens."""

    type: Literal["sft"] = "sft"
    data: ConversationData

    def problems(self) -> list[str]:
        return [*super().problems(), *_held_out_rules(self.training, self.data)]


class RewardConfig(_Stage):
    """A reward model: Bradley-Terry over all ordered pairs of each prompt's answers."""

    type: Literal["reward"] = "reward"
    data: PreferenceData
    objective: RewardObjective = Field(default=BradleyTerry(), description="the reward model's loss")
    trainable_layers: Few | None = Field(
        default=None, description="train only the last k decoder layers and the head; null: all"
    )

    def problems(self) -> list[str]:
        rules = [*super().problems(), *_held_out_rules(self.training, self.data)]
        if self.model.lora is not None:
            rules.append("model.lora: a reward model is trained whole; remove it or use trainable_layers")
        return rules


class PreferenceConfig(_Stage):
    """Offline preference learning; the reference is the model that the stage starts from."""

    type: Literal["preference"] = "preference"
    data: PreferenceData
    objective: Objective = Field(description="the preference objective")

    def problems(self) -> list[str]:
        rules = [*super().problems(), *_held_out_rules(self.training, self.data)]
        if self.objective.kl != "none" and self.training.batch_size < 2:
            rules.append(
                f"training.batch_size={self.training.batch_size}: {self.objective.type} estimates a KL over the "
                "batch and needs at least 2 pairs; raise it"
            )
        return rules


StageConfig = SftConfig | RewardConfig | PreferenceConfig


def _training_rules(stage: _Stage) -> list[str]:
    training = stage.training
    if training.patience is not None and training.evaluate_every is None:
        return [f"training.patience={training.patience}: needs training.evaluate_every"]
    return []


def _held_out_rules(training: StageTraining, data: ConversationData | PreferenceData) -> list[str]:
    if data.held_out or data.evaluation_sources:
        return []
    asked = {
        "training.evaluate_every": training.evaluate_every,
        "training.keep": training.keep if training.keep == "best" else None,
    }
    return [
        f"{key}={value}: there is nothing to evaluate on; set data.held_out or data.evaluation_sources"
        for key, value in asked.items()
        if value is not None
    ]


def _cluster_rules(stage: _Stage) -> list[str]:
    problems, cluster, lora = [], stage.cluster, stage.model.lora
    if cluster.trainer.offload_optimizer and cluster.trainer.zero_stage == 0:
        problems.append("cluster.trainer.offload_optimizer=true: needs cluster.trainer.zero_stage >= 1")
    if cluster.trainer.offload_optimizer and cluster.device == "cpu":
        problems.append(
            "cluster.trainer.offload_optimizer=true: has no meaning on cluster.device=cpu; remove it"
        )
    if lora is not None and lora.quantize and cluster.trainer.zero_stage == 3:
        problems.append(
            f"model.lora.quantize={lora.quantize!r}: 4-bit weights cannot be partitioned; "
            "use cluster.trainer.zero_stage <= 2"
        )
    if stage.engine == "openrlhf" and cluster.device == "cpu":
        problems.append(
            "engine='openrlhf': OpenRLHF computes on cluster.device=cuda alone; use engine=native"
        )
    return problems


class ContrastsConfig(AnyConfig):
    """Preference pairs out of a policy's own answers, see `ultramed_rl.data.contrasts`; for a reward model where
    no preference data is at hand."""

    type: Literal["contrasts"] = "contrasts"
    policy: Model
    prompts: Prompts
    contrasts: ContrastSampling = ContrastSampling()
    cluster: SamplingCluster = SamplingCluster()

    def problems(self) -> list[str]:
        room = (self.policy, self.contrasts.max_new_tokens, "contrasts")
        return [*device_rules(self.cluster), *length_rules(self.prompts, *room)]


class ComparedSampling(Section):
    """How each policy answers."""

    samples: Samples = Field(default=1, description="answers per prompt")
    temperature: Temperature = Field(default=0.0, description="of the answers; 0 takes the likeliest token")
    top_p: PositiveShare = Field(
        default=1.0,
        description="sample from the likeliest tokens that together have this probability",
    )
    max_new_tokens: Tokens = Field(default=1024, description="longest answer")


class EvaluateConfig(AnyConfig):
    """Policies on the same questions: benchmarks with known answers (`benchmarks`), and prompts whose answers a
    reward scores (`prompts`). Each policy is compared with the first."""

    type: Literal["evaluate"] = "evaluate"
    policies: dict[Name, Address] = Field(
        min_length=1, description="name: path; the first is what the others are compared with"
    )
    policy: ModelSettings = ModelSettings()
    chat_templates: dict[Name, Address] = Field(
        default={}, description="name: chatml, llama3 or a Jinja file, for policies that are base models"
    )
    benchmarks: Benchmarks | None = None
    prompts: Prompts | None = None
    sampling: ComparedSampling = ComparedSampling()
    reward: Reward | None = Field(
        default=None, description="scores the answers to prompts, and reranks self-consistency's samples"
    )
    bootstrap: Resamples = Field(default=2000, description="paired bootstrap resamples")
    cluster: SamplingCluster = SamplingCluster()
    tracking: Tracking = Tracking()

    def problems(self) -> list[str]:
        found = [
            *device_rules(self.cluster),
            *_asked_rules(self),
            *_sampling_rules(self),
            *_general_rules(self),
        ]
        if self.benchmarks is not None:
            found += benchmark_rules(self.benchmarks, self.policy.max_length)
        if self.reward is not None:
            found += reward_rules(self.reward)
            if self.reward.train is not None:
                found.append(
                    "reward.train: an evaluation trains nothing; name a trained model in reward.path"
                )
        found += [
            f"chat_templates.{name}: no such policy ({', '.join(self.policies)})"
            for name in self.chat_templates
            if name not in self.policies
        ]
        return found

    @property
    def samples_chats(self) -> bool:
        """Whether policies answer in words, for which they need a chat template."""
        return self.prompts is not None or bool(_asked_types(self.benchmarks) - {"likelihood"})


def _asked_types(benchmarks: Benchmarks | None) -> set[str]:
    """The protocols by which tasks are asked; without tasks (lm-evaluation-harness alone) there are none."""
    if benchmarks is None or not benchmarks.tasks:
        return set()
    return {protocol.type for protocol in benchmarks.protocols}


def _general_rules(config: EvaluateConfig) -> list[str]:
    general = config.benchmarks.general if config.benchmarks is not None else None
    there = config.cluster.devices_per_node
    if general is None or config.cluster.device != "cuda" or general.gpus <= there:
        return []
    return [
        f"benchmarks.general.gpus={general.gpus}: they are of one node, which has "
        f"cluster.devices_per_node={there}; lower it"
    ]


def _asked_rules(config: EvaluateConfig) -> list[str]:
    """Something to ask, and a reward exactly where one is used."""
    benchmarks = config.benchmarks
    if benchmarks is None and config.prompts is None:
        return ["evaluate: nothing to ask; set benchmarks (known answers) or prompts (scored by reward)"]
    if config.prompts is not None and config.reward is None:
        return ["reward: required where prompts are set; name what scores their answers"]
    reranks = "self_consistency" in _asked_types(benchmarks)
    if config.reward is not None and config.prompts is None and not reranks:
        return [
            "reward: scores nothing; set prompts, or self_consistency among benchmarks.protocols, or remove it"
        ]
    return []


def _sampling_rules(config: EvaluateConfig) -> list[str]:
    if config.prompts is None:
        return []
    sampling = config.sampling
    found = length_rules(config.prompts, config.policy, sampling.max_new_tokens, "sampling")
    if sampling.samples > 1 and sampling.temperature == 0.0:
        found.append(
            f"sampling.samples={sampling.samples}: at sampling.temperature=0 they are all alike; raise "
            "the temperature or set samples=1"
        )
    return found


class BenchedModel(ModelSettings):
    """The reward model: a trained `num_labels=1` classifier. `max_length` is of a prompt with one answer."""

    path: Address = Field(description="a local directory or a hub id")
    micro_batch_tokens: Tokens = Field(
        default=16384, description="packed tokens per forward pass on one replica"
    )


class BenchmarkPairs(Section):
    """Rows with chosen and rejected answers behind a URI, see `ultramed_rl.data.benchmark_pairs`."""

    uri: Address = Field(description="hf://owner/name:split, package://name/path, or local files")
    subset_column: Column | None = Field(
        default=None, description="null: subset, label_type, type or category, the first that a row has"
    )
    limit: Count | None = Field(default=None, description="read at most so many rows")
    max_misfit_share: Share = Field(default=0.05, description="share of rows that may not fit")
    too_long: Literal["refuse", "drop"] = Field(
        default="refuse", description="a pair over model.max_length stops the run, or is dropped and counted"
    )


class RewardBenchConfig(AnyConfig):
    """How often a reward model scores the chosen answer above the rejected one, by subset."""

    type: Literal["reward_bench"] = "reward_bench"
    model: BenchedModel
    data: BenchmarkPairs
    cluster: ScoringCluster = ScoringCluster()
    tracking: Tracking = Tracking()

    @property
    def reward(self) -> Reward:
        """The model as what scores."""
        model = self.model
        return Reward(
            path=model.path,
            precision=model.precision,
            micro_batch_tokens=model.micro_batch_tokens,
            trust_remote_code=model.trust_remote_code,
            architecture=model.architecture,
        )
