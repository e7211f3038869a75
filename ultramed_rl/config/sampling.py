"""Stages that sample and don't train: contrasts for a reward model, and the comparison of policies."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ultramed_rl.config.base import Section
from ultramed_rl.config.benchmarks import Benchmarks, benchmark_rules
from ultramed_rl.config.cluster import Devices, ReplicaGroup, RolloutGroup
from ultramed_rl.config.data import Prompts
from ultramed_rl.config.limits import Address, Name, PositiveShare, Resamples, Samples, Temperature, Tokens
from ultramed_rl.config.models import ContrastSampling, Model, ModelSettings, Reward
from ultramed_rl.config.run import AnyConfig, Tracking, device_rules, length_rules, reward_rules


class SamplingCluster(Devices):
    """The devices of a stage that samples: engines first, reward models after them."""

    rollout: RolloutGroup = RolloutGroup()
    reward: ReplicaGroup = ReplicaGroup()


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
