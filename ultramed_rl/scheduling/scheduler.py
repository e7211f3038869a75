"""All roles' pools over one transport: one place to wait, whoever answers first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ultramed_rl.scheduling.pool import Event, Outcome, Pool, PoolRules, Transport
from ultramed_rl.tracking.stall import RoleState, StallWatch
from ultramed_rl.tracking.timeline import Span

T = TypeVar("T")
_LOOK_EVERY_S = 5.0
_AWAY_S = 5.0  # longer than any wait of `outcomes`: its caller did something else


class Watcher:
    """Who is told of the scheduler's work; this one does nothing with it."""

    def span(self, span: Span) -> None:
        """A worker's turn."""

    def restarted(self, role: str, error: str) -> None:
        """A worker is being replaced."""

    def set_aside(self, role: str) -> None:
        """A key is given up with its error."""

    def look(self, states: Sequence[RoleState], stalled: str | None) -> None:
        """How the roles stand, every few seconds; `stalled` says who waits for whom if nothing moves."""


def feed(source: Iterator[T], has_capacity: Callable[[], bool], offer: Callable[[T], None]) -> bool:
    """Offer items for as long as there is room; whether there may be more."""
    while has_capacity():
        item = next(source, None)
        if item is None:
            return False
        offer(item)
    return True


class Scheduler:
    """Pools by role. What is offered to a pool comes back from `outcomes`, once for each key."""

    def __init__(self, transport: Transport) -> None:
        self.transport, self.watcher = transport, Watcher()
        self.pools: dict[str, Pool] = {}
        self._phase = ""  # under which turns are told
        self._unread: dict[str, float] = {}  # roles that are held back, and since when
        self._stall = StallWatch(transport.now)
        self._looked = self._pumped = -1e9

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Turns that end within are told under this name: whoever has work done says what it is."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def open(self, role: str, ranks: list[int], rules: PoolRules) -> Pool:
        """The pool of a role whose workers of these ranks are there."""
        pool = Pool(role, ranks, rules, self.transport, lambda error: self.watcher.restarted(role, error))
        self.pools[role] = pool
        return pool

    def outcomes(self, timeout: float = 1.0) -> list[Outcome]:
        """What has ended in any pool.

        Consumes reports and losses. Where nothing has ended it waits for the first of them, up to `timeout` seconds; any
        report, loss or replacement unblocks it, and a hang is found by the next call after its time.

        Raises:
            LostWorkers, RanksLost: a role cannot go on.
        """
        self._pump()
        ended = self._take()
        self._handle(self.transport.events(0.0 if ended else timeout, self._unread))
        if not ended:
            self._pump()
            ended = self._take()
        now = self.transport.now()
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            states = [pool.state(now) for pool in self.pools.values()]
            self.watcher.look(states, self._stall.look(states))
        return ended

    def stream(self, pool: Pool, source: Iterator[T], offer: Callable[[T], None]) -> Iterator[Outcome]:
        """What one pool makes of a source, as it comes, while no other has work. Items are taken, and given to
        `offer`, as there is room; what is under way when the caller gives up is dropped."""
        more = True
        try:
            while more or pool.unfinished:
                if more and not (more := feed(source, lambda: pool.has_capacity, offer)):
                    pool.close()
                if pool.unfinished:
                    yield from self.outcomes()
        finally:
            if pool.unfinished:
                pool.forget()

    def hold(self, role: str, back: bool) -> None:
        """Leave a role's reports unread while those downstream are behind, or read them again. So a driver that is
        ahead of its scorers keeps no answers: they stay with the workers, who get no further turn until these are read."""
        if back:
            self._unread.setdefault(role, self.transport.now())
        elif role in self._unread:
            now = self.transport.now()
            self.pools[role].excuse(now, now - self._unread.pop(role))

    def forget(self) -> None:
        """Drop all that is under way, for a caller that gave up."""
        for pool in self.pools.values():
            if pool.unfinished:
                pool.forget()
        for role in list(self._unread):
            self.hold(role, False)

    # -- inside --------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        now = self.transport.now()
        listened = [pool for role, pool in self.pools.items() if role not in self._unread]
        if now - self._pumped > _AWAY_S:  # nobody listened: what workers said meanwhile is still to be read
            self._stall.restart()
            for pool in listened:
                pool.excuse(now, now - self._pumped)
        self._pumped = now
        for pool in listened:
            pool.pump(now)

    def _take(self) -> list[Outcome]:
        ended = [outcome for pool in self.pools.values() for outcome in pool.outcomes()]
        for outcome in ended:
            if outcome.error:
                self.watcher.set_aside(outcome.role)
        return ended

    def _handle(self, events: Sequence[Event]) -> None:
        now = self.transport.now()
        for event in events:
            pool, report = self.pools[event.role], event.report
            if report is not None:
                pool.reported(event.rank, report, now)
                worker, times = f"{event.role}-{event.rank}", (report.started, report.ended)
                self.watcher.span(Span(event.role, worker, self._phase, *times, len(report.done)))
            elif event.started:
                pool.started(event.rank)
            else:
                pool.lost(event.rank, event.error, now)
