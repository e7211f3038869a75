"""What each role of a config asks of the devices: processes, devices, bytes. Pure arithmetic; every formula is stated where
it is used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ultramed_rl.cluster.architecture import count_parameters, resolve_architecture
from ultramed_rl.config import (
    ContrastsConfig,
    EngineConfig,
    EvaluateConfig,
    RewardBenchConfig,
    SamplingConfig,
)
from ultramed_rl.config.cluster import ReplicaGroup, TrainerGroup
from ultramed_rl.config.models import Architecture, Model, ModelSettings, Reward
from ultramed_rl.config.precision import resolve_precision
from ultramed_rl.config.run import RunConfig
from ultramed_rl.config.stages import SftConfig, StageConfig
from ultramed_rl.config.training import Optimization
from ultramed_rl.learning.chunks import chunk_tokens
from ultramed_rl.models.configs import check_length

GIB = 2**30
# A process that has imported torch, transformers and DeepSpeed or vLLM, before any weight: measured on CPU.
PROCESS_BYTES = int(0.9 * GIB)
_WEIGHT_BYTES = {"bfloat16": 2, "float32": 4}
_QUANTIZED_BYTES = 0.57  # of a 4-bit weight with its scales


@dataclass(frozen=True, order=True)
class Slot:
    """One device: a GPU, or on CPU a share of a node's cores."""

    node: int
    index: int


@dataclass(frozen=True)
class Member:
    """One process of a role. A tensor-parallel engine has several slots, all on one node."""

    role: str
    rank: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class RolePlan:
    """A role's processes, the devices of each, the bytes on one of them by kind, and what to change if they are too many;
    planned, also where each process is."""

    role: str
    processes: int
    width: int
    bytes_per_device: dict[str, int]
    fix: str
    members: tuple[Member, ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes_per_device.values())


# -- the roles of a config ---------------------------------------------------------------------------------


def needs_reference(config: RunConfig) -> bool:
    """Whether the run holds a reference model of its own: a LoRA policy is its own, some objectives have none."""
    return config.objective.uses_reference and config.policy.lora is None


def reward_roles(reward: Reward) -> list[str]:
    """reward, reward-2, reward-3, ...: a role for each reward model."""
    return ["reward" if k == 0 else f"reward-{k + 1}" for k in range(len(reward.paths))]


def run_demands(config: RunConfig) -> Iterator[RolePlan]:
    """The roles of an online run, in the order in which they are given devices."""
    cluster, policy = config.cluster, _shape(config.policy.path, config.policy, "policy")
    precision, transit = resolve_precision(config.policy.precision, cluster.device), {}
    if cluster.device == "cpu":
        # Weights go from the policy to the engines through memory that both processes have mapped.
        transit["weights in transit"] = count_parameters(policy) * _WEIGHT_BYTES[precision]
    yield _rollout(config, policy, transit)
    # The largest group: its prompt once, and two answers, or all of a listwise objective.
    answers, length = config.sampling.n, config.sampling.max_new_tokens
    if config.pairs.include_reference_answer:
        answers, length = answers + 1, config.policy.max_length - config.prompts.max_prompt_tokens
    longest = config.prompts.max_prompt_tokens + (answers if config.objective.listwise else 2) * length
    sizes = transit | training_bytes(
        policy, config.policy, cluster.policy, config.training, cluster.device, longest
    )
    fix = (
        "raise cluster.policy.zero_stage or cluster.policy.ranks, set cluster.policy.offload_optimizer, "
        "or lower training.micro_batch_tokens, prompts.max_prompt_tokens or sampling.max_new_tokens"
    )
    yield RolePlan("policy", cluster.policy.ranks, 1, sizes, fix)
    if needs_reference(config):
        tokens = config.reference.micro_batch_tokens
        fix = "set cluster.reference.shard=true or lower reference.micro_batch_tokens"
        sizes = forward_bytes(policy, precision, tokens, cluster.reference, cluster.device, head=True)
        yield RolePlan("reference", cluster.reference.replicas, 1, sizes, fix)
    yield from _rewards(config, policy)


def sampling_demands(config: ContrastsConfig | EvaluateConfig | EngineConfig) -> Iterator[RolePlan]:
    """Engines, and after them reward models."""
    if not isinstance(config, EvaluateConfig):
        yield _rollout(config, _shape(config.policy.path, config.policy, "policy"), {})
        return
    shapes = [
        _shape(path, config.policy, "policy", f"policies.{name}") for name, path in config.policies.items()
    ]
    policy = max(shapes, key=count_parameters)
    yield _rollout(config, policy, {})
    yield from _rewards(config, policy)


def reward_bench_demands(config: RewardBenchConfig) -> Iterator[RolePlan]:
    """The reward model alone."""
    yield from _rewards(config, _shape(config.model.path, config.model, "model"))


def stage_demands(config: StageConfig) -> Iterator[RolePlan]:
    """An offline stage has its training ranks alone; the model in training is its own reference."""
    shape, trainer = _shape(config.model.path, config.model, "model"), config.cluster.trainer
    # The largest sample, which goes through alone: a chat, or a prompt with at least two answers.
    longest = config.model.max_length * (1 if isinstance(config, SftConfig) else 2)
    sizes = training_bytes(shape, config.model, trainer, config.training, config.cluster.device, longest)
    fix = (
        "raise cluster.trainer.zero_stage or cluster.trainer.ranks, set cluster.trainer.offload_optimizer, or "
        "lower training.micro_batch_tokens or model.max_length"
    )
    yield RolePlan("trainer", trainer.ranks, 1, sizes, fix)


def _shape(path: str, settings: ModelSettings, key: str, path_key: str | None = None) -> Architecture:
    """A model's shape. Raises ValueError where its sequences may outrun its positions."""
    shape = resolve_architecture(path, settings.architecture, key, path_key)
    check_length(settings.max_length, shape.max_position_embeddings, f"{key}.max_length", path)
    return shape


def _rollout(config: SamplingConfig, policy: Architecture, transit: dict[str, int]) -> RolePlan:
    cluster, group = config.cluster, config.cluster.rollout
    precision = resolve_precision(config.policy.precision, cluster.device)
    weights = count_parameters(policy) * _WEIGHT_BYTES[precision] // group.tensor_parallel
    if group.kv_cache_gib is not None:
        cache = int(group.kv_cache_gib * GIB)
    else:
        cache = max(0, int(cluster.device_memory_gib * GIB * group.memory_fraction) - weights)
    sizes = {"weights": weights, "kv cache": cache}
    if cluster.device == "cpu":
        sizes["packed weights"] = weights  # vLLM's matrices in oneDNN's own order, made beside the plain ones
    fix = "raise cluster.rollout.tensor_parallel or lower cluster.rollout.kv_cache_gib"
    return RolePlan("rollout", group.engines, group.tensor_parallel, sizes | transit, fix)


def _rewards(
    config: RunConfig | EvaluateConfig | RewardBenchConfig, policy: Architecture
) -> Iterator[RolePlan]:
    """One role for each reward model: none where only rules score, several where there is an ensemble."""
    group, reward, device = config.cluster.reward, config.reward, config.cluster.device
    if reward is None:
        return
    if isinstance(config, RewardBenchConfig):
        section, read, length = "model", config.model.max_length, "model.max_length"
    else:
        section, read, length = "reward", config.policy.max_length, "policy.max_length"
    fix = f"set cluster.reward.shard=true or lower {section}.micro_batch_tokens"
    precision = resolve_precision(reward.precision, device)
    for role, path in zip(reward_roles(reward), reward.paths, strict=True):
        model = policy
        if path is not None:
            model = resolve_architecture(path, reward.architecture, section)
            check_length(read, model.max_position_embeddings, length, path)
        sizes = forward_bytes(model, precision, reward.micro_batch_tokens, group, device, head=False)
        yield RolePlan(role, group.replicas, 1, sizes, fix)


# -- bytes on one device -----------------------------------------------------------------------------------


def training_bytes(
    shape: Architecture, model: Model, group: TrainerGroup, training: Optimization, device: str, longest: int
) -> dict[str, int]:
    """Bytes of one rank by kind, with ZeRO's partitioning (arXiv 1910.02054, section 3).

    bfloat16: weights 2, gradients 2, and fp32 master, momentum and variance 12 bytes a parameter;
    float32: 4, 4 and 8. Stage 1 divides the optimizer by the ranks, 2 the gradients too, 3 the weights too.

    With LoRA (arXiv 2106.09685) the weights are frozen, and all else is of the adapters alone: one of rank r on a matrix
    of [m, n] has r (m + n) parameters. 4-bit weights leave embeddings and head whole.

    Args:
        longest: tokens of the largest sample, which goes through alone where a micro-batch holds fewer.
    """
    precision, width = resolve_precision(model.precision, device), shape.hidden_size
    count, size = count_parameters(shape), _WEIGHT_BYTES[precision]
    weights, trained = count * size, count
    if model.lora is not None:
        head_dim = shape.head_dim or width // shape.num_attention_heads
        queries, keys = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
        sides = 2 * (width + queries) + 2 * (width + keys) + 3 * (width + shape.intermediate_size)
        trained = model.lora.rank * sides * shape.num_hidden_layers
        outside = shape.vocab_size * width * (1 if shape.tie_word_embeddings else 2)
        frozen = int((count - outside) * (_QUANTIZED_BYTES if model.lora.quantize else size))
        weights = frozen + (outside + trained) * size
    split = [group.ranks if group.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    optimizer = trained * (12 if precision == "bfloat16" else 8) // split[2]
    # With checkpointing one [tokens, width] input a layer is kept and one layer is live at a time; a live layer holds
    # about 10 widths and 4 MLP widths a token: a little generous.
    tokens, layers = max(training.micro_batch_tokens, longest), shape.num_hidden_layers
    layer = tokens * (10 * width + 4 * shape.intermediate_size) * size
    kept = layer + layers * tokens * width * size if training.gradient_checkpointing else layers * layer
    return {
        "weights": weights // split[0],
        "gradients": trained * size // split[1],
        "optimizer": 0 if group.offload_optimizer else optimizer,
        "activations": kept + _logit_bytes(shape, tokens, device),
    }


def forward_bytes(
    shape: Architecture, precision: str, tokens: int, group: ReplicaGroup, device: str, *, head: bool
) -> dict[str, int]:
    """A forward-only replica: weights, one live layer of a batch of so many tokens, and a chunk of logits if it has a head.

    Sharded, a rank holds its part of the weights and, for a moment, one whole layer.
    """
    size, shards = _WEIGHT_BYTES[precision], group.replicas if group.shard else 1
    weights = count_parameters(shape) * size
    live = tokens * (6 * shape.hidden_size + 2 * shape.intermediate_size) * size
    if shards > 1:
        live += 2 * weights // shape.num_hidden_layers
    logits = _logit_bytes(shape, tokens, device) if head else 0
    return {"weights": weights // shards, "activations": live + logits}


def _logit_bytes(shape: Architecture, tokens: int, device: str) -> int:
    """Logits exist for one chunk of tokens in fp32, with their gradient."""
    return 2 * min(tokens, chunk_tokens(shape.vocab_size, device)) * shape.vocab_size * 4
