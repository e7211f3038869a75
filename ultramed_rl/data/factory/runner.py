"""Carries a step over a stream of records, with a generator that answers and a log that remembers.

rows --> step --+--> Keep | Drop | Fail --> log
          ^     |
          |     +--> request --> generator --> reply --+
          +--------------------------------------------+
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ultramed_rl.data.factory.feed import Feed, Generator
from ultramed_rl.data.factory.step import Ask, Drop, End, Fail, Keep, Row, Step
from ultramed_rl.records import ChatReply, ChatRequest
from ultramed_rl.store.record_log import Entry, KeyIndex, RecordLog, Tally, dead, dropped, kept

logger = logging.getLogger(__name__)

BROKEN_AFTER = 20
UNANSWERED = "unanswered"
DUPLICATE_KEY = "duplicate_key"


@dataclass(frozen=True)
class Usage:
    """What replies cost. Token counts are the models' own, so those of cached replies are 0."""

    replies: int = 0
    errors: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, reply: ChatReply) -> Usage:
        """With one more reply."""
        return Usage(
            self.replies + 1,
            self.errors + bool(reply.error),
            self.cached + reply.cached,
            self.prompt_tokens + reply.prompt_tokens,
            self.completion_tokens + reply.completion_tokens,
        )


@dataclass(frozen=True)
class StepResult:
    """How a step went: `tally` counts the records of all runs, `usage` the replies of this one.

    It is `complete` when every record of the input is done; otherwise the generator ended before.
    """

    complete: bool
    tally: Tally
    usage: Usage


def run_step(
    step: Step,
    rows: Iterable[Row],
    generator: Generator,
    log: RecordLog,
    *,
    key: Callable[[Row], str],
    in_flight: int = 256,
    advance: Callable[[int], None] | None = None,
) -> StepResult:
    """Carry `step` over `rows` until all are done or the generator ends; what the log holds is passed over.

    Rows are taken as there is room for them. `step`, `key`, `rows` and `log` are used in the calling thread
    only; the generator may take requests in that thread, or in others that have nothing else to do. Of records with one
    key the first counts, the others fail (duplicate_key). So does a record whose request could not be answered (unanswered; unanswered_misfit where
    the reply's error is "misfit: ..."), and one on which the step or `key` raises, by the exception's name.

    Args:
        key: a record's name, its own among all.
        in_flight: records open at once. A generator that holds more requests than this at once gets no more,
            and answers what it has.
        advance: told of each record that is done, those of earlier runs too.

    Raises:
        ValueError: the first 20 records all raised the same exception, and none was kept or dropped before;
            their failures are not kept. Also where the log is of another input.
        RuntimeError: the disk is full.
    """
    assert in_flight > 0, in_flight
    work = _Work(step, rows, log, key, in_flight, advance or (lambda _: None))
    try:
        complete = work.run(generator)
    finally:
        log.flush()
    return StepResult(complete, log.tally, work.usage)


@dataclass
class _Open:
    """A record, and the step under way with it once it has begun."""

    place: int
    key: str
    row: Row
    course: Coroutine[Any, Any, End] | None = None
    asked: int = 0


class _Work:
    def __init__(
        self,
        step: Step,
        rows: Iterable[Row],
        log: RecordLog,
        key: Callable[[Row], str],
        in_flight: int,
        advance: Callable[[int], None],
    ) -> None:
        self.step, self.log, self.key = step, log, key
        self.in_flight, self.advance = in_flight, advance
        self.rows: Iterator[Row] = iter(rows)
        self.exhausted, self.warned = False, False
        self.keys, self.usage = KeyIndex(), Usage()
        self.open: dict[str, _Open] = {}  # by the key of the request that each waits for
        self.feed = Feed()
        before = log.tally
        self.works = before.kept > 0 or bool(before.drops)  # the step has been seen to
        self.raised: list[Entry] = []  # of one exception, until it is seen

    def run(self, generator: Generator) -> bool:
        """Whether all records are done."""
        self._fill()
        while self.open:
            early = self._converse(generator)
            if self.open and early:
                break
            self.feed = self.feed.successor()
        self._keep_raised()
        if self.open:
            return False
        self.log.expect(len(self.keys))
        return True

    def _converse(self, generator: Generator) -> bool:
        """Requests and replies until the generator ends; whether it did so before its requests did."""
        replies = generator.replies(self.feed)
        try:
            for reply in replies:
                self._hear(reply)
                self._fill()
                if not self.open:
                    self.feed.close()
            unanswered = len(self.open) - len(self.feed)
            early = not self.feed.ended or unanswered > 0
            self._warn_of_hunger(early)
            return early
        finally:
            self.feed.close()
            if hasattr(replies, "close"):
                replies.close()

    def _warn_of_hunger(self, early: bool) -> None:
        if not early and not self.exhausted and not self.warned:
            self.warned = True
            logger.warning(
                "the generator took all requests of %d open records and waited for more; a larger in_flight keeps "
                "it busy",
                self.in_flight,
            )

    def _fill(self) -> None:
        """Open records while there is room and there are any."""
        while len(self.open) < self.in_flight and not self.exhausted:
            try:
                row = next(self.rows)
            except StopIteration:
                self.exhausted = True
            else:
                self._take(row)

    def _take(self, row: Row) -> None:
        place, error = len(self.keys), None
        try:
            name = self._name(row)
        except Exception as raised:
            name, error = f"record {place + 1}", raised
        first = self.keys.meet(name)
        if self.log.holds(place, name):
            self.advance(1)
        elif error is not None:
            self._add_raised(_Open(place, name, row), error)
        elif first != place:
            detail = f"record {place + 1} of the input has the key of record {first + 1}"
            self._add(dead(place, name, DUPLICATE_KEY, detail, row))
        else:
            self._go(_Open(place, name, row))

    def _name(self, row: Row) -> str:
        name = self.key(row)
        if not isinstance(name, str):
            raise TypeError(f"a record's key is text; this one is {name!r}")
        return name

    def _hear(self, reply: ChatReply) -> None:
        self.feed.heard()
        record = self.open.pop(reply.key, None)
        assert record is not None, f"reply to {reply.key!r}, which was not asked or is answered"
        self.usage = self.usage.plus(reply)
        if reply.error:
            self._add(dead(record.place, record.key, _reason(reply.error), reply.error, record.row))
        else:
            self._go(record, reply)

    def _go(self, record: _Open, reply: ChatReply | None = None) -> None:
        try:
            turn = self._turn(record, reply)
        except Exception as error:  # a bad record is no reason to stop the others
            self._add_raised(record, error)
            return
        if isinstance(turn, ChatRequest):
            self.open[turn.key] = record
            # Who has waited goes first: it is done sooner, and less is lost when the run is killed.
            self.feed.put(turn, first=reply is not None)
        else:
            self.works = True
            self._keep_raised()
            self._add(turn)

    def _turn(self, record: _Open, reply: ChatReply | None) -> ChatRequest | Entry:
        """What the step asks next, or how the record ends."""
        record.course = record.course or self.step(record.row, Ask(record.row))
        try:
            request = record.course.send(reply)
        except StopIteration as end:
            match end.value:
                case Keep(rows):
                    return kept(record.place, record.key, rows)
                case Drop(reason):
                    return dropped(record.place, record.key, reason)
                case Fail(reason, detail):
                    return dead(record.place, record.key, reason, detail, record.row)
            raise TypeError(f"a step ends in Keep, Drop or Fail, not in {end.value!r}") from None
        if not isinstance(request, ChatRequest):
            raise TypeError(f"a step awaits `ask` alone, not {request!r}")
        record.asked += 1
        return replace(request, key=f"{record.key}#{record.asked - 1}")

    def _add(self, entry: Entry) -> None:
        self.log.add(entry)
        self.advance(1)

    def _add_raised(self, record: _Open, error: Exception) -> None:
        entry = dead(record.place, record.key, type(error).__name__, str(error), record.row)
        self.works |= any(other.reason != entry.reason for other in self.raised)
        self.raised.append(entry)
        if self.works:
            self._keep_raised()
        elif len(self.raised) == BROKEN_AFTER:
            raise ValueError(
                f"the first {BROKEN_AFTER} records all raised {entry.reason}, at last by {record.key!r}: "
                f"{' '.join(str(error).split())}; mend the step or the rows and run it again"
            ) from error

    def _keep_raised(self) -> None:
        while self.raised:
            self._add(self.raised.pop(0))


def _reason(error: str) -> str:
    """To count by: the error's own name, where it begins with one, and none of its words."""
    name = error.partition(":")[0]
    return f"{UNANSWERED}_{name}" if name.isidentifier() else UNANSWERED
