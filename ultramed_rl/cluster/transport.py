"""Turns to Ray actors, and what becomes of them as events."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from ultramed_rl.actors.work import WorkBatch, WorkResult
from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.scheduling.pool import Event, Pool, PoolRules
from ultramed_rl.scheduling.scheduler import Scheduler

Result = TypeVar("Result")
_MOST_EVENTS = 64


@dataclass(frozen=True)
class WorkerSet:
    """A role's actors as workers of a scheduler.

    Attributes:
        prepare: begins all that a spawned actor must do before it can work; returns the references.
        lockstep: the actors hold one model together and make every pass at the same time: they are one worker,
            each turn is dealt to all of them, and if one dies all do.
        sharing: so many of them, one after the other, compute each pass together, and give its numbers alike.
    """

    group: WorkerGroup
    prepare: Callable[[Sequence[Any]], list[Any]]
    lockstep: bool = False
    sharing: int = 1

    @property
    def ranks(self) -> list[int]:
        """The workers that there are at the start."""
        return [0] if self.lockstep else list(range(self.group.size))

    def members(self, rank: int) -> list[int]:
        """The actors of one worker."""
        return list(range(self.group.size)) if self.lockstep else [rank]


@dataclass
class _Sent:
    """Calls whose results make one event together; `turn` tells a turn from a start."""

    role: str
    rank: int
    turn: bool
    open: set[Any]
    reports: list[WorkResult] = field(default_factory=list)


class RayTransport:
    """Workers by role and rank. What is heard of an actor that was ended since is dropped."""

    def __init__(self) -> None:
        self.worker_sets: dict[str, WorkerSet] = {}
        self._pending: dict[Any, _Sent] = {}  # by reference

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        return time.monotonic()

    def send(self, role: str, rank: int, work: WorkBatch) -> None:
        """Give a worker a turn. A lockstep worker's actors share its requests."""
        worker_set = self.worker_sets[role]
        actors = [worker_set.group.by_rank[member] for member in worker_set.members(rank)]
        turns, sharing = [], worker_set.sharing
        for place, actor in enumerate(actors):
            requests = work.requests[place // sharing :: len(actors) // sharing]
            share = WorkBatch(requests, work.cancelled, work.seconds)
            turns.append(actor.work.remote(share))
        self._await(role, rank, True, turns)

    def start(self, role: str, rank: int) -> None:
        """Begin to put a new worker in the place of one that is lost."""
        worker_set = self.worker_sets[role]
        self._forget(role, rank)
        actors = [worker_set.group.respawn(member) for member in worker_set.members(rank)]
        self._await(role, rank, False, worker_set.prepare(actors))

    def placed(self, role: str, rank: int) -> bool:
        """Whether a worker that is being started has found its place in the cluster."""
        worker_set = self.worker_sets[role]
        return worker_set.group.placed(worker_set.members(rank))

    def end(self, role: str, rank: int) -> None:
        """End a worker, and hear nothing more of it."""
        self._forget(role, rank)
        for member in self.worker_sets[role].members(rank):
            self.worker_sets[role].group.kill(member, frozen=True)

    def events(self, timeout: float, unread: Collection[str] = ()) -> list[Event]:
        """What has happened, waiting for the first of it up to `timeout` seconds; at most `_MOST_EVENTS`, the oldest
        turns first, so that a driver that is behind holds a few reports and Ray's object store the others. News of
        `unread` roles stay where they are."""
        pending = self._pending.items()
        awaited = [ref for ref, of in pending if of.role not in unread] if unread else list(self._pending)
        if not awaited:
            time.sleep(min(timeout, 0.05))
            return []
        ready, _ = ray.wait(awaited, num_returns=1, timeout=timeout)
        if ready:
            most = min(len(awaited), _MOST_EVENTS)
            ready, _ = ray.wait(awaited, num_returns=most, timeout=0)
        return [event for reference in ready if (event := self._read(reference)) is not None]

    # -- inside --------------------------------------------------------------------------------------------

    def _await(self, role: str, rank: int, turn: bool, references: list[Any]) -> None:
        pending = _Sent(role, rank, turn, set(references))
        self._pending |= dict.fromkeys(references, pending)

    def _read(self, reference: Any) -> Event | None:
        """The event that a result completes, if it does; the first error of a worker's actors is the worker's loss."""
        pending = self._pending.pop(reference, None)
        if pending is None:  # of a worker that was lost a moment ago
            return None
        try:
            result = ray.get(reference)
        except Exception as error:
            self.end(pending.role, pending.rank)
            return Event(pending.role, pending.rank, error=_explain(error))
        pending.open.discard(reference)
        if pending.turn:
            pending.reports.append(result)
        if pending.open:
            return None
        if not pending.turn:
            return Event(pending.role, pending.rank, started=True)
        reports = pending.reports
        report = WorkResult(
            done=list(dict(chain.from_iterable(report.done for report in reports)).items()),
            failed=list(dict(chain.from_iterable(report.failed for report in reports)).items()),
            started=min(report.started for report in reports),
            ended=max(report.ended for report in reports),
        )
        return Event(pending.role, pending.rank, report=report)

    def _forget(self, role: str, rank: int) -> None:
        gone = [ref for ref, p in self._pending.items() if (p.role, p.rank) == (role, rank)]
        for reference in gone:
            del self._pending[reference]


class RayScheduler(Scheduler):
    """A scheduler whose workers are Ray actors."""

    transport: RayTransport

    def __init__(self) -> None:
        super().__init__(RayTransport())

    def add(self, role: str, worker_set: WorkerSet, rules: PoolRules) -> Pool:
        """Take a role's actors up."""
        self.transport.worker_sets[role] = worker_set
        return self.open(role, worker_set.ranks, rules)

    def wait_for_start(self, pool: Pool, loads: Sequence[Any], seconds: float) -> None:
        """Until a pool's workers have loaded what they begin with; those that die or hang in it are replaced.

        Raises:
            RayTaskError: what they are to load cannot be loaded: others in their place would say the same.
            LostWorkers: too few are left.
        """
        self.transport.worker_sets[pool.role].group.wait_living(loads, seconds)
        self.replace_dead(pool)

    def replace_dead(self, pool: Pool) -> bool:
        """Replace what has died of a pool's workers, and wait for the replacements; whether any had.

        Raises:
            LostWorkers: too few are left.
        """
        worker_set = self.transport.worker_sets[pool.role]
        living = set(worker_set.group.living())
        dead = [rank for rank in pool.ranks if not living.issuperset(worker_set.members(rank))]
        for rank in dead:
            self.transport.end(pool.role, rank)
            pool.lost(rank, "found dead between phases", self.transport.now())
        while pool.starting:
            self.outcomes()
        return bool(dead)

    def with_all(self, pool: Pool, attempt: Callable[[], Result]) -> Result:
        """What needs every worker of a pool; made again, with replacements, if one of them dies in it. Raises like
        `replace_dead`."""
        self.replace_dead(pool)
        while True:
            try:
                return attempt()
            except (RayActorError, TimeoutError):
                if not self.replace_dead(pool):
                    raise


def _explain(error: Exception) -> str:
    """The last line of what went wrong, in one line."""
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    words = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {words[-1] if words else 'no message'}"[:500]
