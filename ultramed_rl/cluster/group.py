"""A role's actors: where they are put, and how they are called together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from ultramed_rl.actors.work import Worker
from ultramed_rl.cluster.calls import Generators, answered, ask, error_of, ranks_held, wait_within
from ultramed_rl.cluster.plan import Member, Plan
from ultramed_rl.scheduling.pool import LostWorkers, RanksLost

P = ParamSpec("P")
R = TypeVar("R")


class Placement:
    """A plan's slots, reserved: one placement group per node, with a bundle for each slot of that node."""

    def __init__(self, plan: Plan) -> None:
        """Waits until the cluster has them.

        Raises:
            RuntimeError: it has not got the resources within `start_timeout_s`; says what it has.
        """
        self.plan, cluster = plan, plan.cluster
        used = {slot for role in plan.roles for member in role.members for slot in member.slots}
        nodes = 1 + max(slot.node for slot in used)
        per_node = [1 + max(s.index for s in used if s.node == node) for node in range(nodes)]
        # Those of the smallest node that has any; a head that only manages has none.
        cores = [n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]]
        cpus = (cluster.cpus_per_node or min(filter(None, cores), default=1.0)) / cluster.devices_per_node
        bundle = {"CPU": cpus, **({"GPU": 1.0} if cluster.device == "cuda" else {})}
        self.groups = [placement_group([dict(bundle)] * count, strategy="STRICT_PACK") for count in per_node]
        for group in self.groups:
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
        self.cpus_per_slot, self.share = cpus, 1.0 / max(1, together.get(plan.layout, 1))

    def spawner(
        self, role: str, worker: type, arguments: Callable[[Member], tuple[Any, ...]]
    ) -> Callable[[int], Any]:
        """What creates the actor of a rank of a role, on its slots."""
        members, remote = self.plan.members(role), ray.remote(worker)
        return lambda rank: remote.options(**self._options(members[rank])).remote(*arguments(members[rank]))

    def release(self) -> None:
        """Give all bundles back."""
        for group in self.groups:
            remove_placement_group(group)

    def _options(self, member: Member) -> dict[str, Any]:
        """Ray actor options that put a member on its slots."""
        first = member.slots[0]
        environment = {
            "OMP_NUM_THREADS": str(max(1, int(self.cpus_per_slot))),
            "TOKENIZERS_PARALLELISM": "false",
        }
        options: dict[str, Any] = {"num_cpus": self.cpus_per_slot * self.share}
        if self.plan.cluster.device == "cuda":
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


class WorkerGroup:
    """The actors of one role, in rank order.

    Methods are given as those of the actors' class, `group.call(PolicyWorker.save, folder)`: a type checker and an editor
    follow them to what the actor does.
    """

    def __init__(
        self,
        role: str,
        spawn: Callable[[int], Any],
        ranks: int,
        *,
        takes_turns: bool,
        timeout_s: float = 600.0,  # after which an actor that doesn't answer counts as dead
    ) -> None:
        self.role, self.takes_turns, self.size, self.timeout_s = role, takes_turns, ranks, timeout_s
        self.restarts = 0  # of all ranks together
        self._spawn = spawn
        self.by_rank: dict[int, Any] = {}  # the actors that there are
        self._whereabouts: dict[int, Any] = {}  # references to (node, process) of each
        for rank in range(ranks):
            self.respawn(rank)

    def __len__(self) -> int:
        return len(self.by_rank)

    @property
    def ranks(self) -> list[int]:
        """Of the actors that there are, in order."""
        return sorted(self.by_rank)

    @property
    def actors(self) -> list[Any]:
        """In the order of their ranks."""
        return [self.by_rank[rank] for rank in self.ranks]

    # -- start and end -------------------------------------------------------------------------------------

    def respawn(self, rank: int) -> Any:
        """A new actor in the place of this rank's, which ends if it has not."""
        self.kill(rank)
        actor = self.by_rank[rank] = self._spawn(rank)
        self._whereabouts[rank] = actor.__ray_call__.remote(_whereabouts)
        return actor

    def respawn_all(self, allowed: int) -> None:
        """New actors in the place of all; what they load has to follow.

        Raises:
            LostWorkers: more often than `allowed`.
        """
        self.restarts += 1
        if self.restarts > allowed:
            raise LostWorkers(
                f"{self.role}: ranks lost {self.restarts} times (cluster.faults.restarts={allowed}); mend the cause and "
                "go on with --resume"
            )
        for rank in range(self.size):
            self.respawn(rank)

    def kill(self, rank: int, *, frozen: bool = False) -> None:
        """End an actor; its rank is empty until it is spawned again.

        Ray asks an actor's process to end itself. One that is `frozen` cannot, and would keep its place: it is
        ended from outside.
        """
        actor, where = self.by_rank.pop(rank, None), self._whereabouts.pop(rank, None)
        if actor is None:
            return
        ray.kill(actor)
        if frozen and answered([where], 0.0) and error_of(where) is None:
            node, process = ray.get(where)
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            _end_process.options(num_cpus=0, scheduling_strategy=there).remote(process)

    def give_up(self, why: str) -> RanksLost:
        """End all: one of them is lost, and the others wait for it."""
        for rank in self.ranks:
            self.kill(rank, frozen=True)
        return RanksLost(f"{self.role}: {why}")

    def stop(self) -> None:
        """End the actors."""
        for rank in self.ranks:
            self.kill(rank)

    # -- calls ---------------------------------------------------------------------------------------------

    def start(
        self, method: Callable[Concatenate[Any, P], Any], *arguments: P.args, **named: P.kwargs
    ) -> list[Any]:
        """Call a method on every actor at once; returns the references."""
        return [ask(actor, method, *arguments, **named) for actor in self.actors]

    def wait(self, pending: Sequence[Any], seconds: float | None = None) -> list[Any]:
        """Results of calls that `start` began; the first failure is raised.

        Raises:
            RanksLost: one is dead, or they were not there after `seconds`, by default `timeout_s`.
        """
        seconds = self.timeout_s if seconds is None else seconds
        try:
            with ranks_held(self):
                return wait_within(pending, seconds)
        except TimeoutError:
            raise self.give_up(f"no sign of life for {seconds:.0f} s") from None

    def wait_living(self, pending: Sequence[Any], seconds: float | None = None) -> list[Any]:
        """Results of calls that `start` began. Actors that are dead, or give no answer within `seconds`, by default
        `timeout_s`, give nothing, and are found out when they have work."""
        results = []
        ended = answered(pending, self.timeout_s if seconds is None else seconds)
        for reference in pending:
            if reference in ended:
                with suppress(RayActorError):
                    results.append(ray.get(reference))
        return results

    def call(
        self, method: Callable[Concatenate[Any, P], R], *arguments: P.args, **named: P.kwargs
    ) -> list[R]:
        """Call a method on every actor at once and wait for all results, like `wait`."""
        return self.wait(self.start(method, *arguments, **named))

    def call_living(
        self, method: Callable[Concatenate[Any, P], R], *arguments: P.args, **named: P.kwargs
    ) -> list[R]:
        """Call a method on every actor and wait for the results of those that live, like `wait_living`."""
        return self.wait_living(self.start(method, *arguments, **named))

    def first(self, method: Callable[Concatenate[Any, P], R], *arguments: P.args, **named: P.kwargs) -> R:
        """Call a method on the first actor alone, and wait for its result like `wait`."""
        result: R = self.wait([ask(self.actors[0], method, *arguments, **named)])[0]
        return result

    def generate(self, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Generators:
        """Start a generator method on every actor; returns what gives its items."""
        calls = [getattr(actor, method.__name__).options(num_returns="streaming") for actor in self.actors]
        started = [call.remote(*given) for call, given in zip(calls, arguments, strict=True)]
        return Generators(self, {generator: rank for rank, generator in enumerate(started)})

    def stream(
        self, method: Callable[..., Iterator[R]], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, R]]:
        """Run a generator method on every actor; yields and raises like `Generators.follow`."""
        return self.generate(method, arguments).follow()

    def run(
        self, method: Callable[Concatenate[Any, P], Iterator[R]], *arguments: P.args, **named: P.kwargs
    ) -> Iterator[R]:
        """Run a generator method on every actor with the same arguments; yields the first one's items, raises like
        `stream`."""
        assert not named, "arguments go by their places"
        return (item for rank, item in self.stream(method, [arguments] * len(self)) if rank == 0)

    # -- who lives, and where ------------------------------------------------------------------------------

    @property
    def placed(self) -> bool:
        """Whether every actor has found a place; one that has not waits for its node."""
        return len(answered(list(self._whereabouts.values()), 0.0)) == len(self._whereabouts)

    def living(self) -> list[int]:
        """Ranks whose actor answers."""
        return [rank for rank, alive in self._probe(self.timeout_s) if alive]

    def dead(self, timeout: float = 5.0) -> list[int]:
        """Ranks that Ray knows to be dead; those that are only busy aren't."""
        return [rank for rank, alive in self._probe(timeout) if not alive]

    def _probe(self, timeout: float) -> list[tuple[int, bool]]:
        """Ranks of which something is known in this time, and whether they live."""
        asked = {rank: self.by_rank[rank].peak_memory.remote() for rank in self.ranks}
        ended = answered(list(asked.values()), timeout)
        return [(rank, error_of(ref) is None) for rank, ref in asked.items() if ref in ended]

    @contextmanager
    def on_device(self) -> Iterator[WorkerGroup]:
        """On the devices within, off them outside: the whole story of colocation."""
        interrupted = False
        if self.takes_turns:
            self.call_living(Worker.reload)
        try:
            yield self
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            # After an interruption nobody comes: an actor in the midst of a step is not waited for.
            if self.takes_turns and not interrupted:
                self.call_living(Worker.offload)


def _whereabouts(_: Any) -> tuple[str, int]:
    return ray.get_runtime_context().get_node_id(), os.getpid()


@ray.remote
def _end_process(process: int) -> None:
    # By now the number may be another's.
    with suppress(OSError):
        if b"ray::" in Path(f"/proc/{process}/cmdline").read_bytes():
            os.kill(process, signal.SIGKILL)
