"""What each role of a config asks of the devices: processes, devices, bytes. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ultramed_rl.cluster.architecture import count_parameters, resolve_architecture
from ultramed_rl.cluster.memory import GIB, TrainingShape, bytes_per_weight, forward_bytes, training_bytes
from ultramed_rl.config import (
    ContrastsConfig,
    EngineConfig,
    EvaluateConfig,
    RewardBenchConfig,
    SamplingConfig,
)
from ultramed_rl.config.cluster import TrainerGroup
from ultramed_rl.config.models import Architecture, Model, ModelSettings, Reward
from ultramed_rl.config.precision import resolve_precision
from ultramed_rl.config.run import RunConfig
from ultramed_rl.config.stages import SftConfig, StageConfig
from ultramed_rl.config.training import Optimization
from ultramed_rl.models.files import check_length


@dataclass(frozen=True)
class Demand:
    """A role's processes, the devices of each, the bytes on one of them by kind, and what to change if they are
    too many."""

    role: str
    processes: int
    width: int
    bytes_per_device: dict[str, int]
    fix: str


def needs_reference(config: RunConfig) -> bool:
    """Whether the run holds a reference model of its own: a LoRA policy is its own, some objectives have none."""
    return config.objective.uses_reference and config.policy.lora is None


def run_demands(config: RunConfig) -> Iterator[Demand]:
    """The roles of an online run, in the order in which they are given devices."""
    policy = _shape(config.policy.path, config.policy, "policy")
    transit = _in_transit(config, policy)
    engines = _rollout(config, policy)
    yield replace(engines, bytes_per_device=engines.bytes_per_device | transit)
    sizes = transit | _trainer_bytes(
        config.cluster.policy,
        config.cluster.device,
        config.policy,
        config.training,
        policy,
        longest=longest_group(config),
    )
    fix = (
        "raise cluster.policy.zero_stage or cluster.policy.ranks, set cluster.policy.offload_optimizer, "
        "or lower training.micro_batch_tokens, prompts.max_prompt_tokens or sampling.max_new_tokens"
    )
    yield Demand("policy", config.cluster.policy.ranks, 1, sizes, fix)
    if needs_reference(config):
        yield _reference(config, policy)
    yield from _rewards(config, policy)


def _in_transit(config: RunConfig, policy: Architecture) -> dict[str, int]:
    """On CPU weights go from the policy to the engines through memory that both processes have mapped."""
    if config.cluster.device != "cpu":
        return {}
    precision = resolve_precision(config.policy.precision, "cpu")
    return {"weights in transit": count_parameters(policy) * bytes_per_weight(precision)}


def sampling_demands(config: ContrastsConfig | EvaluateConfig | EngineConfig) -> Iterator[Demand]:
    """Engines, and after them reward models."""
    if not isinstance(config, EvaluateConfig):
        yield _rollout(config, _shape(config.policy.path, config.policy, "policy"))
        return
    shapes = [
        _shape(path, config.policy, "policy", f"policies.{name}") for name, path in config.policies.items()
    ]
    policy = max(shapes, key=count_parameters)
    yield _rollout(config, policy)
    yield from _rewards(config, policy)


def reward_bench_demands(config: RewardBenchConfig) -> Iterator[Demand]:
    """The reward model alone."""
    yield from _rewards(config, _shape(config.model.path, config.model, "model"))


def stage_demands(config: StageConfig) -> Iterator[Demand]:
    """An offline stage has its training ranks alone; the model in training is its own reference."""
    shape = _shape(config.model.path, config.model, "model")
    trainer = config.cluster.trainer
    sizes = _trainer_bytes(
        trainer, config.cluster.device, config.model, config.training, shape, longest_sample(config)
    )
    fix = (
        "raise cluster.trainer.zero_stage or cluster.trainer.ranks, set cluster.trainer.offload_optimizer, or "
        "lower training.micro_batch_tokens or model.max_length"
    )
    yield Demand("trainer", trainer.ranks, 1, sizes, fix)


def _shape(path: str, settings: ModelSettings, key: str, path_key: str | None = None) -> Architecture:
    """A model's shape. Raises ValueError where its sequences may outrun its positions."""
    shape = resolve_architecture(path, settings.architecture, key, path_key)
    check_length(settings.max_length, shape.max_position_embeddings, f"{key}.max_length", path)
    return shape


def _trainer_bytes(
    group: TrainerGroup,
    device: str,
    model: Model,
    training: Optimization,
    architecture: Architecture,
    longest: int,
) -> dict[str, int]:
    shape = TrainingShape(
        ranks=group.ranks,
        zero_stage=group.zero_stage,
        precision=resolve_precision(model.precision, device),
        offload_optimizer=group.offload_optimizer,
        gradient_checkpointing=training.gradient_checkpointing,
        micro_tokens=max(training.micro_batch_tokens, longest),
        device=device,
        lora_rank=model.lora.rank if model.lora else None,
        quantized=bool(model.lora and model.lora.quantize),
    )
    return training_bytes(architecture, shape)


def _rollout(config: SamplingConfig, policy: Architecture) -> Demand:
    cluster, group = config.cluster, config.cluster.rollout
    precision = resolve_precision(config.policy.precision, cluster.device)
    whole = forward_bytes(policy, precision, 0, head=False, device=cluster.device)["weights"]
    weights = whole // group.tensor_parallel
    if group.kv_cache_gib is not None:
        cache = int(group.kv_cache_gib * GIB)
    else:
        cache = max(0, int(cluster.device_memory_gib * GIB * group.memory_fraction) - weights)
    sizes = {"weights": weights, "kv cache": cache}
    if cluster.device == "cpu":
        sizes["packed weights"] = weights  # vLLM's matrices in oneDNN's own order, made beside the plain ones
    fix = "raise cluster.rollout.tensor_parallel or lower cluster.rollout.kv_cache_gib"
    return Demand("rollout", group.engines, group.tensor_parallel, sizes, fix)


def _reference(config: RunConfig, policy: Architecture) -> Demand:
    group = config.cluster.reference
    sizes = forward_bytes(
        policy,
        resolve_precision(config.policy.precision, config.cluster.device),
        config.reference.micro_batch_tokens,
        head=True,
        device=config.cluster.device,
        shards=group.replicas if group.shard else 1,
    )
    fix = "set cluster.reference.shard=true or lower reference.micro_batch_tokens"
    return Demand("reference", group.replicas, 1, sizes, fix)


def _rewards(
    config: RunConfig | EvaluateConfig | RewardBenchConfig, policy: Architecture
) -> Iterator[Demand]:
    """One role for each reward model: none where only rules score, several where there is an ensemble."""
    group, reward = config.cluster.reward, config.reward
    if reward is None:
        return
    if isinstance(config, RewardBenchConfig):
        section, read, length = "model", config.model.max_length, "model.max_length"
    else:
        section, read, length = "reward", config.policy.max_length, "policy.max_length"
    fix = f"set cluster.reward.shard=true or lower {section}.micro_batch_tokens"
    for role, path in zip(reward_roles(reward), reward.paths, strict=True):
        model = policy
        if path is not None:
            model = resolve_architecture(path, reward.architecture, section)
            check_length(read, model.max_position_embeddings, length, path)
        sizes = forward_bytes(
            model,
            resolve_precision(reward.precision, config.cluster.device),
            reward.micro_batch_tokens,
            head=False,
            device=config.cluster.device,
            shards=group.replicas if group.shard else 1,
        )
        yield Demand(role, group.replicas, 1, sizes, fix)


def reward_roles(reward: Reward) -> list[str]:
    """reward, reward-2, reward-3, ...: a role for each reward model."""
    return ["reward" if k == 0 else f"reward-{k + 1}" for k in range(len(reward.paths))]


def longest_sample(config: StageConfig) -> int:
    """Tokens of the largest sample, which goes through alone: a chat, or a prompt with at least two answers."""
    return config.model.max_length * (1 if isinstance(config, SftConfig) else 2)


def longest_group(config: RunConfig) -> int:
    """Packed tokens of the largest group: its prompt once, and two answers, or all of a listwise objective."""
    answers, length = config.sampling.n, config.sampling.max_new_tokens
    if config.pairs.include_reference_answer:
        answers, length = answers + 1, config.policy.max_length - config.prompts.max_prompt_tokens
    return config.prompts.max_prompt_tokens + (answers if config.objective.listwise else 2) * length
