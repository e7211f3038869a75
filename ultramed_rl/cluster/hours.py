"""How long a round takes: its operations and bytes by stated rates. Nothing is measured; a run's own timeline is."""

from __future__ import annotations

from dataclasses import dataclass

from ultramed_rl.cluster.layout import Plan, RolePlan
from ultramed_rl.cluster.memory import cache_bytes, count_parameters, resolve_architecture
from ultramed_rl.config.cluster import EngineGroup
from ultramed_rl.config.models import Architecture
from ultramed_rl.config.run import RunConfig
from ultramed_rl.learning.costs import MEMORY_TB_S, Gpu, published_peak

# What is assumed. Shares of the data sheet's rates that products and decoding reach; a step of an engine takes 5 ms at least.
PRODUCTS, DECODED, SHORTEST_STEP_S = 0.4, 0.5, 0.005
FILLED = 0.5  # of the longest prompt and of the longest answer: the mean ones
ASSUMED = (
    f"assumed: prompts and answers {FILLED:.0%} of the longest, products at {PRODUCTS:.0%} of the published FLOP/s, decoding at "
    f"{DECODED:.0%} of the memory's rate; without weight sync, checkpoints, benchmarks and judges that are language models"
)


@dataclass(frozen=True)
class RoundHours:
    """Hours of a round by phase, in all, and times the GPUs that are held."""

    gpu: Gpu
    phases: dict[str, float]
    hours: float
    gpu_hours: float

    def describe(self) -> str:
        """Two lines: the hours, and what was assumed."""
        phases = ", ".join(f"{name} {hours:.2f}" for name, hours in self.phases.items())
        return (
            f"a round on {self.gpu}: {self.hours:.2f} h, {self.gpu_hours:.1f} GPU hours ({phases})\n{ASSUMED}"
        )


def round_hours(config: RunConfig, plan: Plan, gpu: Gpu) -> RoundHours:
    """A round of a planned run on these GPUs. Each weight costs 2 operations a token in a forward pass, 6 in training, 4 where it
    is frozen, and 2 more in layers that are computed again; attention is not counted.

    Roles that take turns add up; side by side, the slowest of sampling, scoring and reference counts, and training after it or,
    with `run.overlap`, beside it.
    """
    roles = {role.role: role for role in plan.roles}
    policy = resolve_architecture(config.policy.path, config.policy.architecture, "policy")
    weights = count_parameters(policy)
    prompts, answers = config.prompts.per_round, config.sampling.n
    asked, answered = config.prompts.max_prompt_tokens * FILLED, config.sampling.max_new_tokens * FILLED
    products = (published_peak(gpu) or 0.0) * PRODUCTS

    def pass_h(role: RolePlan, operations: float) -> float:
        return operations / (products * role.processes) / 3600

    def scoring_h(kind: str, count: int, each: int) -> float:
        """Of all models of a kind, whose roles are numbered."""
        models = [r for r in plan.roles if r.role == kind or r.role.startswith(f"{kind}-")]
        shapes = [_weights(config, kind, place, weights) for place in range(len(models))]
        tokens = count * (asked + each * answered)
        return sum(pass_h(role, 2 * n * tokens) for role, n in zip(models, shapes, strict=True))

    def sampling_h(count: int, each: int) -> float:
        seconds = _decoding_s(
            policy, roles["rollout"], config.cluster.rollout, gpu, count * each, asked, answered
        )
        read = 2 * weights * count * asked / (products * roles["rollout"].processes * roles["rollout"].width)
        return (seconds + read) / 3600

    pairs = answers if config.objective.listwise else 2
    tokens = prompts * (asked + pairs * answered)
    trainer = roles["policy"]
    again = (trainer.recomputed or 0) / policy.num_hidden_layers
    each = (4 if config.policy.lora else 6) + 2 * again
    held_out = config.prompts.held_out
    judged = sampling_h(held_out, 1) + scoring_h("reward", held_out, 1) + scoring_h("judge", held_out, 1)
    reads = 2 * weights * tokens * config.objective.uses_reference
    phases = {
        "sampling": sampling_h(prompts, answers),
        "scoring": scoring_h("reward", prompts, answers),
        "reference": pass_h(roles.get("reference", trainer), reads),
        "training": pass_h(trainer, each * weights * tokens * config.training.epochs),
        "evaluation": judged / config.evaluation.every,
    }
    hours = sum(phases.values())
    if plan.layout == "disaggregated":
        streamed = max(phases["sampling"], phases["scoring"], phases["reference"])
        steps = phases["training"]
        hours = (max(streamed, steps) if config.run.overlap else streamed + steps) + phases["evaluation"]
    return RoundHours(gpu, phases, hours, hours * plan.cluster.nodes * plan.cluster.devices_per_node)


def _weights(config: RunConfig, kind: str, place: int, policy: int) -> int:
    """Parameters of the reward model or judge at a place among them."""
    if kind == "judge":
        judge = config.evaluation.models[place]
        return count_parameters(resolve_architecture(judge.path, judge.architecture, "evaluation.judges"))
    path = config.reward.paths[place]
    if path is None:  # made in the run, of the policy
        return policy
    return count_parameters(resolve_architecture(path, config.reward.architecture, "reward"))


def _decoding_s(
    shape: Architecture,
    role: RolePlan,
    group: EngineGroup,
    gpu: Gpu,
    requests: int,
    asked: float,
    answered: float,
) -> float:
    """Seconds in which engines write so many answers: each step reads the weights and the cache of all that are under way."""
    a_token = cache_bytes(shape, "bfloat16")
    cache = role.bytes_per_device["kv cache"] * role.width
    own = requests / role.processes
    batch = max(1.0, min(group.max_num_seqs, own, cache / (a_token * (asked + answered))))
    moved = role.bytes_per_device["weights"] * role.width + batch * a_token * (asked + answered / 2)
    step = max(SHORTEST_STEP_S, moved / (MEMORY_TB_S[gpu] * 1e12 * DECODED * role.width))
    return own * answered / batch * step
