"""Kinds of stages beside the online run: those that train (sft, reward, preference), sample and score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ultramed_rl.config.base import Section, key, sample_rules
from ultramed_rl.config.benchmarks import Benchmarks, room_rules
from ultramed_rl.config.cluster import SamplingCluster, ScoringCluster, StageCluster
from ultramed_rl.config.judge_models import JudgeEngine, own_engines
from ultramed_rl.config.judges import ComparedJudge, judge_rules, likeness_rules, other_model_rules
from ultramed_rl.config.limits import (
    Address,
    Column,
    CountOrZero,
    Factor,
    FactorOrZero,
    Label,
    Name,
    ReplicaTokens,
    Resamples,
    Samples,
    Share,
    Temperature,
    Tokens,
    TooLong,
    TopP,
    TrainableLayers,
)
from ultramed_rl.config.models import Model, ModelSettings
from ultramed_rl.config.objectives import Objective
from ultramed_rl.config.rewards import ContrastSampling, Reward
from ultramed_rl.config.rounds import Prompts, Rows, StageTraining
from ultramed_rl.config.run import AnyConfig, Tracking, device_rules, kl_rules, length_rules, quantize_rules


class _StageSource(Rows):
    """Rows that a stage learns, by their weight."""

    weight: Factor = key(1.0, "how often its rows are used: 0.5 a seeded half, 2 each twice")
    max_misfit_share: Share = key(0.05, "share of rows that may not fit")


class ConversationSource(_StageSource):
    """Chats to imitate, in any of the forms of docs/recipe.md."""

    column: Column | None = key(None, "where the turns are; null: the columns tell")


class PreferenceSource(_StageSource):
    """Answers in order of preference, or with a label, in any of the forms of docs/recipe.md."""

    category: Label | None = key(None, "name in held-out figures; null: the row's own")


class _Data(Section):
    """What is common to the data of all stages."""

    held_out: CountOrZero = key(0, "prompts kept out of training, to evaluate on")
    too_long: TooLong = "refuse"


class ConversationData(_Data):
    """What to fine-tune on. The mixture is shuffled by the run's seed."""

    sources: list[ConversationSource] = Field(min_length=1)
    evaluation_sources: list[ConversationSource] = key([], "held-out data of their own")


class PreferenceData(_Data):
    """What to prefer. Splits are by prompt, never by pair."""

    sources: list[PreferenceSource] = Field(min_length=1)
    evaluation_sources: list[PreferenceSource] = key([], "held-out data of their own")


class BradleyTerry(Section):
    """-log sigmoid(r_chosen - r_rejected - margin) (arXiv 2203.02155, eq. 1)."""

    type: Literal["bradley_terry"] = "bradley_terry"
    margin: Literal["none", "score_difference"] = key(
        "none", "how far the better answer should lead: the data's score gap, scaled"
    )
    margin_scale: Factor = key(1.0, "factor on the score gap")
    centering: FactorOrZero = key(0.0, "weight of (r_chosen + r_rejected)^2 (arXiv 2312.09244)")


class LogExp(Section):
    """log(1 + exp(r_rejected - r_chosen)) (arXiv 2204.05862): Bradley-Terry without its extras."""

    type: Literal["log_exp"] = "log_exp"


RewardObjective = Annotated[BradleyTerry | LogExp, Field(discriminator="type")]


class _Stage(AnyConfig):
    """Sections and rules of every offline stage."""

    engine: Literal["native", "openrlhf"] = key("native", "openrlhf: hand it to OpenRLHF's trainer (CUDA)")
    model: Model
    training: StageTraining
    cluster: StageCluster = StageCluster()
    tracking: Tracking = Tracking()
    data: ConversationData | PreferenceData

    def problems(self) -> Iterator[str]:
        training, cluster = self.training, self.cluster
        if training.patience is not None and training.evaluate_every is None:
            yield f"training.patience={training.patience}: needs training.evaluate_every"
        yield from quantize_rules("model", self.model.lora, "trainer", cluster.trainer.zero_stage)
        if self.engine == "openrlhf" and cluster.device == "cpu":
            yield "engine='openrlhf': OpenRLHF computes on cluster.device=cuda alone; use engine=native"
        if self.data.held_out or self.data.evaluation_sources:
            return
        nothing = "there is nothing to evaluate on; set data.held_out or data.evaluation_sources"
        if training.evaluate_every is not None:
            yield f"training.evaluate_every={training.evaluate_every}: {nothing}"
        if training.keep == "best":
            yield f"training.keep=best: {nothing}"


class SftConfig(_Stage):
    """Supervised fine-tuning: the NLL of the assistant's turns, a mean over the batch's tokens."""

    type: Literal["sft"] = "sft"
    data: ConversationData


class RewardConfig(_Stage):
    """A reward model: Bradley-Terry over all ordered pairs of each prompt's answers."""

    type: Literal["reward"] = "reward"
    data: PreferenceData
    objective: RewardObjective = key(BradleyTerry(), "the reward model's loss")
    trainable_layers: TrainableLayers = None

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.model.lora is not None:
            yield "model.lora: a reward model is trained whole; remove it or use trainable_layers"


class PreferenceConfig(_Stage):
    """Offline preference learning; the reference is the model that the stage starts from."""

    type: Literal["preference"] = "preference"
    data: PreferenceData
    objective: Objective = Field(description="the preference objective")

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from kl_rules(self.objective, self.training)


StageConfig = SftConfig | RewardConfig | PreferenceConfig


class ContrastsConfig(AnyConfig):
    """Preference pairs out of a policy's own answers, see `ultramed_rl.data.contrasts`; for a reward model where
    no preference data is at hand."""

    type: Literal["contrasts"] = "contrasts"
    policy: Model
    prompts: Prompts
    contrasts: ContrastSampling = ContrastSampling()
    cluster: SamplingCluster = SamplingCluster()

    def problems(self) -> Iterator[str]:
        yield from device_rules(self.cluster, self.policy.precision, {})
        yield from length_rules(self.prompts, self.policy, self.contrasts.max_new_tokens, "contrasts")


class ComparedSampling(Section):
    """How each policy answers."""

    samples: Samples = key(1, "answers per prompt")
    temperature: Temperature = key(0.0, "of the answers; 0 takes the likeliest token")
    top_p: TopP = 1.0
    max_new_tokens: Tokens = key(1024, "longest answer")


class EvaluateConfig(AnyConfig):
    """Policies on the same questions: benchmarks with known answers (`benchmarks`), and prompts whose answers a
    reward scores (`prompts`). Each policy is compared with the first."""

    type: Literal["evaluate"] = "evaluate"
    policies: dict[Name, Address] = Field(
        min_length=1, description="name: path; the first is what the others are compared with"
    )
    policy: ModelSettings = ModelSettings()
    chat_templates: dict[Name, Address] = key({}, "name: chatml, llama3 or a Jinja file, for base models")
    benchmarks: Benchmarks | None = None
    prompts: Prompts | None = None
    sampling: ComparedSampling = ComparedSampling()
    reward: Reward | None = key(None, "scores the answers to prompts, and reranks self-consistency's samples")
    judges: list[ComparedJudge] = key([], "score the same answers to prompts, beside the reward")
    bootstrap: Resamples = key(2000, "paired bootstrap resamples")
    cluster: SamplingCluster = SamplingCluster()
    tracking: Tracking = Tracking()

    def problems(self) -> Iterator[str]:
        sampling, cluster = self.sampling, self.cluster
        yield from device_rules(cluster, self.policy.precision, self.judge_engines)
        yield from self._reward_rules()
        yield from judge_rules(self.judges)
        if self.reward is not None:
            yield from other_model_rules(self.judges, self.reward, "judges")
        if self.judges and self.prompts is None:
            yield "judges: score answers to prompts, and there are none; set prompts, or remove them"
        if self.prompts is not None:
            yield from likeness_rules(self.judges, self.prompts.sources, "judges")
            yield from length_rules(self.prompts, self.policy, sampling.max_new_tokens, "sampling")
            yield from sample_rules(sampling.samples, sampling.temperature, "sampling.")
        if self.benchmarks is not None:
            yield from room_rules(self.benchmarks, self.policy.max_length)
            general = self.benchmarks.general
            if general is not None and cluster.device == "cuda" and general.gpus > cluster.devices_per_node:
                yield (
                    f"benchmarks.general.gpus={general.gpus}: they are of one node, which has "
                    f"cluster.devices_per_node={cluster.devices_per_node}; lower it"
                )
        for name in sorted(self.chat_templates.keys() - self.policies.keys()):
            yield f"chat_templates.{name}: no such policy ({', '.join(self.policies)})"

    def _reward_rules(self) -> Iterator[str]:
        """Something to ask, and a reward exactly where one is used."""
        if self.benchmarks is None and self.prompts is None:
            yield "evaluate: nothing to ask; set benchmarks (known answers) or prompts (scored by reward)"
        if self.reward is None:
            if self.prompts is not None:
                yield "reward: required where prompts are set; name what scores their answers"
            return
        if self.reward.length_slope == "fit":
            yield (
                "reward.length_slope='fit': an online run fits it; give the number that one has found (initial/length.json)"
            )
        if self.reward.compares and self.prompts is not None:
            yield (
                "reward.terms: pairwise compares a policy's answers with each other, so that policies cannot be compared by it; use "
                "type judge"
            )
        if self.reward.asks_policy:
            yield "reward.terms: engine=policy is of an online run; name a model to judge"
        if self.reward.train is not None:
            yield "reward.train: an evaluation trains nothing; name a trained model in reward.path"
        if self.prompts is None and "self_consistency" not in self._protocols:
            yield "reward: scores nothing; set prompts, or self_consistency among benchmarks.protocols, or remove it"

    @property
    def judge_engines(self) -> dict[str, JudgeEngine]:
        """By the keys that name them, engines of judges."""
        terms = self.reward.terms if self.reward else ()
        judges: dict[str, Any] = {f"reward.terms, {term.name}": term for term in terms}
        judges |= {f"judges, {judge.name}": judge for judge in self.judges}
        return own_engines(judges | (self.benchmarks.judges if self.benchmarks else {}))

    @property
    def _protocols(self) -> set[str]:
        """Those by which tasks are asked; without tasks (lm-evaluation-harness alone) there are none."""
        benchmarks = self.benchmarks
        return (
            {protocol.type for protocol in benchmarks.protocols} if benchmarks and benchmarks.tasks else set()
        )

    @property
    def samples_chats(self) -> bool:
        """Whether policies answer in words, for which they need a chat template."""
        return self.prompts is not None or bool(self._protocols - {"likelihood"})


class BenchedModel(ModelSettings):
    """The reward model: a trained `num_labels=1` classifier. `max_length` is of a prompt with one answer."""

    path: Address = Field(description="a local directory or a hub id, perhaps org/name@REVISION")
    micro_batch_tokens: ReplicaTokens = 16384


class BenchmarkPairs(Rows):
    """Rows with wanted and unwanted answers behind a URI, in any of the forms of docs/recipe.md."""

    subset_column: Column | None = key(None, "null: the first of subset, label_type, type and category")
    max_misfit_share: Share = key(0.05, "share of rows that may not fit")
    too_long: TooLong = "refuse"


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
        return Reward(**self.model.model_dump(exclude={"max_length", "thinking"}))
