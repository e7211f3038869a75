"""Where the processes of a run's roles go, and whether devices and nodes hold their bytes. No Ray, no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ultramed_rl.cluster.memory import CONTEXT_BYTES, GIB, PROCESS_BYTES
from ultramed_rl.config.cluster import Devices


class PlanError(ValueError):
    """A plan that the nodes cannot hold: the arithmetic and the fix, in one line."""


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
    planned, also where each process is. On CUDA also the bytes that a process always has in host memory, and the kinds
    that it takes there while other roles have its devices. `turns` in which it is awake where roles share devices, by
    default one of its own."""

    role: str
    processes: int
    width: int
    bytes_per_device: dict[str, int]
    fix: str
    members: tuple[Member, ...] = ()
    host_bytes: int = 0
    moved: tuple[str, ...] = ("weights", "optimizer")
    recomputed: int | None = None  # layers of a model in training whose activations are computed again
    turns: tuple[str, ...] = ()

    @property
    def awake_in(self) -> tuple[str, ...]:
        """Its turns."""
        return self.turns or (self.role,)

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes_per_device.values())

    def waiting_bytes(self, layout: str) -> int:
        """Of one process in host memory, while it has no device if it ever has none."""
        moved = sum(self.bytes_per_device.get(kind, 0) for kind in self.moved) * self.width
        return PROCESS_BYTES + self.host_bytes + (moved if layout == "colocated" else 0)


@dataclass(frozen=True)
class Plan:
    """Everything that is to be reserved, the fullest device against its limit, and on CUDA the fullest node's memory."""

    cluster: Devices
    layout: str
    roles: tuple[RolePlan, ...]
    peak_bytes: int
    host_bytes: int = 0

    @property
    def limit_bytes(self) -> int:
        return int(self.cluster.device_memory_gib * GIB)

    def members(self, role: str) -> tuple[Member, ...]:
        """A role's processes."""
        return next(planned.members for planned in self.roles if planned.role == role)


def lay_out(cluster: Devices, layout: str, demands: Iterable[RolePlan]) -> Plan:
    """Give every role its slots, in order. Raises `PlanError` where devices or bytes don't suffice."""
    taken = [0] * cluster.nodes  # by node: its slots are taken from the first on
    roles = []
    for demand in demands:
        roles.append(replace(demand, members=tuple(_members(demand, taken, cluster, layout))))
        if layout == "disaggregated":
            for member in roles[-1].members:
                taken[member.slots[0].node] += demand.width
    host: Counter[int] = Counter()
    if cluster.device == "cuda":
        for role in roles:
            for member in role.members:
                host[member.slots[0].node] += role.waiting_bytes(layout)
    fullest = max(host, key=host.__getitem__, default=0)
    plan = Plan(cluster, layout, tuple(roles), _peak_bytes(cluster, layout, roles), host[fullest])
    if plan.peak_bytes > plan.limit_bytes:
        raise PlanError(_too_little(plan))
    if cluster.host_memory_gib is not None and plan.host_bytes > cluster.host_memory_gib * GIB:
        raise PlanError(_too_little_on_host(plan, fullest))
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
    # Colocated: roles of one turn are awake at a time, and of the others only what CUDA holds for a process.
    # Disaggregated: one role a GPU.
    held: defaultdict[Slot, Counter[str]] = defaultdict(Counter)
    processes: Counter[Slot] = Counter()
    for role in roles:
        for slot in (slot for member in role.members for slot in member.slots):
            processes[slot] += 1
            held[slot].update(dict.fromkeys(role.awake_in, role.total_bytes))
    return max(max(turns.values()) + processes[slot] * CONTEXT_BYTES for slot, turns in held.items())


def _together(cluster: Devices, roles: list[RolePlan]) -> int:
    """The fullest device, or on CPU node, with all of these roles on it at once."""
    held: Counter[Slot | int] = Counter()
    for role in roles:
        for member in role.members:
            if cluster.device == "cpu":
                held[member.slots[0].node] += role.total_bytes * len(member.slots) + PROCESS_BYTES
            else:
                held.update(dict.fromkeys(member.slots, role.total_bytes + CONTEXT_BYTES))
    return max(held.values(), default=0)


def _too_little(plan: Plan) -> str:
    roles, words = list(plan.roles), ""
    if plan.layout == "colocated" and plan.cluster.device == "cuda":  # those of the fullest turn
        turns = sorted({turn for role in roles for turn in role.awake_in})
        awake = [[role for role in roles if turn in role.awake_in] for turn in turns]
        roles = max(awake, key=lambda together: sum(role.total_bytes for role in together))
    if 1 < len(roles) < len(plan.roles):
        sizes = [f"{role.role} {role.total_bytes / GIB:.1f}" for role in roles]
        words = f" (awake at once: {' + '.join(sizes)})"
    worst = max(roles, key=lambda role: role.total_bytes)
    parts = " + ".join(f"{kind} {size / GIB:.1f}" for kind, size in worst.bytes_per_device.items())
    cpu = plan.cluster.device == "cpu"
    everything = "all processes of a node" if cpu else "a GPU's processes and their CUDA contexts"
    return (
        f"cluster.device_memory_gib={plan.cluster.device_memory_gib:g} per {'node' if cpu else 'GPU'}: too little for "
        f"{everything}, {plan.peak_bytes / GIB:.1f} GiB; the largest is {worst.role}: {parts} = "
        f"{worst.total_bytes / GIB:.1f} GiB{words}; {worst.fix}"
    )


def _too_little_on_host(plan: Plan, node: int) -> str:
    parts = []
    for role in plan.roles:
        count = sum(member.slots[0].node == node for member in role.members)
        if count:
            parts.append(f"{role.role} {count} x {role.waiting_bytes(plan.layout) / GIB:.1f}")
    return (
        f"cluster.host_memory_gib={plan.cluster.host_memory_gib:g} per node: too little for what processes keep in host "
        f"memory: {' + '.join(parts)} = {plan.host_bytes / GIB:.1f} GiB; use cluster.layout=disaggregated, fewer or sharded "
        "replicas, engines with tensor_parallel, or LoRA"
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
    again = [
        f"{r.role}: layers computed again in the backward pass: {r.recomputed}"
        for r in plan.roles
        if r.recomputed
    ]
    share = plan.peak_bytes / plan.limit_bytes
    host = f"; host memory of the fullest node: {plan.host_bytes / GIB:.0f} GiB" if plan.host_bytes else ""
    return (
        f"{capture.get()}fullest {where}: {plan.peak_bytes / GIB:.1f} of {plan.limit_bytes / GIB:.1f} GiB "
        f"({share:.0%}){host}" + "".join(f"\n{line}" for line in again)
    )
