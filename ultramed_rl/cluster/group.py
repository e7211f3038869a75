"""A role's actors, called together."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ultramed_rl.cluster.placement import Placement
from ultramed_rl.cluster.plan import Member
from ultramed_rl.cluster.pool import LostWorkers, RanksLost

P = ParamSpec("P")
R = TypeVar("R")
_LEAVE_S = 5.0  # after which a call that went on when another failed waits for that one in vain

__all__ = [
    "Generators",
    "RanksLost",
    "RayActorError",
    "Worker",
    "WorkerGroup",
    "are_done",
    "ranks_held",
    "wait_for_both",
    "wait_for_loads",
    "wait_within",
]


class Generators:
    """Generator methods that run on actors by themselves; `running` are those that have not ended, with their ranks."""

    def __init__(self, running: dict[Any, int]) -> None:
        self.running = running

    def wait(self, seconds: float) -> list[Any]:
        """Those that have an item or have ended, after at most so long."""
        found: list[Any] = ray.wait(list(self.running), num_returns=1, fetch_local=False, timeout=seconds)[0]
        return found

    def ready(self) -> Iterator[tuple[int, Any]]:
        """(rank, item) of all items that are there; waits for none."""
        while self.running and (found := self.wait(0.0)):
            for generator in found:
                try:
                    reference = next(generator)
                except StopIteration:
                    del self.running[generator]
                    continue
                yield self.running[generator], ray.get(reference)


class Worker(Protocol):
    """What every class of actors has."""

    def offload(self) -> None:
        """Leave the device to other roles."""

    def reload(self) -> None:
        """Come back to the device."""

    def peak_memory(self) -> int:
        """Bytes."""
        ...


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
        self._actors: dict[int, Any] = {}
        self._whereabouts: dict[int, Any] = {}  # references to (node, process) of each
        for rank in range(ranks):
            self._put(rank)

    @classmethod
    def launch(
        cls,
        worker: type,
        members: Sequence[Member],
        placement: Placement,
        arguments: Callable[[Member], tuple[Any, ...]],
        *,
        takes_turns: bool,
        timeout_s: float = 600.0,
    ) -> WorkerGroup:
        """Create one actor for each member, on its slots."""
        remote = ray.remote(worker)

        def spawn(rank: int) -> Any:
            member = members[rank]
            return remote.options(**placement.options(member)).remote(*arguments(member))

        return cls(members[0].role, spawn, len(members), takes_turns=takes_turns, timeout_s=timeout_s)

    def __len__(self) -> int:
        return len(self._actors)

    @property
    def actors(self) -> list[Any]:
        """Those that there are, in rank order."""
        return [self._actors[rank] for rank in sorted(self._actors)]

    def actor(self, rank: int) -> Any:
        """One of them."""
        return self._actors[rank]

    def respawn(self, rank: int) -> Any:
        """A new actor in the place of this rank's, which ends if it has not."""
        self.kill(rank)
        return self._put(rank)

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

    def _put(self, rank: int) -> Any:
        actor = self._actors[rank] = self._spawn(rank)
        self._whereabouts[rank] = actor.__ray_call__.remote(_whereabouts)
        return actor

    def kill(self, rank: int, *, frozen: bool = False) -> None:
        """End an actor; its rank is empty until it is spawned again.

        Ray asks an actor's process to end itself. One that is `frozen` cannot, and would keep its place: it is
        ended from outside.
        """
        actor, where = self._actors.pop(rank, None), self._whereabouts.pop(rank, None)
        if actor is None:
            return
        ray.kill(actor)
        if frozen and ray.wait([where], timeout=0)[0] and _succeeded(where):
            node, process = ray.get(where)
            there = NodeAffinitySchedulingStrategy(node, soft=False)
            _end_process.options(num_cpus=0, scheduling_strategy=there).remote(process)

    def call(
        self, method: Callable[Concatenate[Any, P], R], *arguments: P.args, **named: P.kwargs
    ) -> list[R]:
        """Call a method on every actor at once and wait for all results, like `wait`."""
        return self.wait(self.start(method, *arguments, **named))

    def first(self, method: Callable[Concatenate[Any, P], R], *arguments: P.args, **named: P.kwargs) -> R:
        """Call a method on the first actor alone, and wait for its result like `wait`."""
        result: R = self.wait([_ask(self.actors[0], method, *arguments, **named)])[0]
        return result

    @property
    def placed(self) -> bool:
        """Whether every actor has found a place; one that has not waits for its node."""
        found = list(self._whereabouts.values())
        return not ray.wait(found, num_returns=len(found), timeout=0)[1]

    def start(
        self, method: Callable[Concatenate[Any, P], Any], *arguments: P.args, **named: P.kwargs
    ) -> list[Any]:
        """Call a method on every actor at once; returns the references."""
        return [_ask(actor, method, *arguments, **named) for actor in self.actors]

    def call_living(
        self, method: Callable[Concatenate[Any, P], R], *arguments: P.args, **named: P.kwargs
    ) -> list[R]:
        """Call a method on every actor and wait for the results of those that live, like `wait_living`."""
        return self.wait_living(self.start(method, *arguments, **named))

    def wait_living(self, pending: Sequence[Any], seconds: float | None = None) -> list[Any]:
        """Results of calls that `start` began. Actors that are dead, or give no answer within `seconds`, by default
        `timeout_s`, give nothing, and are found out when they have work."""
        results = []
        answered = _answered(pending, self.timeout_s if seconds is None else seconds)
        for reference in pending:
            if reference in answered:
                with suppress(RayActorError):
                    results.append(ray.get(reference))
        return results

    def living(self) -> list[int]:
        """Ranks whose actor answers."""
        return [rank for rank, alive in self._probe(self.timeout_s) if alive]

    def dead(self, timeout: float = 5.0) -> list[int]:
        """Ranks that Ray knows to be dead; those that are only busy aren't."""
        return [rank for rank, alive in self._probe(timeout) if not alive]

    def _probe(self, timeout: float) -> list[tuple[int, bool]]:
        """Ranks of which something is known in this time, and whether they live."""
        ranks = sorted(self._actors)
        asked = [self._actors[rank].peak_memory.remote() for rank in ranks]
        answered = _answered(asked, timeout)
        return [(r, _succeeded(ref)) for r, ref in zip(ranks, asked, strict=True) if ref in answered]

    def generate(self, method: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Generators:
        """Start a generator method on every actor; its items come by `Generators.ready` and `follow`."""
        return Generators(
            {
                getattr(actor, method.__name__).options(num_returns="streaming").remote(*args): rank
                for rank, (actor, args) in enumerate(zip(self.actors, arguments, strict=True))
            }
        )

    def follow(self, generators: Generators) -> Iterator[tuple[int, Any]]:
        """(rank, item) of what `generate` started, as items come, from all at once, to their ends.

        Raises:
            RanksLost: one is dead, or no item came for `timeout_s`.
        """
        with ranks_held(self):
            while generators.running:
                if not generators.wait(self.timeout_s):
                    raise self.give_up(f"no sign of life for {self.timeout_s:.0f} s")
                yield from generators.ready()

    def stream(
        self, method: Callable[..., Iterator[R]], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, R]]:
        """Run a generator method on every actor; yields and raises like `follow`."""
        return self.follow(self.generate(method, arguments))

    def last(
        self, method: Callable[Concatenate[Any, P], Iterator[R]], *arguments: P.args, **named: P.kwargs
    ) -> R:
        """Run a generator method on every actor at once; the last item of the first one's. Raises like `stream`."""
        assert not named, "arguments go by their places"
        items = self.stream(method, [arguments] * len(self))
        return [item for rank, item in items if rank == 0][-1]

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

    def give_up(self, why: str) -> RanksLost:
        """End all: one of them is lost, and the others wait for it."""
        for rank in list(self._actors):
            self.kill(rank, frozen=True)
        return RanksLost(f"{self.role}: {why}")

    @contextmanager
    def on_device(self) -> Iterator[WorkerGroup]:
        """On the devices within, off them outside: the whole story of colocation."""
        if self.takes_turns:
            self.call_living(Worker.reload)
        try:
            yield self
        except KeyboardInterrupt:  # nobody comes after: an actor in the midst of a step is not waited for
            raise
        except BaseException:
            self._leave()
            raise
        self._leave()

    def _leave(self) -> None:
        if self.takes_turns:
            self.call_living(Worker.offload)

    def stop(self) -> None:
        """End the actors."""
        for rank in list(self._actors):
            self.kill(rank)


def _ask(actor: Any, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return getattr(actor, method.__name__).remote(*arguments, **named)


def are_done(pending: Sequence[Any]) -> bool:
    """Whether `wait` would have nothing to wait for: all have ended, or the first that failed has."""
    ready, open_ = ray.wait(list(pending), num_returns=len(pending), timeout=0)
    return not open_ or not all(_succeeded(reference) for reference in ready)


def wait_for_loads(pending: Sequence[Any], seconds: float) -> None:
    """Wait until actors have begun their work, or died, or `seconds` are over; who is left is for `living` to say.

    Raises:
        RayTaskError: what an actor says that cannot begin: another in its place would say the same.
    """
    if not pending:
        return
    ended, _ = ray.wait(list(pending), num_returns=len(pending), timeout=seconds)
    for reference in ended:
        with suppress(RayActorError):
            ray.get(reference)


def wait_within(pending: Sequence[Any], seconds: float) -> list[Any]:
    """Results of calls; the first failure is raised, or TimeoutError if it takes longer."""
    try:
        return ray.get(list(pending), timeout=seconds)
    except GetTimeoutError as error:
        raise TimeoutError(str(error)) from None


def wait_for_both(
    ranks: WorkerGroup, pushed: Sequence[Any], engines: WorkerGroup, pulled: Sequence[Any]
) -> None:
    """Wait for calls to ranks and to all engines, in which these may wait for those and those for these. Of a call
    that fails or does not end its actor is lost; engines that are lost are ended.

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
        ended = _answered(calls, 0.0 if silent else _LEAVE_S)
        errors = {call: _error_of(call) if call in ended else first for call in (calls if silent else ended)}
        lost = {call: e for call, e in errors.items() if isinstance(e, (RayActorError, GetTimeoutError))}
        gone = [rank for rank, call in zip(sorted(engines._actors), pulled, strict=True) if call in lost]
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


def _whereabouts(_: Any) -> tuple[str, int]:
    return ray.get_runtime_context().get_node_id(), os.getpid()


@ray.remote
def _end_process(process: int) -> None:
    # By now the number may be another's.
    with suppress(OSError):
        if b"ray::" in Path(f"/proc/{process}/cmdline").read_bytes():
            os.kill(process, signal.SIGKILL)


def _answered(references: Sequence[Any], timeout: float) -> set[Any]:
    if not references:
        return set()
    return set(ray.wait(list(references), num_returns=len(references), timeout=timeout)[0])


def _succeeded(reference: Any) -> bool:
    return _error_of(reference) is None


def _error_of(reference: Any) -> Exception | None:
    try:
        ray.get(reference)
    except Exception as error:
        return error
    return None
