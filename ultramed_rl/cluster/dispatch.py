"""Which worker does what next: pure bookkeeping, no clock and no Ray of its own.

add() --> waiting --> next() --> a worker with room, the least loaded --> done() | fail() | leave()
             ^                                                               |        |         |
             +--------- again, at most `attempts` times, the last alone -----(--------+---------+
                                                                        first answer counts; copies are cancelled
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

W = TypeVar("W", int, str)  # what a worker is known by


@dataclass(frozen=True)
class WorkItem:
    """Something to be done once. `size`: the room that it takes in a worker (an engine counts sequences, a scorer
    tokens); `load`: what it is expected to cost, in any unit."""

    key: str
    size: int
    load: float


@dataclass(frozen=True)
class DispatchRules:
    """How items are dealt.

    Args:
        room: what a worker is given at once; more than it computes at a time, so that it never waits.
        attempts: times that a item may fail, or be with a worker that dies, before it is set aside. On its last
            attempt it has a worker to itself, so that only a item that kills workers is set aside for it.
        copy_after: at the tail, a item that has been out for so many times the median item's seconds is given
            to an idle worker too; infinity: never.
    """

    room: int
    attempts: int = 3
    copy_after: float = 3.0

    def __post_init__(self) -> None:
        assert self.room > 0 and self.attempts > 0 and self.copy_after > 1, self


@dataclass
class _Out(Generic[W]):
    """A item that workers hold, and since when the first of them does."""

    item: WorkItem
    since: float
    alone: bool
    workers: set[W] = field(default_factory=set)


class Dispatcher(Generic[W]):
    """Deals items to workers as they have room. Every item ends once: answered, or set aside with its error.

    Workers are known by a number or a name. Memory holds what waits and what is out, not what is done. Times are
    seconds of whatever clock the caller has.
    """

    def __init__(self, rules: DispatchRules) -> None:
        self.rules = rules
        self.set_aside: dict[str, str] = {}
        self.answered = 0
        self.closed = False  # no more will be added: from here on stragglers are worth a copy
        self._waiting: deque[WorkItem] = deque()
        self._alone: deque[WorkItem] = deque()  # on their last attempt
        self._reserved: set[W] = set()  # workers that hold one of these
        self._out: dict[str, _Out[W]] = {}
        self._failures: dict[str, int] = {}
        self._held: dict[W, dict[str, WorkItem]] = {}  # by worker
        self._loads: dict[W, float] = {}
        self._sizes: dict[W, int] = {}
        self._order: list[
            tuple[float, W]
        ] = []  # a heap of (load, worker); what is out of date is passed over
        self._cancelled: list[tuple[W, str]] = []
        self._durations: list[float] = []  # the latest ones

    # -- workers -------------------------------------------------------------------------------------------

    def join(self, worker: W) -> None:
        """A worker is there, and empty."""
        assert worker not in self._held, worker
        self._held[worker], self._loads[worker], self._sizes[worker] = {}, 0.0, 0
        heapq.heappush(self._order, (0.0, worker))

    def leave(self, worker: W, error: str = "its worker is gone") -> None:
        """A worker is lost: what it held, and no other worker holds, is to be done again."""
        held = self._held.pop(worker)
        self._reserved.discard(worker)
        del self._loads[worker], self._sizes[worker]
        self._cancelled = [(other, key) for other, key in self._cancelled if other != worker]
        for key in held:
            self._drop_copy(worker, key, error)

    # -- items -------------------------------------------------------------------------------------------

    def add(self, item: WorkItem) -> None:
        """One more to be done."""
        assert item.key not in self._out and not self.closed, f"{item.key}: stands twice, or came late"
        self._waiting.append(item)

    def next(self, now: float) -> tuple[W, WorkItem] | None:
        """A worker and what it is to do next, or None while there is no room or nothing to do."""
        found = self._next_alone() or self._next_waiting(now)
        if found is None:
            return None
        worker, item = found
        out = self._out.setdefault(item.key, _Out[W](item, now, worker in self._reserved))
        out.workers.add(worker)
        self._held[worker][item.key] = item
        self._sizes[worker] += item.size
        self._add_load(worker, item.load)
        return worker, item

    def done(self, worker: W, key: str, now: float) -> bool:
        """A worker has answered: whether this is the item's first answer, the one that counts."""
        if not self._release(worker, key):
            return False
        out = self._out.pop(key)
        out.workers.discard(worker)
        for other in out.workers:  # copies that came second
            self._release(other, key)
            self._cancelled.append((other, key))
        self._note_duration(now - out.since)
        self._failures.pop(key, None)
        self.answered += 1
        return True

    def fail(self, worker: W, key: str, error: str) -> None:
        """A worker could not answer: the item is done again, or set aside after so many attempts."""
        if self._release(worker, key):
            self._drop_copy(worker, key, error)

    def cancelled(self) -> list[tuple[W, str]]:
        """Workers and keys that need no answer any more, each told once."""
        told, self._cancelled = self._cancelled, []
        return told

    @property
    def waiting(self) -> int:
        """Tickets that no worker holds."""
        return len(self._waiting) + len(self._alone)

    @property
    def held(self) -> int:
        """Tickets that workers hold."""
        return len(self._out)

    def keys_of(self, worker: W) -> list[str]:
        """Tickets that this worker holds."""
        return list(self._held.get(worker, ()))

    def holds(self, worker: W) -> int:
        """How many items this worker holds."""
        return len(self._held.get(worker, ()))

    @property
    def finished(self) -> bool:
        """Whether every item was answered or set aside."""
        return not (self._out or self._waiting or self._alone)

    # -- inside --------------------------------------------------------------------------------------------

    def _next_alone(self) -> tuple[W, WorkItem] | None:
        """A suspect, for a worker that holds nothing; it gets nothing else beside it."""
        if not self._alone:
            return None
        worker = next((name for name, held in self._held.items() if not held), None)
        if worker is None:
            return None
        self._reserved.add(worker)
        return worker, self._alone.popleft()

    def _next_waiting(self, now: float) -> tuple[W, WorkItem] | None:
        worker = self._least_loaded()
        if worker is None:
            return None
        item = self._waiting.popleft() if self._waiting else self._straggler(worker, now)
        return None if item is None else (worker, item)

    def _least_loaded(self) -> W | None:
        """The worker with the least load among those with room; the heap is put right on the way."""
        while self._order:
            load, worker = self._order[0]
            full = self._loads.get(worker) == load and (
                self._sizes[worker] >= self.rules.room or worker in self._reserved
            )
            if not full and self._loads.get(worker) == load:
                return worker
            heapq.heappop(self._order)  # one that is full comes back with its next item that ends
        return None

    def _straggler(self, worker: W, now: float) -> WorkItem | None:
        """The item that has been out longest, for a worker that has nothing at all to do."""
        if not self.closed or self._held[worker] or not self._durations:
            return None
        # In the order in which they went out. What has failed is never copied: it may kill the other one too, and
        # two that refuse it in turn would go on for ever.
        whole = (o for o in self._out.values() if len(o.workers) == 1 and o.item.key not in self._failures)
        oldest = next(whole, None)
        if oldest is None:
            return None
        usual = sorted(self._durations)[len(self._durations) // 2]
        return oldest.item if now - oldest.since >= self.rules.copy_after * usual else None

    def _release(self, worker: W, key: str) -> bool:
        """Whether the worker held the item; its room is free."""
        item = self._held.get(worker, {}).pop(key, None)
        if item is None:
            return False
        self._reserved.discard(worker)
        self._sizes[worker] -= item.size
        self._add_load(worker, -item.load)
        return True

    def _add_load(self, worker: W, load: float) -> None:
        # Sums of floats drift; a worker without items has no load.
        self._loads[worker] = self._loads[worker] + load if self._held[worker] else 0.0
        heapq.heappush(self._order, (self._loads[worker], worker))
        if len(self._order) > 8 * len(self._loads) + 64:  # mostly out of date
            self._order = [(load, name) for name, load in self._loads.items()]
            heapq.heapify(self._order)

    def _drop_copy(self, worker: W, key: str, error: str) -> None:
        out = self._out[key]
        out.workers.discard(worker)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if out.workers:
            return
        del self._out[key]
        if failures < self.rules.attempts - 1:
            self._waiting.appendleft(out.item)
        elif self.rules.attempts > 1 and not out.alone:
            self._alone.append(out.item)
        else:
            del self._failures[key]
            self.set_aside[key] = error

    def _note_duration(self, seconds: float) -> None:
        self._durations.append(seconds)
        if len(self._durations) > 201:
            del self._durations[:100]
