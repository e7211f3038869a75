"""The plan of a run: which process is on which device, and how many bytes it needs there. No Ray, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ultramed_rl.cluster.layout import Plan, PlanError, RolePlan, lay_out
from ultramed_rl.cluster.memory import (
    CONTEXT_BYTES,
    GIB,
    WEIGHT_BYTES,
    cache_bytes,
    count_parameters,
    engine_weight_bytes,
    forward_bytes,
    recomputed_layers,
    resolve_architecture,
    training_bytes,
)
from ultramed_rl.config import (
    AnyConfig,
    ContrastsConfig,
    DataConfig,
    EngineConfig,
    EvaluateConfig,
    RewardBenchConfig,
    SamplingConfig,
)
from ultramed_rl.config.cluster import Devices, EngineGroup, ReplicaGroup, TrainerGroup
from ultramed_rl.config.models import Architecture, ModelSettings, resolve_precision
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.config.run import RunConfig
from ultramed_rl.config.stages import SftConfig, StageConfig
from ultramed_rl.kinds import KINDS, load
from ultramed_rl.models.files import check_heads, check_length

FILLED = 0.92  # of a GPU, up to which activations are kept: the rest is for fragments and for what estimates leave out
SCORING, JUDGING = "scoring", "judging"  # turns: of whatever gives rewards, and of judges of held-out answers
Sizes = tuple[dict[str, int], dict[str, int]]  # bytes by kind: on a device, and in host memory


def make_plan(config: AnyConfig | EngineConfig) -> Plan:
    """Lay the roles over the devices and count bytes.

    Raises:
        PlanError: more devices or bytes than there are; names the keys to change.
        ValueError: a model whose shape is unknown.
    """
    if isinstance(config, EngineConfig):
        return plan_sampling(config)
    plan: Plan = load(KINDS[config.type].plan)(config)
    return plan


def needs_reference(config: RunConfig) -> bool:
    """Whether the run holds a reference model of its own: a LoRA policy is its own, some objectives have none."""
    return config.objective.uses_reference and config.policy.lora is None


def numbered_roles(role: str, models: int) -> list[str]:
    """reward, reward-2, reward-3, ...: a role for each of several reward models, or of judges that are ones."""
    return [role if k == 0 else f"{role}-{k + 1}" for k in range(models)]


# -- kinds of runs -----------------------------------------------------------------------------------------


def plan_online(config: RunConfig) -> Plan:
    """The roles of an online run, side by side or on the same devices.

    Raises:
        PlanError: an engine shares its GPU with no policy rank, from which it would take its weights.
    """
    plan = lay_out(config.cluster, config.cluster.layout, _online_roles(config))
    slots = {r.role: {slot for member in r.members for slot in member.slots} for r in plan.roles}
    shared = (config.cluster.device, plan.layout) == ("cuda", "colocated")
    if shared and not slots["rollout"] <= slots["policy"]:
        raise PlanError(
            f"cluster.policy.ranks={len(slots['policy'])}: engines are on {len(slots['rollout'])} GPUs, and take "
            f"their weights from a policy rank on the same GPU; set ranks to {len(slots['rollout'])}, lower "
            "cluster.rollout.engines, or use cluster.layout=disaggregated"
        )
    return plan


def _online_roles(config: RunConfig) -> Iterator[RolePlan]:
    """The roles of an online run, in the order in which they are given devices."""
    cluster, policy = config.cluster, _shape(config.policy.path, config.policy, "policy")
    precision, transit = resolve_precision(config.policy.precision, cluster.device), {}
    if cluster.device == "cpu":
        # Weights go from the policy to the engines through memory that both processes have mapped.
        transit["weights in transit"] = count_parameters(policy) * WEIGHT_BYTES[precision]
    rollout = _rollout(config, policy, transit)
    # Engines that get their weights from the policy on their GPU keep none while it has the GPU.
    lora = config.policy.lora
    adapters = lora is not None and lora.sync == "adapter"
    keeps = config.reward.train is not None or config.reward.asks_policy or adapters
    yield rollout if keeps else replace(rollout, moved=())
    # The largest group: its prompt once, and two answers, or all of a listwise objective.
    answers, length = config.sampling.n, config.sampling.max_new_tokens
    if config.pairs.include_reference_answer:
        answers, length = answers + 1, config.policy.max_length - config.prompts.max_prompt_tokens
    longest = config.prompts.max_prompt_tokens + (answers if config.objective.listwise else 2) * length

    def sizes_of(training: Optimization) -> Sizes:
        return training_bytes(policy, config.policy, cluster.policy, training, cluster.device, longest)

    others = 1 + needs_reference(config) + len(config.reward.paths if config.reward else ())
    others += len(config.evaluation.models) + len(config.judge_engines)
    processes = 1 + (others if cluster.layout == "colocated" else 0)
    training = _settle(config.training, policy, cluster, processes, sizes_of)
    fix = (
        "raise zero_stage, ranks or sequence_parallel of cluster.policy, set cluster.policy.offload_optimizer, "
        "or lower training.micro_batch_tokens, prompts.max_prompt_tokens or sampling.max_new_tokens"
    )
    again = recomputed_layers(training, policy.num_hidden_layers)
    yield _trainer("policy", cluster.policy, policy, sizes_of(training), fix, again, transit)
    if needs_reference(config):
        tokens = config.reference.micro_batch_tokens
        fix = "set cluster.reference.shard=true or lower reference.micro_batch_tokens"
        sizes = forward_bytes(policy, precision, tokens, cluster.reference, cluster.device, head=True)
        yield _replicas("reference", cluster.reference, policy, sizes, fix)
    yield from _rewards(config, policy)
    judges, group = config.evaluation.models, cluster.judge
    for role, judge in zip(numbered_roles("judge", len(judges)), judges, strict=True):
        section = f"evaluation.judges, {judge.name}"
        model = resolve_architecture(judge.path, judge.architecture, section)
        check_length(config.policy.max_length, model.max_position_embeddings, "policy.max_length", judge.path)
        fix = f"set cluster.judge.shard=true or lower micro_batch_tokens of {section}"
        precision = resolve_precision(judge.precision, cluster.device)
        sizes = forward_bytes(model, precision, judge.micro_batch_tokens, group, cluster.device, head=False)
        yield replace(_replicas(role, group, model, sizes, fix), turns=(JUDGING,))
    yield from _judge_engines(config)


def plan_training(config: StageConfig) -> Plan:
    """An offline stage has its training ranks alone; the model in training is its own reference."""
    shape, trainer = _shape(config.model.path, config.model, "model"), config.cluster.trainer
    # The largest sample, which goes through alone: a chat, or a prompt with at least two answers.
    longest = config.model.max_length * (1 if isinstance(config, SftConfig) else 2)

    def sizes_of(training: Optimization) -> Sizes:
        return training_bytes(shape, config.model, trainer, training, config.cluster.device, longest)

    training = _settle(config.training, shape, config.cluster, 1, sizes_of)
    again = recomputed_layers(training, shape.num_hidden_layers)
    fix = (
        "raise zero_stage, ranks or sequence_parallel of cluster.trainer, set cluster.trainer.offload_optimizer, or "
        "lower training.micro_batch_tokens or model.max_length"
    )
    sizes = sizes_of(training)
    return lay_out(config.cluster, "alone", [_trainer("trainer", trainer, shape, sizes, fix, again, {})])


def plan_sampling(config: ContrastsConfig | EvaluateConfig | EngineConfig) -> Plan:
    """Engines, and after them reward models, so they may have the same devices."""
    if not isinstance(config, EvaluateConfig):
        policy = _shape(config.policy.path, config.policy, "policy")
        return lay_out(config.cluster, "in turn", [_rollout(config, policy, {})])
    shapes = [
        _shape(path, config.policy, "policy", f"policies.{name}") for name, path in config.policies.items()
    ]
    policy = max(shapes, key=count_parameters)
    return lay_out(
        config.cluster,
        "in turn",
        [_rollout(config, policy, {}), *_rewards(config, policy), *_judge_engines(config)],
    )


def plan_scoring(config: RewardBenchConfig) -> Plan:
    """A reward model alone."""
    shape = _shape(config.model.path, config.model, "model")
    return lay_out(config.cluster, "alone", _rewards(config, shape))


def plan_generators(config: DataConfig) -> Plan:
    """Generators are asked one after the other; a step that starts no engine needs no device."""
    plans = [make_plan(engine) for engine in config.engines.values()]
    return max(plans, key=lambda plan: plan.peak_bytes, default=Plan(config.cluster, "alone", (), 0))


def _shape(path: str, settings: ModelSettings, key: str, path_key: str | None = None) -> Architecture:
    """A model's shape. Raises ValueError where its sequences may outrun its positions."""
    shape = resolve_architecture(path, settings.architecture, key, path_key)
    check_length(settings.max_length, shape.max_position_embeddings, f"{key}.max_length", path)
    return shape


def _settle(
    training: Optimization,
    shape: Architecture,
    cluster: Devices,
    processes: int,
    sizes_of: Callable[[Optimization], Sizes],
) -> Optimization:
    """`checkpointed_layers` where it isn't said: so few that the rank still fits a GPU that so many processes share. Each layer
    that is not computed again saves its share of a quarter of the step: four passes' worth of products become three."""
    given = training.checkpointed_layers is not None or not training.gradient_checkpointing
    if given or cluster.device == "cpu":
        return training
    room = FILLED * cluster.device_memory_gib * GIB - processes * CONTEXT_BYTES
    choices = (training.model_copy(update={"checkpointed_layers": n}) for n in range(shape.num_hidden_layers))
    return next((choice for choice in choices if sum(sizes_of(choice)[0].values()) <= room), training)


def _trainer(
    role: str,
    group: TrainerGroup,
    shape: Architecture,
    sizes: Sizes,
    fix: str,
    recomputed: int,
    transit: dict[str, int],
) -> RolePlan:
    key = f"cluster.{role}.sequence_parallel"
    check_heads(shape.num_attention_heads, group.sequence_parallel, key, "its model")
    own, host = sizes
    # Of gradients only stage 3's buffer is there between steps.
    moved = ("weights", "optimizer", *(["gradients"] if group.zero_stage == 3 else []))
    return RolePlan(
        role,
        group.ranks,
        1,
        transit | own,
        fix,
        host_bytes=sum(host.values()),
        moved=moved,
        recomputed=recomputed,
    )


def _replicas(
    role: str, group: ReplicaGroup, shape: Architecture, sizes: dict[str, int], fix: str
) -> RolePlan:
    key = f"cluster.{role.partition('-')[0]}.sequence_parallel"
    check_heads(shape.num_attention_heads, group.sequence_parallel, key, "its model")
    if not group.shard:
        return RolePlan(role, group.replicas, 1, sizes, fix)
    # Sharded weights stream from host memory.
    return RolePlan(role, group.replicas, 1, sizes, fix, host_bytes=sizes["weights"], moved=())


def _rollout(config: SamplingConfig, policy: Architecture, transit: dict[str, int]) -> RolePlan:
    group, cluster = config.cluster.rollout, config.cluster
    precision = resolve_precision(group.precision or config.policy.precision, cluster.device)
    role = _engines("rollout", group, policy, precision, cluster, "cluster.rollout")
    _check_cache(role, cluster, cache_bytes(policy, precision) * config.policy.max_length, "cluster.rollout")
    judges = isinstance(config, RunConfig) and config.reward.asks_policy
    turns = ("rollout", SCORING) if judges else ()
    return replace(role, bytes_per_device=role.bytes_per_device | transit, turns=turns)


def _judge_engines(config: RunConfig | EvaluateConfig) -> Iterator[RolePlan]:
    """One role for each judge that has engines of its own."""
    found, cluster = config.judge_engines, config.cluster
    for role, (key, engine) in zip(numbered_roles("judge_engine", len(found)), found.items(), strict=True):
        section = f"{key}: engine"
        shape = resolve_architecture(engine.path, engine.architecture, section)
        check_length(engine.max_length, shape.max_position_embeddings, f"{section}.max_length", engine.path)
        precision = resolve_precision(engine.precision, cluster.device)
        planned = _engines(role, engine, shape, precision, cluster, section)
        _check_cache(planned, cluster, cache_bytes(shape, precision) * engine.max_length, section)
        yield replace(planned, turns=(SCORING if key.startswith("reward") else JUDGING,))


def _engines(
    role: str, group: EngineGroup, model: Architecture, precision: str, cluster: Devices, section: str
) -> RolePlan:
    weights = engine_weight_bytes(model, precision, group.quantization) // group.tensor_parallel
    if group.kv_cache_gib is not None:
        cache = int(group.kv_cache_gib * GIB)
    else:
        cache = max(0, int(cluster.device_memory_gib * GIB * group.memory_fraction) - weights)
    sizes = {"weights": weights, "kv cache": cache}
    if cluster.device == "cpu":
        sizes["packed weights"] = weights  # vLLM's matrices in oneDNN's own order, made beside the plain ones
    fix = f"raise {section}.tensor_parallel or lower {section}.kv_cache_gib"
    return RolePlan(role, group.engines, group.tensor_parallel, sizes, fix)


def _check_cache(role: RolePlan, cluster: Devices, needed: int, section: str) -> None:
    """Raise PlanError where an engine's weights leave no room for its longest sequence, at which vLLM would stop. What no GPU
    holds at all is said for the whole plan."""
    weights, room = role.bytes_per_device["weights"], role.bytes_per_device["kv cache"] * role.width
    if room < needed and weights < cluster.device_memory_gib * GIB:
        raise PlanError(
            f"{section}: an engine's cache has {room / GIB:.2f} GiB beside weights of {weights / GIB:.1f} GiB a GPU, and its "
            f"longest sequence takes {needed / GIB:.2f} GiB; raise {section}.tensor_parallel or memory_fraction, or lower the "
            "model's max_length"
        )


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
    for role, path in zip(numbered_roles("reward", len(reward.paths)), reward.paths, strict=True):
        model = policy
        if path is not None:
            model = resolve_architecture(path, reward.architecture, section)
            check_length(read, model.max_position_embeddings, length, path)
        sizes = forward_bytes(model, precision, reward.micro_batch_tokens, group, device, head=False)
        yield replace(_replicas(role, group, model, sizes, fix), turns=(SCORING,))
