"""Waiting for actors' calls, and whose loss a failure is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ultramed_rl.scheduling.pool import RanksLost

if TYPE_CHECKING:
    from ultramed_rl.cluster.group import WorkerGroup

_LEAVE_S = 5.0  # after which a call that went on when another failed waits for that one in vain


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
