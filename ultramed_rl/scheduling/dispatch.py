"""Which worker of a role does what next.

add() --> waiting --> next() --> a worker with room, the least loaded --> done() | fail() | leave()
             ^                                                               |        |         |
             +--------- again, at most `attempts` times, the last alone -----(--------+---------+
                                                                        first answer counts; copies are cancelled
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from statistics import median_high


@dataclass(frozen=True)
class WorkItem:
    """Something to be done once. `size`: the room that it takes in a worker (an engine counts sequences, a scorer
    tokens); `load`: what it is expected to cost, in any unit."""

    key: str
    size: int
    load: float


@dataclass
class _Load:
    items: dict[str, WorkItem] = field(default_factory=dict)
    size: int = 0
    load: float = 0.0
    alone: bool = False  # with an item on its last attempt, and nothing beside it


@dataclass
class _Out:
    """An item that workers hold, and since when the first of them does."""

    item: WorkItem
    since: float
    alone: bool
    workers: set[int] = field(default_factory=set)


class Dispatcher:
    """Deals items to workers, known by a number, as they have room. Every item ends once: answered, or set aside with
    its error.

    Memory holds what waits and what is out, not what is done. Times are seconds of whatever clock the caller has.

    Args:
        room: what a worker is given at once; more than it computes at a time, so that it never waits.
        attempts: times that an item may fail, or be with a worker that dies, before it is set aside. On its last
            attempt it has a worker to itself, so that only an item that kills workers is set aside for it.
        copy_after: at the tail, an item that has been out for so many times the median item's seconds is given
            to an idle worker too; infinity: never.
    """

    def __init__(self, room: int, attempts: int = 3, copy_after: float = 3.0) -> None:
        assert room > 0 and attempts > 0 and copy_after > 1, (room, attempts, copy_after)
        self.room, self.attempts, self.copy_after = room, attempts, copy_after
        self.set_aside: dict[str, str] = {}
        self.closed = False  # no more will be added: from here on stragglers are worth a copy
        self._waiting: deque[WorkItem] = deque()
        self._suspects: deque[WorkItem] = deque()  # on their last attempt
        self._out: dict[str, _Out] = {}
        self._failures: dict[str, int] = {}
        self._workers: dict[int, _Load] = {}
        self._order: list[
            tuple[float, int]
        ] = []  # a heap of (load, worker); what is out of date is passed over
        self._cancelled: list[tuple[int, str]] = []
        self._durations: deque[float] = deque(maxlen=201)  # the latest ones

    # -- workers -------------------------------------------------------------------------------------------

    def join(self, number: int) -> None:
        """A worker is there, and empty."""
        assert number not in self._workers, number
        self._workers[number] = _Load()
        heapq.heappush(self._order, (0.0, number))

    def leave(self, number: int, error: str = "its worker is gone") -> None:
        """A worker is lost: what it held, and no other worker holds, is to be done again."""
        lost = self._workers.pop(number)
        self._cancelled = [(other, key) for other, key in self._cancelled if other != number]
        for key in lost.items:
            self._drop_copy(number, key, error)

    def keys_of(self, number: int) -> Collection[str]:
        """Items that this worker holds."""
        return self._workers[number].items.keys()

    # -- items ---------------------------------------------------------------------------------------------

    def add(self, item: WorkItem) -> None:
        """One more to be done."""
        assert item.key not in self._out and not self.closed, f"{item.key}: stands twice, or came late"
        self._waiting.append(item)

    def next(self, now: float) -> tuple[int, WorkItem] | None:
        """A worker and what it is to do next, or None while there is no room or nothing to do."""
        item: WorkItem | None = None
        # What may kill its worker waits for one that holds nothing, and gets nothing else beside it.
        number = next((n for n, w in self._workers.items() if not w.items), None) if self._suspects else None
        if number is not None:
            self._workers[number].alone, item = True, self._suspects.popleft()
        elif (number := self._least_loaded()) is not None:
            item = self._waiting.popleft() if self._waiting else self._straggler(number, now)
        if number is None or item is None:
            return None
        worker = self._workers[number]
        out = self._out.setdefault(item.key, _Out(item, now, worker.alone))
        out.workers.add(number)
        worker.items[item.key] = item
        worker.size += item.size
        self._set_load(number, worker.load + item.load)
        return number, item

    def done(self, number: int, key: str, now: float) -> bool:
        """A worker has answered: whether this is the item's first answer, the one that counts."""
        if not self._release(number, key):
            return False
        out = self._out.pop(key)
        for other in out.workers - {number}:  # copies that came second
            self._release(other, key)
            self._cancelled.append((other, key))
        self._durations.append(now - out.since)
        self._failures.pop(key, None)
        return True

    def fail(self, number: int, key: str, error: str) -> None:
        """A worker could not answer: the item is done again, or set aside after so many attempts."""
        if self._release(number, key):
            self._drop_copy(number, key, error)

    def cancelled(self) -> list[tuple[int, str]]:
        """Workers and keys that need no answer any more, each told once."""
        told, self._cancelled = self._cancelled, []
        return told

    @property
    def waiting(self) -> int:
        """Items that no worker holds."""
        return len(self._waiting) + len(self._suspects)

    @property
    def held(self) -> int:
        """Items that workers hold."""
        return len(self._out)

    # -- inside --------------------------------------------------------------------------------------------

    def _least_loaded(self) -> int | None:
        """The worker with the least load among those with room. Entries of the heap that are out of date, and workers
        that are full, are dropped on the way: a full one comes back with its next item that ends."""
        while self._order:
            load, number = self._order[0]
            worker = self._workers.get(number)
            if worker is not None and worker.load == load and worker.size < self.room and not worker.alone:
                return number
            heapq.heappop(self._order)
        return None

    def _straggler(self, number: int, now: float) -> WorkItem | None:
        """The item that has been out longest, for a worker that has nothing at all to do."""
        if not self.closed or self._workers[number].items or not self._durations:
            return None
        # In the order in which they went out. What has failed is never copied: it may kill the other one too, and
        # two that refuse it in turn would go on for ever.
        single = (o for o in self._out.values() if len(o.workers) == 1 and o.item.key not in self._failures)
        oldest = next(single, None)
        late = oldest is not None and now - oldest.since >= self.copy_after * median_high(self._durations)
        return oldest.item if oldest is not None and late else None

    def _release(self, number: int, key: str) -> bool:
        """Whether the worker held the item; its room is free."""
        worker = self._workers.get(number)
        item = None if worker is None else worker.items.pop(key, None)
        if worker is None or item is None:
            return False
        worker.alone = False
        worker.size -= item.size
        # Sums of floats drift; a worker without items has no load.
        self._set_load(number, worker.load - item.load if worker.items else 0.0)
        return True

    def _set_load(self, number: int, load: float) -> None:
        self._workers[number].load = load
        heapq.heappush(self._order, (load, number))
        if len(self._order) > 8 * len(self._workers) + 64:  # mostly out of date
            self._order = [(worker.load, n) for n, worker in self._workers.items()]
            heapq.heapify(self._order)

    def _drop_copy(self, number: int, key: str, error: str) -> None:
        """A try has failed. What another worker holds too is left to it; else it waits for its next try, in front, or
        for its last one, alone, and after that it is set aside."""
        out = self._out[key]
        out.workers.discard(number)
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        if out.workers:
            return
        del self._out[key]
        if failures < self.attempts - 1:
            self._waiting.appendleft(out.item)
        elif self.attempts > 1 and not out.alone:
            self._suspects.append(out.item)
        else:
            del self._failures[key]
            self.set_aside[key] = error
