"""Which engine answers which prompt next: pure bookkeeping, no clock and no Ray of its own.

waiting tickets --> next() --> an engine with room, the least loaded --> done() | fail() | leave()
                      ^                                                    |        |         |
                      +------------ again, at most `attempts` times -------(--------+---------+
                                                                           first answer counts; copies are cancelled
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ticket:
    """A prompt to be answered. `sequences`: its answers, which take room in an engine; `load`: the tokens that they
    are expected to cost."""

    key: str
    sequences: int
    load: float


@dataclass(frozen=True)
class DispatchRules:
    """How tickets are dealt.

    Args:
        room: sequences that an engine is given at once; more than it computes at a time, so that it never waits.
        attempts: times that a ticket may fail, or be with an engine that dies, before it is set aside.
        copy_after: at the tail, a ticket that has been out for so many times the median ticket's seconds is given
            to an idle engine too; infinity: never.
    """

    room: int
    attempts: int = 3
    copy_after: float = 3.0

    def __post_init__(self) -> None:
        assert self.room > 0 and self.attempts > 0 and self.copy_after > 1, self


@dataclass
class _Out:
    """A ticket that engines hold, and since when the first of them does."""

    ticket: Ticket
    since: float
    engines: set[str] = field(default_factory=set)


class Dispatcher:
    """Deals tickets to engines as they have room. Every ticket ends once: answered, or set aside with its error.

    Tickets are taken from their iterator as there is room, so that memory holds those that are out, however many
    there are. Times are seconds of whatever clock the caller has.
    """

    def __init__(self, tickets: Iterable[Ticket], rules: DispatchRules) -> None:
        self.rules = rules
        self.set_aside: dict[str, str] = {}
        self.answered = 0
        self._source: Iterator[Ticket] = iter(tickets)
        self._again: deque[Ticket] = deque()
        self._out: dict[str, _Out] = {}
        self._failures: dict[str, int] = {}
        self._held: dict[str, dict[str, Ticket]] = {}  # by engine
        self._loads: dict[str, float] = {}
        self._sequences: dict[str, int] = {}
        self._order: list[
            tuple[float, str]
        ] = []  # a heap of (load, engine); what is out of date is passed over
        self._cancelled: list[tuple[str, str]] = []
        self._durations: list[float] = []  # the latest ones
        self._exhausted = False

    # -- engines -------------------------------------------------------------------------------------------

    def join(self, engine: str) -> None:
        """An engine is there, and empty."""
        assert engine not in self._held, engine
        self._held[engine], self._loads[engine], self._sequences[engine] = {}, 0.0, 0
        heapq.heappush(self._order, (0.0, engine))

    def leave(self, engine: str, error: str = "its engine is gone") -> None:
        """An engine is lost: what it held, and no other engine holds, is to be done again."""
        held = self._held.pop(engine)
        del self._loads[engine], self._sequences[engine]
        self._cancelled = [(other, key) for other, key in self._cancelled if other != engine]
        for key in held:
            self._drop_copy(engine, key, error)

    # -- tickets -------------------------------------------------------------------------------------------

    def next(self, now: float) -> tuple[str, Ticket] | None:
        """An engine and what it is to do next, or None while there is no room or nothing to do."""
        engine = self._least_loaded()
        if engine is None:
            return None
        ticket = self._take()
        if ticket is None:
            ticket = self._straggler(engine, now)
        if ticket is None:
            return None
        out = self._out.setdefault(ticket.key, _Out(ticket, now))
        out.engines.add(engine)
        self._held[engine][ticket.key] = ticket
        self._sequences[engine] += ticket.sequences
        self._add_load(engine, ticket.load)
        return engine, ticket

    def done(self, engine: str, key: str, now: float) -> bool:
        """An engine has answered: whether this is the ticket's first answer, the one that counts."""
        if not self._release(engine, key):
            return False
        out = self._out.pop(key)
        out.engines.discard(engine)
        for other in out.engines:  # copies that came second
            self._release(other, key)
            self._cancelled.append((other, key))
        self._note_duration(now - out.since)
        self._failures.pop(key, None)
        self.answered += 1
        return True

    def fail(self, engine: str, key: str, error: str) -> None:
        """An engine could not answer: the ticket is done again, or set aside after so many attempts."""
        if self._release(engine, key):
            self._drop_copy(engine, key, error)

    def cancelled(self) -> list[tuple[str, str]]:
        """Engines and keys that need no answer any more, each told once."""
        told, self._cancelled = self._cancelled, []
        return told

    @property
    def finished(self) -> bool:
        """Whether every ticket was answered or set aside."""
        if self._out or self._again:
            return False
        if not self._exhausted:
            ticket = next(self._source, None)
            if ticket is not None:
                self._again.append(ticket)
                return False
            self._exhausted = True
        return True

    # -- inside --------------------------------------------------------------------------------------------

    def _least_loaded(self) -> str | None:
        """The engine with the least load among those with room; the heap is put right on the way."""
        full = []
        found = None
        while self._order:
            load, engine = self._order[0]
            if self._loads.get(engine) != load:
                heapq.heappop(self._order)
            elif self._sequences[engine] >= self.rules.room:
                full.append(heapq.heappop(self._order))
            else:
                found = engine
                break
        for entry in full:
            heapq.heappush(self._order, entry)
        return found

    def _take(self) -> Ticket | None:
        if self._again:
            return self._again.popleft()
        if self._exhausted:
            return None
        ticket = next(self._source, None)
        self._exhausted = ticket is None
        assert ticket is None or ticket.key not in self._out, f"{ticket and ticket.key}: stands twice"
        return ticket

    def _straggler(self, engine: str, now: float) -> Ticket | None:
        """The ticket that has been out longest, for an engine that has nothing at all to do."""
        if self._held[engine] or not self._durations:
            return None
        usual = sorted(self._durations)[len(self._durations) // 2]
        alone = (out for out in self._out.values() if len(out.engines) == 1 and engine not in out.engines)
        oldest = min(alone, key=lambda out: out.since, default=None)
        if oldest is None or now - oldest.since < self.rules.copy_after * usual:
            return None
        return oldest.ticket

    def _release(self, engine: str, key: str) -> bool:
        """Whether the engine held the ticket; its room is free."""
        ticket = self._held.get(engine, {}).pop(key, None)
        if ticket is None:
            return False
        self._sequences[engine] -= ticket.sequences
        self._add_load(engine, -ticket.load)
        return True

    def _add_load(self, engine: str, load: float) -> None:
        # Sums of floats drift; an engine without tickets has no load.
        self._loads[engine] = self._loads[engine] + load if self._held[engine] else 0.0
        heapq.heappush(self._order, (self._loads[engine], engine))
        if len(self._order) > 8 * len(self._loads) + 64:  # mostly out of date
            self._order = [(load, name) for name, load in self._loads.items()]
            heapq.heapify(self._order)

    def _drop_copy(self, engine: str, key: str, error: str) -> None:
        out = self._out[key]
        out.engines.discard(engine)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if out.engines:
            return
        del self._out[key]
        if failures < self.rules.attempts:
            self._again.append(out.ticket)
        else:
            del self._failures[key]
            self.set_aside[key] = error

    def _note_duration(self, seconds: float) -> None:
        self._durations.append(seconds)
        if len(self._durations) > 201:
            del self._durations[:100]
