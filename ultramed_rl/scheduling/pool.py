"""A role's workers behind a dispatcher: turns out, answers in, the dead replaced.

offer() --> Dispatcher --> WorkBatch --> transport --> worker --> WorkResult --> Outcome, once for each key
               ^                                    |
               +---- what a lost worker held <------+--> transport.start(): a new one, at most `restarts` times

A worker's turn begins with what was dealt to it since the last one, and ends with a report. Engines go on with their
requests over several turns, and have two turns at once, so that one begins while the driver reads the other's report.
Scorers answer all of a turn within it: while they compute, the next turn's requests gather.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

from ultramed_rl.actors.work import WorkBatch, WorkResult
from ultramed_rl.config.cluster import Faults
from ultramed_rl.scheduling.dispatch import Dispatcher, WorkItem
from ultramed_rl.tracking.stall import RoleState


class LostWorkers(RuntimeError):
    """A role has no workers left, or fewer than it may go on with."""


class RanksLost(RuntimeError):
    """A rank of a group that computes together died. The others wait for it in vain: all of them must start again."""


@dataclass(frozen=True)
class PoolRules:
    """How a role works.

    Args:
        room: what a worker is given at once, in the unit of its items' sizes.
        lasting: whether requests outlast a turn, as in an engine that answers many side by side.
        upstream: roles that this one is fed by, for those who ask why it waits.
        ranks: the worker is ranks that compute together and that others start again: their loss is RanksLost.
    """

    faults: Faults
    room: int
    lasting: bool = False
    upstream: tuple[str, ...] = ()
    ranks: bool = False


@dataclass(frozen=True)
class Outcome:
    """The end of a key: its value, or the error for which it was set aside after all attempts."""

    role: str
    key: str
    value: Any = None
    error: str = ""


@dataclass(frozen=True)
class Event:
    """What a transport has to tell of a worker: a report, or that it is there again, or else lost with an error."""

    role: str
    rank: int
    report: WorkResult | None = None
    started: bool = False
    error: str = ""


class Transport(Protocol):
    """The way to workers, which are known by role and rank; and the clock."""

    def send(self, role: str, rank: int, work: WorkBatch) -> None:
        """Give a worker a turn; its report, or its loss, is an event."""
        ...

    def start(self, role: str, rank: int) -> None:
        """Begin to replace a worker; that it is there, or won't come, is an event."""
        ...

    def placed(self, role: str, rank: int) -> bool:
        """Whether a worker that is being started has found its place in the cluster."""
        ...

    def end(self, role: str, rank: int) -> None:
        """End a worker now; nothing more is heard of it until it is started again."""
        ...

    def events(self, timeout: float, unread: Collection[str] = ()) -> list[Event]:
        """What has happened, waiting for the first of it up to `timeout` seconds; never much at once. News of `unread`
        roles stay where they are."""
        ...

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
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

    def __init__(
        self,
        role: str,
        ranks: list[int],
        rules: PoolRules,
        transport: Transport,
        on_restart: Callable[[str], None] = lambda error: None,
    ) -> None:
        """`on_restart` is told of the error for which a worker is replaced."""
        self.role, self.rules, self.transport, self.on_restart = role, rules, transport, on_restart
        self.restarts = 0
        self._allowed = 0 if rules.ranks else rules.faults.restarts
        self._last_done: float | None = None
        self._workers = {rank: _Worker(rank) for rank in ranks}
        self._last_error, self._gone = "", 0
        self._changed: dict[int, _Worker] = {}  # since the last pump: there may be something to send
        self._look_at = math.inf  # no worker hangs, and no replacement is late, before
        self._begin()

    def _begin(self) -> None:
        copy_after = 3.0 if self.rules.lasting else math.inf
        self._dispatcher = Dispatcher(self.rules.room, self.rules.faults.attempts, copy_after)
        self._payloads: dict[str, Any] = {}
        self._ended: list[Outcome] = []
        for rank in self.ranks:
            self._dispatcher.join(rank)

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
        return self._free_places > 0

    @property
    def _free_places(self) -> int:
        """How many more keys may wait here before those upstream are held back. What workers hold doesn't count: the
        queue is there so that none of them waits for the driver, and needs to be no longer than that."""
        return 64 + 16 * len(self._workers) - self._dispatcher.waiting

    def outcomes(self) -> list[Outcome]:
        """What has ended since the last time. When all has, stragglers are forgotten and offers are taken anew."""
        ended, self._ended = self._ended, []
        if not self._payloads:
            self._dispatcher.closed = False
        return ended

    def pump(self, now: float) -> None:
        """Deal what waits, send turns, replace what hangs.

        Raises:
            LostWorkers, RanksLost: no worker is left to do what is to be done.
        """
        self._check_times(now)
        while (dealt := self._dispatcher.next(now)) is not None:
            rank, item = dealt
            worker = self._changed[rank] = self._workers[rank]
            worker.outbox.append((item.key, self._payloads[item.key]))
        for rank, key in self._dispatcher.cancelled():
            worker = self._changed[rank] = self._workers[rank]
            unsent = [(k, payload) for k, payload in worker.outbox if k != key]
            if len(unsent) == len(worker.outbox) and self.rules.lasting:
                worker.cancelled.append(key)
            worker.outbox = unsent
        changed, self._changed = self._changed, {}
        for worker in changed.values():
            self._send(worker, now)
        self._check_left()

    def _send(self, worker: _Worker, now: float) -> None:
        """A turn for a worker that has one free. Without anything new there is none, but for an engine that holds
        requests: it must go on with them, and what it finishes comes with the turn's report."""
        lasting = self.rules.lasting
        if worker.state != "ready" or worker.turns >= (2 if lasting else 1):
            return
        idle = not (worker.outbox or worker.cancelled)
        if idle and not (lasting and self._dispatcher.keys_of(worker.rank)):
            return
        # Longer where there are many workers, so that the driver can keep up with their reports.
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
        worker = self._changed[rank] = self._workers[rank]
        worker.turns -= 1
        worker.since = now
        if worker.stale:
            worker.stale -= 1
            return
        for key, value in report.done:
            if self._dispatcher.done(rank, key, now):
                self._end(Outcome(self.role, key, value))
                self._last_done = now
        for key, error in report.failed:
            self._dispatcher.fail(rank, key, error)
        self._take_aside()

    def excuse(self, now: float, away: float) -> None:
        """Nobody listened for `away` seconds: they don't count against anybody."""
        for worker in self._workers.values():
            worker.since = min(now, worker.since + away)

    def started(self, rank: int) -> None:
        """A replacement is there."""
        self._workers[rank] = _Worker(rank)
        self._dispatcher.join(rank)

    def lost(self, rank: int, error: str, now: float, *, replace: bool = True) -> None:
        """A worker is dead, or could not be started; it is replaced while there are restarts left."""
        was_ready = self._workers[rank].state == "ready"
        worker = self._workers[rank] = _Worker(rank, "gone")
        self._changed.pop(rank, None)
        self._last_error = error
        if was_ready:
            self._dispatcher.leave(rank, error)
            self._take_aside()
        if replace and self.restarts < self._allowed:
            self.restarts += 1
            worker.state, worker.since = "starting", now
            self._look_at = min(self._look_at, now + self.rules.faults.start_s)
            self.on_restart(error)
            self.transport.start(self.role, rank)
        else:
            self._gone += 1

    def forget(self) -> None:
        """Drop all that is under way, for a caller that gave up. Engines are told with their next turn; reports of turns
        that are out now speak of keys that may be offered again, and are not believed."""
        for worker in self._workers.values():
            if self.rules.lasting and worker.state == "ready":
                worker.cancelled += self._dispatcher.keys_of(worker.rank)
                self._changed[worker.rank] = worker
            worker.outbox, worker.stale = [], worker.turns
        self._begin()

    # -- how it stands -------------------------------------------------------------------------------------

    def state(self, now: float) -> RoleState:
        """How the role stands."""
        states = [worker.state for worker in self._workers.values()]
        return RoleState(
            role=self.role,
            workers=len(states) - states.count("gone"),
            starting=states.count("starting"),
            busy=sum(self._workers[rank].turns > 0 for rank in self.ranks),
            waiting=self._dispatcher.waiting,
            held=self._dispatcher.held,
            room=max(0, self._free_places),
            upstream=self.rules.upstream,
            idle_s=0.0 if self._last_done is None else now - self._last_done,
        )

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
        set_aside, self._dispatcher.set_aside = self._dispatcher.set_aside, {}
        for key, error in set_aside.items():
            self._end(Outcome(self.role, key, error=error))

    def _check_times(self, now: float) -> None:
        """A turn that takes longer than `hang_s` is a hang: its worker is ended and replaced. So is a replacement that has a
        place and isn't there after `start_s`. One that has no place by then finds none: its node is gone."""
        if now <= self._look_at:
            return
        faults, self._look_at = self.rules.faults, math.inf
        for worker in list(self._workers.values()):
            out = now - worker.since
            if worker.state == "ready" and worker.turns and out > faults.hang_s:
                self.transport.end(self.role, worker.rank)
                self.lost(worker.rank, f"no sign of life for {out:.0f} s", now)
            elif worker.state == "starting" and out > faults.start_s:
                placed = self.transport.placed(self.role, worker.rank)
                self.transport.end(self.role, worker.rank)
                error = f"its replacement was not there after {out:.0f} s"
                self.lost(worker.rank, error, now, replace=placed)
            elif worker.state == "starting":
                self._look_at = min(self._look_at, worker.since + faults.start_s)
            elif worker.turns:
                self._look_at = min(self._look_at, worker.since + faults.hang_s)

    def _check_left(self) -> None:
        total = len(self._workers)
        if not self._gone or (self._gone < total and self.rules.faults.allow_fewer_workers):
            return
        if self.rules.ranks:
            raise RanksLost(f"{self.role}: a rank died ({self._last_error})")
        raise LostWorkers(
            f"{self.role}: {self._gone} of {total} workers are lost after {self.restarts} restarts "
            f"(cluster.faults.restarts={self._allowed}); the last: {self._last_error}; mend the cause and go on with "
            "--resume"
        )
