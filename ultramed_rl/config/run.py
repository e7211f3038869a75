"""The whole run, and the rules that span sections."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from pydantic import Field, field_validator

from ultramed_rl.config.base import Checked, Section
from ultramed_rl.config.benchmarks import RoundBenchmarks, round_rules
from ultramed_rl.config.cluster import Cluster
from ultramed_rl.config.limits import Address, Few, FewOrZero, Label, Name, Seconds, Seed, Tag
from ultramed_rl.config.models import Model, ModelSettings, Reference
from ultramed_rl.config.objectives import Objective
from ultramed_rl.config.rewards import Reward
from ultramed_rl.config.rounds import Checkpoints, Evaluation, PairRule, Prompts, Sampling, Training


class RunName(Section):
    """Name and place of a run, and the seed of all its random choices."""

    name: Name = Field(description="the run's folder under `directory`")
    directory: Address = Field(
        default="runs",
        description="where runs are kept: a folder, on a cluster one that all nodes see; or a URL such as s3://bucket/runs, "
        "which gets a copy of what is made in `scratch`",
    )
    scratch: Address = Field(
        default="~/.cache/ultramed_rl/runs",
        description="where runs work whose `directory` is a URL; on several nodes, a file system that all nodes see",
    )
    publish_every_s: Seconds = Field(
        default=30.0, description="where `directory` is a URL, seconds between one copying and the next"
    )
    seed: Seed = Field(default=42, description="of all random choices")

    @field_validator("directory")
    @classmethod
    def _is_folder_or_url(cls, directory: str) -> str:
        if re.match(r"[a-z][a-z0-9+.-]+:/(?!/)", directory):
            raise ValueError(
                f"run.directory={directory!r}: neither a folder nor a URL; a URL has two slashes, as in "
                "s3://bucket/runs"
            )
        return directory

    @property
    def url(self) -> str | None:
        """Where the run's copy is kept; None where `directory` is a folder."""
        return f"{self.directory.rstrip('/')}/{self.name}" if "://" in self.directory else None

    @property
    def folder(self) -> Path:
        """Where the run works: under `directory`, or under `scratch` by the parts of the URL."""
        if self.url is None:
            return Path(self.directory) / self.name
        scheme, _, rest = self.url.partition("://")
        parts = [quote(part, safe="") for part in (scheme, *rest.split("/")) if part.strip(".")]
        return Path(self.scratch).expanduser().joinpath(*parts)


class AnyConfig(Checked):
    """What the configs of all kinds of stages have; `ultramed_rl/kinds.py` lists them."""

    type: str
    run: RunName


class Run(RunName):
    """An online run's name, place and length."""

    rounds: Few = Field(default=3, description="how many rounds the run has")
    overlap: int = Field(
        default=0,
        ge=0,
        le=1,
        description="1: a round's answers are sampled while the policy learns the round before, so from the weights that this "
        "one began with (one policy behind); engines and policy then wait for each other once a round",
    )
    keep_checkpoints: Few | None = Field(default=None, description="null: keep every round's")


class Tracking(Section):
    """Where metrics, samples and what the run made are told besides `metrics.jsonl`, which is always written."""

    wandb: Literal["auto", "offline", "online", "disabled"] = Field(
        default="auto", description="auto: online when WANDB_API_KEY is set, offline otherwise"
    )
    project: Label = Field(default="ultramed_rl", description="the wandb project")
    group: Label | None = Field(default=None, description="the wandb group; null: none")
    tags: list[Tag] = Field(default=[], description="the wandb run's tags")
    tensorboard: bool = Field(
        default=False, description="event files in RUN/tensorboard; needs the extra ultramed_rl[tensorboard]"
    )
    sample_prompts: FewOrZero = Field(
        default=4, description="prompts of a round that are shown with all their completions and scores"
    )
    upload_checkpoints: bool = Field(
        default=False, description="wandb gets checkpoints whole; false: where they are, and their digests"
    )


class RunConfig(AnyConfig):
    """An online run: every section of the YAML file."""

    type: Literal["online"] = "online"
    run: Run
    policy: Model
    reference: Reference = Reference()
    reward: Reward
    prompts: Prompts
    sampling: Sampling = Sampling()
    pairs: PairRule = PairRule()
    objective: Objective = Field(description="the preference objective that rounds train on")
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoints = Checkpoints()
    benchmarks: RoundBenchmarks | None = None
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()

    def to_mapping(self) -> dict[str, Any]:
        """Without the defaults that would be refused if a user had written them."""
        data = super().to_mapping()
        if not self.objective.uses_reference:
            del data["reference"]
        if self.objective.listwise:
            del data["pairs"]["rejected"]
        return data

    def problems(self) -> list[str]:
        return [
            *length_rules(self.prompts, self.policy, self.sampling.max_new_tokens, "sampling"),
            *_evaluation_rules(self),
            *(round_rules(self.benchmarks, self.policy.max_length) if self.benchmarks else ()),
            *reward_rules(self.reward),
            *_objective_rules(self),
            *_lora_rules(self),
            *_checkpoint_rules(self),
            *_early_rules(self),
            *_overlap_rules(self),
            *_group_rules(self),
            *device_rules(self.cluster),
        ]


def length_rules(prompts: Prompts, policy: ModelSettings, max_new_tokens: int, section: str) -> list[str]:
    """Prompt and answer together must fit the policy's length."""
    room = policy.max_length - max_new_tokens
    if prompts.max_prompt_tokens <= room:
        return []
    return [
        f"prompts.max_prompt_tokens={prompts.max_prompt_tokens}: with {section}.max_new_tokens={max_new_tokens} "
        f"it exceeds policy.max_length={policy.max_length}; at most {max(room, 0)} fit: shorten one or raise "
        "policy.max_length"
    ]


def reward_rules(reward: Reward) -> list[str]:
    """At least one scorer, at most one choice of reward models, terms with names of their own."""
    problems = []
    models = [name for name in ("path", "train", "ensemble") if getattr(reward, name) is not None]
    if len(models) > 1 or not (models or reward.terms):
        problems.append(
            "reward: exactly one of reward.path (a trained reward model), reward.ensemble (several) and "
            "reward.train (train one in this run) must be set, or none of them beside reward.terms"
        )
    problems += [
        f"reward.terms: {term.name!r} is the name of a reward model's own column; choose another"
        for term in reward.terms
        if term.name.startswith("model")
    ]
    names = [term.name for term in reward.terms]
    problems += [
        f"reward.terms: two are named {name!r}; give each a name of its own"
        for name in sorted(set(names))
        if names.count(name) > 1
    ]
    return problems


def _evaluation_rules(config: RunConfig) -> list[str]:
    evaluation = config.evaluation
    temperature = evaluation.temperature
    if evaluation.samples == 1 or temperature is None or temperature > 0:
        return []
    return [
        f"evaluation.samples={evaluation.samples}: at evaluation.temperature=0 they are all alike; raise the "
        "temperature or set samples=1"
    ]


def _objective_rules(config: RunConfig) -> list[str]:
    problems, objective, batch_size = [], config.objective, config.training.batch_size
    if not objective.uses_reference and "reference" in config.model_fields_set:
        problems.append(
            f"reference: objective.type={objective.type} has no reference model; remove the "
            "section (or override: reference=null)"
        )
    if objective.listwise and "rejected" in config.pairs.model_fields_set:
        problems.append(
            f"pairs.rejected={config.pairs.rejected!r}: objective.type={objective.type} takes all answers of a "
            "prompt; remove the key (or override: pairs.rejected=null)"
        )
    if objective.kl != "none" and batch_size < 2:
        problems.append(
            f"training.batch_size={batch_size}: {objective.type} estimates a KL over the batch and needs at "
            "least 2 pairs; raise it"
        )
    return problems


def _checkpoint_rules(config: RunConfig) -> list[str]:
    every, update = config.checkpoint.every, config.reference.update
    if every == 1 or update == "initial":
        return []
    return [
        f"checkpoint.every={every}: reference.update={update} makes each round's reference of its checkpoint; use "
        "checkpoint.every=1 or reference.update=initial"
    ]


def _lora_rules(config: RunConfig) -> list[str]:
    if config.policy.lora is None:
        return []
    problems = []
    if config.reference.update != "initial":
        problems.append(
            f"reference.update={config.reference.update!r}: a LoRA policy's reference is its base model; "
            "use reference.update=initial or policy.lora=null"
        )
    if (
        config.cluster.policy.zero_stage == 3
        and config.cluster.layout == "colocated"
        and config.cluster.device == "cuda"
    ):
        problems.append(
            "cluster.policy.zero_stage=3: a LoRA policy cannot leave its GPUs at this stage; use zero_stage <= 2 "
            "or cluster.layout=disaggregated"
        )
    if config.policy.lora.quantize and config.cluster.policy.zero_stage == 3:
        problems.append(
            f"policy.lora.quantize={config.policy.lora.quantize!r}: 4-bit weights cannot be partitioned; "
            "use cluster.policy.zero_stage <= 2"
        )
    return problems


def _early_rules(config: RunConfig) -> list[str]:
    """Steps are taken during generation only where nobody else uses the policy's devices or its weights."""
    if not config.training.overlap_training:
        return []
    cluster, why = config.cluster, ""
    if cluster.layout != "disaggregated":
        why = f"cluster.layout={cluster.layout} gives the policy no devices of its own; use disaggregated"
    elif cluster.runs_phases_in_turn:
        why = "cluster.sequential_phases=true lets no pair be ready before all answers are there; set it to false"
    elif config.training.epochs > 1:
        why = f"training.epochs={config.training.epochs} needs all pairs before the second one; use 1"
    elif config.policy.lora is not None:
        why = "a LoRA policy is its own reference, and busy with that; set policy.lora to null"
    elif config.objective.kl == "mismatched":
        why = f"objective.type={config.objective.type} needs other prompts' answers, all of them; use another"
    return [f"training.overlap_training=true: {why}, or training.overlap_training=false"] if why else []


def _overlap_rules(config: RunConfig) -> list[str]:
    """Engines answer while the policy learns only where each has devices of its own."""
    if not config.run.overlap:
        return []
    cluster, why = config.cluster, ""
    if cluster.layout != "disaggregated":
        why = f"cluster.layout={cluster.layout} gives engines and policy the same devices; use disaggregated"
    elif cluster.runs_phases_in_turn:
        why = "cluster.sequential_phases=true lets nothing go on beside generation; set it to false"
    elif config.training.overlap_training:
        why = "training.overlap_training=true keeps the policy busy with the round that is generated; set it to false"
    return [f"run.overlap=1: {why}, or run.overlap=0"] if why else []


def _group_rules(config: RunConfig) -> list[str]:
    problems = []
    cluster = config.cluster
    if cluster.policy.offload_optimizer and cluster.policy.zero_stage == 0:
        problems.append("cluster.policy.offload_optimizer=true: needs cluster.policy.zero_stage >= 1")
    if config.reference.update == "ema" and cluster.reference.shard:
        problems.append(
            "cluster.reference.shard=true: a sharded reference cannot average (reference.update=ema); set one of both "
            "otherwise"
        )
    if cluster.sequential_phases is False and cluster.layout == "colocated" and cluster.device == "cuda":
        problems.append(
            "cluster.sequential_phases=false: roles that take turns on the same GPUs cannot work at once; use "
            "cluster.layout=disaggregated or leave it null"
        )
    if cluster.device == "cpu" and cluster.policy.offload_optimizer:
        problems.append(
            "cluster.policy.offload_optimizer=true: has no meaning on cluster.device=cpu; remove it"
        )
    return problems


def device_rules(cluster: Any) -> list[str]:
    """Rules of engines on CPU."""
    if cluster.device == "cpu" and cluster.rollout.kv_cache_gib is None:
        return ["cluster.rollout.kv_cache_gib=null: must be set on cluster.device=cpu, say 1.0"]
    return []
