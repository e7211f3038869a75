"""From a plan to Ray: one placement group per node, one bundle per device slot."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ultramed_rl.cluster.plan import Member, Plan
from ultramed_rl.cluster.private_ray import start_private_ray, stop_private_ray
from ultramed_rl.config.cluster import Devices
from ultramed_rl.tracking.heartbeat import note_link


@dataclass(frozen=True)
class Placement:
    """Reserved bundles: `groups[node]` has a bundle for each slot of that node."""

    groups: tuple[PlacementGroup, ...]
    device: str
    cpus_per_slot: float
    share: float

    def options(self, member: Member) -> dict[str, Any]:
        """Ray actor options that put a member on its slots."""
        first = member.slots[0]
        environment = {
            "OMP_NUM_THREADS": str(max(1, int(self.cpus_per_slot))),
            "TOKENIZERS_PARALLELISM": "false",
        }
        options: dict[str, Any] = {"num_cpus": self.cpus_per_slot * self.share}
        if self.device == "cuda":
            parallel = len(member.slots) > 1
            # A tensor-parallel engine's actor only drives: its vLLM workers take the shares.
            options["num_gpus"] = 0 if parallel else self.share
            if parallel:
                environment["VLLM_RAY_BUNDLE_INDICES"] = ",".join(str(s.index) for s in member.slots)
                environment["VLLM_RAY_PER_WORKER_GPUS"] = str(self.share)
                options["num_cpus"] = 0
        else:
            environment |= {"DS_ACCELERATOR": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        if member.role == "rollout":
            environment |= {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
                "VLLM_NO_USAGE_STATS": "1",
            }
        return {
            **options,
            "runtime_env": {"env_vars": environment},
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self.groups[first.node], first.index, placement_group_capture_child_tasks=True
            ),
        }

    def release(self) -> None:
        """Give all bundles back."""
        for group in self.groups:
            remove_placement_group(group)


def named_address(cluster: Devices) -> str | None:
    """The Ray cluster that the config or RAY_ADDRESS names; None where a run starts one of its own."""
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def connect(cluster: Devices) -> None:
    """Join the Ray cluster of the config or of RAY_ADDRESS, or start one of this process's own on this machine."""
    if ray.is_initialized():
        return
    address = named_address(cluster)
    if address:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray gives a tip about it
        context = ray.init(address=address, log_to_driver=False, logging_level="warning")
        note_link("ray dashboard", context.dashboard_url)
        return
    cpus = cluster.cpus_per_node or os.cpu_count() or 1
    start_private_ray(
        max(cpus, cluster.devices_per_node if cluster.device == "cpu" else 1),
        store_bytes=512 * 2**20 if cluster.device == "cpu" else None,
    )


def disconnect() -> None:
    """Leave the Ray cluster; one that `connect` started ends."""
    note_link("ray dashboard", None)
    if ray.is_initialized():
        ray.shutdown()
    stop_private_ray()


def reserve(plan: Plan, cluster: Devices) -> Placement:
    """Reserve every slot that the plan uses.

    Raises:
        RuntimeError: the cluster has not got the resources within `start_timeout_s`; says what it has.
    """
    used = {slot for role in plan.roles for member in role.members for slot in member.slots}
    nodes = 1 + max(slot.node for slot in used)
    per_node = [1 + max(s.index for s in used if s.node == node) for node in range(nodes)]
    cpus = (cluster.cpus_per_node or _cpus_of_a_node()) / cluster.devices_per_node
    bundle = {"CPU": cpus, **({"GPU": 1.0} if cluster.device == "cuda" else {})}
    groups = tuple(placement_group([dict(bundle)] * count, strategy="STRICT_PACK") for count in per_node)
    for group in groups:
        if not group.wait(cluster.start_timeout_s):
            raise RuntimeError(
                f"cluster: no node had {group.bundle_count} bundles of {bundle} free within "
                f"{cluster.start_timeout_s:g} s; it has {ray.cluster_resources()}: start more nodes or lower "
                "cluster.nodes / cluster.devices_per_node"
            )
    # Roles that take turns awake are all there at once; in turn, engines end before reward models begin.
    together = {
        "colocated": len(plan.roles),
        "in turn": sum(role.role != "rollout" for role in plan.roles),
    }
    return Placement(groups, cluster.device, cpus, 1.0 / max(1, together.get(plan.layout, 1)))


def _cpus_of_a_node() -> float:
    """Cores of the smallest node that has any; a head that only manages has none."""
    found = [n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]]
    return min((cpus for cpus in found if cpus), default=1.0)
