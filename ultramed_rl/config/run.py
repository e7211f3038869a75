"""The whole run, and the rules that span sections."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ultramed_rl.config.base import Section
from ultramed_rl.config.cluster import Cluster
from ultramed_rl.config.data import Prompts
from ultramed_rl.config.models import Model, Reference, Reward
from ultramed_rl.config.rounds import Evaluation, Objective, PairRule, Sampling, Training


class Run(Section):
    """Name, place and length of the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    directory: str = "runs"
    seed: int = Field(default=42, ge=0)
    rounds: int = Field(default=3, gt=0)
    keep_checkpoints: int | None = Field(default=None, gt=0, description="null: keep every round's")


class Tracking(Section):
    """Where metrics go besides `metrics.jsonl`, which is always written."""

    wandb: Literal["auto", "offline", "online", "disabled"] = Field(
        default="auto", description="auto: online when WANDB_API_KEY is set, offline otherwise"
    )
    project: str = "ultramed_rl"
    group: str | None = None
    tags: list[str] = []


class RunConfig(Section):
    """An online run: every section of the YAML file."""

    run: Run
    policy: Model
    reference: Reference = Reference()
    reward: Reward
    prompts: Prompts
    sampling: Sampling = Sampling()
    pairs: PairRule = PairRule()
    objective: Objective
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _rules_across_sections(self) -> RunConfig:
        problems = [*_length_rules(self), *_reward_rules(self), *_group_rules(self)]
        if problems:
            raise ValueError(" ;; ".join(problems))
        return self


def _length_rules(config: RunConfig) -> list[str]:
    room = config.policy.max_length - config.sampling.max_new_tokens
    if config.prompts.max_prompt_tokens <= room:
        return []
    return [
        f"prompts.max_prompt_tokens={config.prompts.max_prompt_tokens}: with sampling.max_new_tokens="
        f"{config.sampling.max_new_tokens} it exceeds policy.max_length={config.policy.max_length}; "
        f"at most {max(room, 0)} fit: shorten one or raise policy.max_length"
    ]


def _reward_rules(config: RunConfig) -> list[str]:
    if (config.reward.path is None) == (config.reward.train is None):
        return [
            "reward: exactly one of reward.path (a trained reward model) and reward.train "
            "(train one in this run) must be set"
        ]
    return []


def _group_rules(config: RunConfig) -> list[str]:
    problems = []
    training, cluster = config.training, config.cluster
    if training.batch_size % cluster.policy.ranks:
        problems.append(
            f"training.batch_size={training.batch_size}: must be a multiple of cluster.policy.ranks="
            f"{cluster.policy.ranks} so that every rank gets the same number of pairs"
        )
    if config.objective.type == "kto_pair" and training.batch_size < 2:
        problems.append(
            f"training.batch_size={training.batch_size}: kto_pair estimates a KL over the batch "
            "and needs at least 2 pairs"
        )
    if cluster.policy.offload_optimizer and cluster.policy.zero_stage == 0:
        problems.append("cluster.policy.offload_optimizer=true: needs cluster.policy.zero_stage >= 1")
    if config.reference.update == "ema" and cluster.reference.shard:
        problems.append(
            "cluster.reference.shard=true: a sharded reference cannot average (reference.update=ema)"
        )
    if cluster.device == "cpu" and cluster.policy.offload_optimizer:
        problems.append("cluster.policy.offload_optimizer=true: has no meaning on cluster.device=cpu")
    if cluster.device == "cpu" and cluster.rollout.kv_cache_gib is None:
        problems.append("cluster.rollout.kv_cache_gib=null: must be set on cluster.device=cpu, say 1.0")
    return problems
