"""A role's workers behind a dispatcher: turns out, answers in, the dead replaced. No Ray and no clock of its own.

offer() --> Dispatcher --> WorkBatch --> transport --> worker --> WorkResult --> Outcome, once for each key
               ^                                    |
               +---- what a lost worker held <------+--> transport.start(): a new one, at most `restarts` times
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ultramed_rl.actors.work import WorkBatch, WorkResult
from ultramed_rl.cluster.dispatch import Dispatcher, DispatchRules, WorkItem
from ultramed_rl.tracking.stall import RoleState


class LostWorkers(RuntimeError):
    """A role has no workers left, or fewer than it may go on with."""


class RanksLost(RuntimeError):
    """A rank of a group that computes together died. The others wait for it in vain: all of them must start again."""


@dataclass(frozen=True)
class FaultRules:
    """What is done about workers that die or hang.

    Args:
        restarts: of workers of one role, over the whole run.
        hang_s: a turn that takes longer is a hang; the worker is ended and replaced.
        start_s: a replacement that isn't there after so long won't come: its node is gone.
        fewer: whether a role goes on with fewer workers than it began with.
    """

    restarts: int
    hang_s: float
    start_s: float
    fewer: bool


@dataclass(frozen=True)
class PoolRules:
    """How a role works.

    Args:
        depth: turns that a worker is given at once: two where it should never wait for the driver.
        lasting: whether requests outlast a turn, as in an engine that answers many side by side.
        upstream: roles that this one is fed by, for those who ask why it waits.
        ranks: the worker is ranks that compute together and that others start again: their loss is RanksLost.
    """

    dispatch: DispatchRules
    faults: FaultRules
    depth: int
    lasting: bool
    upstream: tuple[str, ...] = ()
    ranks: bool = False


@dataclass(frozen=True)
class Outcome:
    """The end of a key: its value, or the error for which it was set aside after all attempts."""

    role: str
    key: str
    value: Any = None
    error: str = ""


class Transport(Protocol):
    """The way to workers, which are known by role and rank."""

    def send(self, role: str, rank: int, work: WorkBatch) -> None:
        """Give a worker a turn; its report, or its loss, is an event."""
        ...

    def start(self, role: str, rank: int) -> None:
        """Begin to replace a worker; that it is there, or won't come, is an event."""
        ...

    def end(self, role: str, rank: int) -> None:
        """End a worker now; nothing more is heard of it until it is started again."""
        ...


@dataclass
class _Worker:
    rank: int
    state: str = "ready"  # or starting, gone
    since: float = 0.0  # of the oldest turn that is out, or of the start
    turns: int = 0
    stale: int = 0  # of these turns: given before the pool forgot what was in them
    outbox: list[tuple[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)


class Pool:
    """One role. `pump` after offers and events; `outcomes` takes what has ended."""

    def __init__(self, role: str, ranks: list[int], rules: PoolRules, transport: Transport) -> None:
        self.role, self.rules, self.transport = role, rules, transport
        self.restarts = 0
        self.last_done: float | None = None
        self.on_restart: Callable[[str], None] = lambda error: None
        self._workers = {rank: _Worker(rank) for rank in ranks}
        self._last_error = ""
        self._gone = 0
        self._changed: dict[int, _Worker] = {}  # since the last pump: there may be something to send
        self._look_at = math.inf  # no worker hangs, and no replacement is late, before
        self._begin()

    def _begin(self) -> None:
        self._dispatcher: Dispatcher[int] = Dispatcher(self.rules.dispatch)
        self._payloads: dict[str, Any] = {}
        self._ended: list[Outcome] = []
        for worker in self._workers.values():
            if worker.state == "ready":
                self._dispatcher.join(worker.rank)

    # -- work ----------------------------------------------------------------------------------------------

    def offer(self, item: WorkItem, payload: Any) -> None:
        """Something to be done once; its outcome comes under the item's key."""
        assert item.key not in self._payloads, f"{self.role}: {item.key} is under way"
        self._payloads[item.key] = payload
        self._dispatcher.add(item)

    def close(self) -> None:
        """Nothing more is offered until all is done; where all is done, that is over at once."""
        self._dispatcher.closed = bool(self._payloads)

    @property
    def unfinished(self) -> int:
        """Keys whose outcome has not been taken."""
        return len(self._payloads) + len(self._ended)

    @property
    def has_capacity(self) -> bool:
        """Whether more may be offered; if not, those upstream are to wait."""
        return self._dispatcher.waiting < self.backlog_limit

    def outcomes(self) -> list[Outcome]:
        """What has ended since the last time. When all has, stragglers are forgotten and offers are taken anew."""
        found, self._ended = self._ended, []
        if self._dispatcher.closed and not self._payloads:
            self._dispatcher.closed = False
        return found

    def pump(self, now: float) -> None:
        """Deal what waits, send turns, replace what hangs.

        Raises:
            LostWorkers, RanksLost: no worker is left to do what is to be done.
        """
        self._check_times(now)
        while (dealt := self._dispatcher.next(now)) is not None:
            rank, item = dealt
            self._changed_worker(rank).outbox.append((item.key, self._payloads[item.key]))
        for rank, key in self._dispatcher.cancelled():
            self._cancel(self._changed_worker(rank), key)
        changed, self._changed = self._changed, {}
        for worker in changed.values():
            self._send(worker, now)
        self._check_left()

    def _changed_worker(self, rank: int) -> _Worker:
        worker = self._changed[rank] = self._workers[rank]
        return worker

    def _cancel(self, worker: _Worker, key: str) -> None:
        kept = [(k, payload) for k, payload in worker.outbox if k != key]
        if len(kept) == len(worker.outbox) and self.rules.lasting:
            worker.cancelled.append(key)
        worker.outbox = kept

    def _send(self, worker: _Worker, now: float) -> None:
        if worker.state != "ready" or worker.turns >= self.rules.depth:
            return
        idle = not (worker.outbox or worker.cancelled)
        if idle and not (self.rules.lasting and self._dispatcher.holds(worker.rank)):
            return
        seconds = min(1.0, 0.1 + len(self._workers) / 256)
        work = WorkBatch(tuple(worker.outbox), tuple(worker.cancelled), seconds)
        worker.outbox, worker.cancelled = [], []
        worker.since = now if worker.turns == 0 else worker.since
        worker.turns += 1
        self._look_at = min(self._look_at, worker.since + self.rules.faults.hang_s)
        self._changed[worker.rank] = worker  # there may be room for another turn
        self.transport.send(self.role, worker.rank, work)

    # -- events --------------------------------------------------------------------------------------------

    def reported(self, rank: int, report: WorkResult, now: float) -> None:
        """A worker's turn has ended."""
        worker = self._workers[rank]
        worker.turns -= 1
        worker.since = now
        self._changed[rank] = worker
        if worker.stale:
            worker.stale -= 1
            return
        for key, value in report.done:
            if self._dispatcher.done(rank, key, now):
                self._end(Outcome(self.role, key, value))
                self.last_done = now
        for key, error in report.failed:
            self._dispatcher.fail(rank, key, error)
        self._take_aside()

    def excuse(self, now: float, away: float) -> None:
        """Nobody listened for `away` seconds: they don't count against anybody."""
        for worker in self._workers.values():
            worker.since = min(now, worker.since + away)

    def started(self, rank: int) -> None:
        """A replacement is there."""
        worker = self._workers[rank]
        worker.state, worker.turns, worker.stale = "ready", 0, 0
        worker.outbox, worker.cancelled = [], []
        self._dispatcher.join(rank)

    def lost(self, rank: int, error: str, now: float) -> None:
        """A worker is dead, or could not be started; it is replaced while there are restarts left."""
        worker = self._workers[rank]
        self._last_error = error
        if worker.state == "ready":
            self._dispatcher.leave(rank, error)
            self._take_aside()
        worker.turns, worker.stale, worker.outbox, worker.cancelled = 0, 0, [], []
        if self.restarts < self.rules.faults.restarts:
            self.restarts += 1
            worker.state, worker.since = "starting", now
            self._look_at = min(self._look_at, now + self.rules.faults.start_s)
            self.on_restart(error)
            self.transport.start(self.role, rank)
        else:
            self._give_up(worker)

    def forget(self) -> None:
        """Drop all that is under way, for a caller that gave up: workers are told with their next turn."""
        for worker in self._workers.values():
            if self.rules.lasting and worker.state == "ready":
                worker.cancelled += self._dispatcher.keys_of(worker.rank)
                self._changed[worker.rank] = worker
            worker.outbox, worker.stale = [], worker.turns
        self._begin()

    def state(self, now: float) -> RoleState:
        """How the role stands."""
        ready = [w for w in self._workers.values() if w.state == "ready"]
        return RoleState(
            role=self.role,
            workers=sum(w.state != "gone" for w in self._workers.values()),
            starting=sum(w.state == "starting" for w in self._workers.values()),
            busy=sum(w.turns > 0 for w in ready),
            waiting=self._dispatcher.waiting,
            held=self._dispatcher.held,
            room=max(0, self.backlog_limit - self._dispatcher.waiting),
            upstream=self.rules.upstream,
            idle_s=0.0 if self.last_done is None else now - self.last_done,
        )

    @property
    def backlog_limit(self) -> int:
        """How many keys may wait here before those upstream are held back."""
        return 64 + 16 * len(self._workers)

    @property
    def ranks(self) -> list[int]:
        """Workers that are there."""
        return [w.rank for w in self._workers.values() if w.state == "ready"]

    @property
    def starting(self) -> bool:
        """Whether a replacement is awaited."""
        return any(w.state == "starting" for w in self._workers.values())

    # -- inside --------------------------------------------------------------------------------------------

    def _end(self, outcome: Outcome) -> None:
        del self._payloads[outcome.key]
        self._ended.append(outcome)

    def _take_aside(self) -> None:
        aside: Mapping[str, str] = self._dispatcher.set_aside
        for key, error in aside.items():
            self._end(Outcome(self.role, key, error=error))
        self._dispatcher.set_aside = {}

    def _check_times(self, now: float) -> None:
        faults = self.rules.faults
        if now <= self._look_at:
            return
        for worker in self._workers.values():
            out = now - worker.since
            if worker.state == "ready" and worker.turns and out > faults.hang_s:
                self.transport.end(self.role, worker.rank)
                self.lost(worker.rank, f"no sign of life for {out:.0f} s", now)
            elif worker.state == "starting" and out > faults.start_s:
                self.transport.end(self.role, worker.rank)
                self._give_up(worker)
                self._last_error = f"its replacement was not there after {out:.0f} s"
        self._look_at = min(
            (
                w.since + (faults.start_s if w.state == "starting" else faults.hang_s)
                for w in self._workers.values()
                if w.turns or w.state == "starting"
            ),
            default=math.inf,
        )

    def _give_up(self, worker: _Worker) -> None:
        worker.state = "gone"
        self._gone += 1

    def _check_left(self) -> None:
        left = len(self._workers) - self._gone
        if left and (self.rules.faults.fewer or not self._gone):
            return
        if self.rules.ranks:
            raise RanksLost(f"{self.role}: a rank died ({self._last_error})")
        raise LostWorkers(
            f"{self.role}: {self._gone} of {len(self._workers)} workers are lost after {self.restarts} restarts "
            f"(cluster.faults.restarts={self.rules.faults.restarts}); the last: {self._last_error}; mend the cause and go "
            "on with --resume"
        )
