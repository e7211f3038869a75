"""A role's actors: how they are called together and waited for, and whose loss a failure is."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ultramed_rl.actors.work import Worker
from ultramed_rl.scheduling.pool import LostWorkers, RanksLost

P = ParamSpec("P")
R = TypeVar("R")
_LEAVE_S = 5.0  # after which a call that went on when another failed waits for that one in vain


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
        self.follows: WorkerGroup | None = None  # which may stay on the devices until this group comes
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

    def generate(self, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Generators:
        """Start a generator method on every actor; returns what gives its items."""
        calls = [getattr(actor, method.__name__).options(num_returns="streaming") for actor in self.actors]
        started = [call.remote(*given) for call, given in zip(calls, arguments, strict=True)]
        return Generators(self, {generator: rank for rank, generator in enumerate(started)})

    def run(
        self, method: Callable[Concatenate[Any, P], Iterator[R]], *arguments: P.args, **named: P.kwargs
    ) -> Iterator[R]:
        """Run a generator method on every actor with the same arguments; yields the first one's items, raises like
        `Generators.follow`."""
        assert not named, "arguments go by their places"
        every = self.generate(method, [arguments] * len(self))
        return (item for rank, item in every.follow() if rank == 0)

    # -- who lives, and where ------------------------------------------------------------------------------

    def placed(self, ranks: Sequence[int]) -> bool:
        """Whether each of these actors has found a place; one that has not waits for its node."""
        asked = [self._whereabouts[rank] for rank in ranks]
        return len(answered(asked, 0.0)) == len(asked)

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
            if self.follows is not None:
                self.follows.call_living(Worker.offload)
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


class Generators:
    """Generator methods that run on a group's actors by themselves.

    Args:
        running: those that have not ended, with their ranks.
    """

    def __init__(self, group: WorkerGroup, running: dict[Any, int]) -> None:
        self.group, self.running = group, running

    def follow(self) -> Iterator[tuple[int, Any]]:
        """(rank, item) as items come, from all at once, to their ends. Any item or end unblocks it.

        Raises:
            RanksLost: an actor is dead, or no item came for the group's `timeout_s`.
        """
        with ranks_held(self.group):
            while self.running:
                if not self._wait(self.group.timeout_s):
                    raise self.group.give_up(f"no sign of life for {self.group.timeout_s:.0f} s")
                yield from self.ready()

    def ready(self) -> Iterator[tuple[int, Any]]:
        """(rank, item) of all items that are there; waits for none."""
        while self.running and (ready := self._wait(0.0)):
            for generator in ready:
                try:
                    reference = next(generator)
                except StopIteration:
                    del self.running[generator]
                    continue
                yield self.running[generator], ray.get(reference)

    def _wait(self, seconds: float) -> list[Any]:
        """Those that have an item or have ended, after at most so long."""
        ready: list[Any] = ray.wait(list(self.running), num_returns=1, fetch_local=False, timeout=seconds)[0]
        return ready


# -- calls under way ---------------------------------------------------------------------------------------


def ask(actor: Any, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call the method of this name on an actor; returns the reference."""
    return getattr(actor, method.__name__).remote(*arguments, **named)


def answered(references: Sequence[Any], timeout: float) -> set[Any]:
    """Those that have a result or an error, after at most so long."""
    if not references:
        return set()
    return set(ray.wait(list(references), num_returns=len(references), timeout=timeout)[0])


def error_of(reference: Any) -> Exception | None:
    """The error of a call that has ended, if it has one."""
    try:
        ray.get(reference)
    except Exception as error:
        return error
    return None


def are_done(pending: Sequence[Any]) -> bool:
    """Whether waiting for all results would be over at once: all have ended, or the first that failed has."""
    ended = answered(pending, 0.0)
    return ended.issuperset(pending) or any(error_of(reference) is not None for reference in ended)


def wait_within(pending: Sequence[Any], seconds: float) -> list[Any]:
    """Results of calls; the first failure is raised, or a TimeoutError if it takes longer."""
    results: list[Any] = ray.get(list(pending), timeout=seconds)
    return results


def wait_for_both(
    ranks: WorkerGroup, pushed: Sequence[Any], engines: WorkerGroup, pulled: Sequence[Any]
) -> None:
    """Wait for calls to ranks and to all engines, in which these may wait for those and those for these.

    When one fails, the others get `_LEAVE_S` to end too. Then: a call of a dead actor, or one that never ended though
    no call failed, is its actor's loss; a rank that still hasn't ended beside a lost engine waits for that one in vain,
    and nothing but its own end unblocks it. Lost engines are ended.

    Raises:
        RanksLost: a rank is lost, or waits for an engine that is: all ranks were ended.
        RayActorError, TimeoutError: engines are lost, and ranks are not.
        RayTaskError: what an actor raised itself.
    """
    calls = [*pushed, *pulled]
    try:
        ray.get(calls, timeout=ranks.timeout_s)
    except (RayActorError, RayTaskError, GetTimeoutError) as first:
        silent = isinstance(first, GetTimeoutError)
        ended = answered(calls, 0.0 if silent else _LEAVE_S)
        errors = {call: error_of(call) if call in ended else first for call in (calls if silent else ended)}
        lost = {call: e for call, e in errors.items() if isinstance(e, (RayActorError, GetTimeoutError))}
        gone = [rank for rank, call in zip(engines.ranks, pulled, strict=True) if call in lost]
        if any(call in lost for call in pushed) or (gone and not ended.issuperset(pushed)):
            raise ranks.give_up(f"a rank is lost, or waits for an engine that is ({_line(first)})") from first
        for rank in gone:
            engines.kill(rank, frozen=silent)
        raise next(iter(lost.values()), first) from None


@contextmanager
def ranks_held(group: WorkerGroup) -> Iterator[None]:
    """Raise RanksLost where a rank is dead, also if a living one only says that it waited for it in vain; what a
    living rank raises else stays as it is."""
    try:
        yield
    except (RayActorError, RayTaskError) as error:
        if isinstance(error, RayTaskError) and not group.dead():
            raise
        raise RanksLost(f"{group.role}: a rank died ({_line(error)})") from error


def _line(error: Exception) -> str:
    return str(error).splitlines()[0]
