"""The plan of a run: which process is on which device, and how many bytes it needs there. No Ray, no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ultramed_rl.cluster.demands import (
    GIB,
    PROCESS_BYTES,
    Member,
    RolePlan,
    Slot,
    reward_bench_demands,
    run_demands,
    sampling_demands,
    stage_demands,
)
from ultramed_rl.config import (
    AnyConfig,
    ContrastsConfig,
    DataConfig,
    EngineConfig,
    EvaluateConfig,
    RewardBenchConfig,
)
from ultramed_rl.config.cluster import Devices
from ultramed_rl.config.run import RunConfig
from ultramed_rl.config.stages import StageConfig
from ultramed_rl.kinds import KINDS, load


class PlanError(ValueError):
    """A plan that the nodes cannot hold: the arithmetic and the fix, in one line."""


@dataclass(frozen=True)
class Plan:
    """Everything that `reserve` needs to reserve, and the fullest device against its limit."""

    cluster: Devices
    layout: str
    roles: tuple[RolePlan, ...]
    peak_bytes: int

    @property
    def limit_bytes(self) -> int:
        return int(self.cluster.device_memory_gib * GIB)


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


def plan_online(config: RunConfig) -> Plan:
    """The roles of an online run, side by side or on the same devices.

    Raises:
        PlanError: an engine shares its GPU with no policy rank, from which it would take its weights.
    """
    plan = lay_out(config.cluster, config.cluster.layout, run_demands(config))
    slots = {r.role: {slot for member in r.members for slot in member.slots} for r in plan.roles}
    shared = (config.cluster.device, plan.layout) == ("cuda", "colocated")
    if shared and not slots["rollout"] <= slots["policy"]:
        raise PlanError(
            f"cluster.policy.ranks={len(slots['policy'])}: engines are on {len(slots['rollout'])} GPUs, and take "
            f"their weights from a policy rank on the same GPU; set ranks to {len(slots['rollout'])}, lower "
            "cluster.rollout.engines, or use cluster.layout=disaggregated"
        )
    return plan


def plan_training(config: StageConfig) -> Plan:
    """The ranks of an offline stage."""
    return lay_out(config.cluster, "alone", stage_demands(config))


def plan_sampling(config: ContrastsConfig | EvaluateConfig | EngineConfig) -> Plan:
    """One role after the other, so they may have the same devices."""
    return lay_out(config.cluster, "in turn", sampling_demands(config))


def plan_scoring(config: RewardBenchConfig) -> Plan:
    """A reward model alone."""
    return lay_out(config.cluster, "alone", reward_bench_demands(config))


def plan_generators(config: DataConfig) -> Plan:
    """Generators are asked one after the other; a step that starts no engine needs no device."""
    plans = [make_plan(engine) for engine in config.engines.values()]
    return max(plans, key=lambda plan: plan.peak_bytes, default=Plan(config.cluster, "alone", (), 0))


def lay_out(cluster: Devices, layout: str, demands: Iterable[RolePlan]) -> Plan:
    """Give every role its slots, in order. Raises `PlanError` where devices or bytes don't suffice."""
    taken = [0] * cluster.nodes  # by node: its slots are taken from the first on
    roles = []
    for demand in demands:
        roles.append(replace(demand, members=tuple(_members(demand, taken, cluster, layout))))
        if layout == "disaggregated":
            for member in roles[-1].members:
                taken[member.slots[0].node] += demand.width
    plan = Plan(cluster, layout, tuple(roles), _peak_bytes(cluster, layout, roles))
    if plan.peak_bytes > plan.limit_bytes:
        raise PlanError(_too_little(plan))
    return plan


def _members(demand: RolePlan, taken: list[int], cluster: Devices, layout: str) -> list[Member]:
    """Fill the free slots node by node; a member's slots never straddle nodes."""
    role, count, width = demand.role, demand.processes, demand.width
    most = cluster.devices_per_node
    if count > sum((most - used) // width for used in taken):
        free, total = sum(most - used for used in taken), cluster.nodes * most
        layout = "colocated roles share them" if layout == "colocated" else "roles before it took the rest"
        raise PlanError(
            f"cluster.{role}: {count} processes x {width} devices = {count * width}, but {free} of "
            f"{cluster.nodes} x {most} = {total} devices are free ({layout}); "
            f"lower its number, raise cluster.nodes, or use cluster.layout=colocated"
        )
    members: list[Member] = []
    for node, used in enumerate(taken):
        for start in range(used, min(most - width + 1, used + (count - len(members)) * width), width):
            slots = tuple(Slot(node, index) for index in range(start, start + width))
            members.append(Member(role, len(members), slots))
    return members


def _peak_bytes(cluster: Devices, layout: str, roles: list[RolePlan]) -> int:
    """The fullest device. On CPU a node's memory holds all of its processes, awake or not."""
    if layout == "in turn":
        phases = [[role for role in roles if (role.role == "rollout") == first] for first in (True, False)]
        return max(_together(cluster, phase) for phase in phases)
    if cluster.device == "cpu":
        return _together(cluster, roles)
    # Colocated: one role is awake at a time, the others are in host memory. Disaggregated: one role a GPU.
    return max(role.total_bytes for role in roles)


def _together(cluster: Devices, roles: list[RolePlan]) -> int:
    """The fullest device, or on CPU node, with all of these roles on it at once."""
    held: Counter[Slot | int] = Counter()
    for role in roles:
        for member in role.members:
            if cluster.device == "cpu":
                held[member.slots[0].node] += role.total_bytes * len(member.slots) + PROCESS_BYTES
            else:
                held.update(dict.fromkeys(member.slots, role.total_bytes))
    return max(held.values(), default=0)


def _too_little(plan: Plan) -> str:
    worst = max(plan.roles, key=lambda role: role.total_bytes)
    parts = " + ".join(f"{kind} {size / GIB:.1f}" for kind, size in worst.bytes_per_device.items())
    cpu = plan.cluster.device == "cpu"
    all_of_node = f"all processes of a node {plan.peak_bytes / GIB:.1f}; the largest, " if cpu else ""
    return (
        f"cluster.device_memory_gib={plan.cluster.device_memory_gib:g} per {'node' if cpu else 'GPU'}: too little for "
        f"{all_of_node}{worst.role}: {parts} = {worst.total_bytes / GIB:.1f} GiB; {worst.fix}"
    )


def render_plan(plan: Plan) -> str:
    """The plan as a table."""
    from rich.console import Console
    from rich.table import Table

    cluster = plan.cluster
    devices = f"{cluster.nodes} node(s) x {cluster.devices_per_node} {cluster.device} device(s)"
    table = Table(title=f"{plan.layout} on {devices}")
    for heading in ("role", "processes", "devices each", "bundles by node", "GiB per device", "total"):
        table.add_column(heading)
    for role in plan.roles:
        nodes = Counter(slot.node for member in role.members for slot in member.slots)
        table.add_row(
            role.role,
            str(role.processes),
            str(role.width),
            ", ".join(f"{node}: {count}" for node, count in nodes.items()),
            ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in role.bytes_per_device.items()),
            f"{role.total_bytes / GIB:.2f}",
        )
    console = Console(width=110, color_system=None)
    with console.capture() as capture:
        console.print(table)
    where = "node" if cluster.device == "cpu" else "GPU"
    share = plan.peak_bytes / plan.limit_bytes
    return f"{capture.get()}fullest {where}: {plan.peak_bytes / GIB:.1f} of {plan.limit_bytes / GIB:.1f} GiB ({share:.0%})"
