"""Carries a step over a stream of records, with a generator that answers and a log that remembers.

rows --> `workers` tasks, a record each: step --+--> Keep | Drop | Fail --> log
                                          ^     |
                                          |     +--> request --> generator --> reply --+
                                          +--------------------------------------------+
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.step import Ask, Drop, End, Fail, Generator, Keep, Row, Step, name_of
from ultramed_rl.http.generator import BudgetSpent, Usage
from ultramed_rl.http.session import running
from ultramed_rl.records import ChatRequest
from ultramed_rl.store.record_log import Entry, RecordLog, Tally, dropped, failed, kept

BROKEN_AFTER = 20
UNANSWERED = "unanswered"
DUPLICATE_KEY = "duplicate_key"
MALFORMED = "malformed_record"


@dataclass(frozen=True)
class StepResult:
    """How a step went: `tally` counts the records of all runs, `usage` the replies of this one. `stopped` says why the
    generator answered no more; it is empty where every record of the input is done."""

    tally: Tally
    usage: Usage
    stopped: str = ""


def run_step(
    step: Step,
    rows: Iterable[Row],
    generator: Generator | None,
    log: RecordLog,
    *,
    workers: int = 256,
    advance: Callable[[int], None] = lambda _: None,
) -> StepResult:
    """Carry `step` over `rows` until all are done or the generator's budget is spent; what the log holds is passed over.

    All is used in one thread, which is not the caller's. Of records with one name (see `name_of`) the first counts, the
    others fail (duplicate_key). So does a record that isn't what the step reads (malformed_record), one whose request could
    not be answered (unanswered; unanswered_misfit where the reply's error is "misfit: ..."), and one on which the step
    raises, by the exception's name.

    Args:
        generator: None for a step that asks nobody.
        workers: records open at once, each with one request under way.
        advance: told of each record that is done, those of earlier runs too.

    Raises:
        ValueError: the first 20 records all raised the same exception, and none was kept or dropped before;
            their failures are not kept. Also where the log is of another input.
        RuntimeError: the disk is full, or the generator can't go on.
    """
    before = log.tally
    works = before.kept > 0 or bool(before.drops)
    run = _StepRun(step, enumerate(rows), generator, log, advance, works)
    try:
        with running(generator.close if generator else None) as start:
            start(run.carry_all(workers)).result()
    finally:
        log.flush()
    return StepResult(log.tally, run.usage, run.stopped)


@dataclass
class _StepRun:
    """What the workers share."""

    step: Step
    rows: Iterator[tuple[int, Row]]
    generator: Generator | None
    log: RecordLog
    advance: Callable[[int], None]
    works: bool  # the step has been seen to
    usage: Usage = field(default_factory=Usage)
    stopped: str = ""
    raised: list[Entry] = field(default_factory=list)  # of one exception, until the step is seen to work

    async def carry_all(self, workers: int) -> None:
        await asyncio.gather(*(self._work() for _ in range(workers)))
        self._add_all_raised()
        if not self.stopped:
            self.log.expect(self.log.met)

    async def _work(self) -> None:
        """Consumes rows, one at a time; waits for the replies to its record's requests; ends after the last row, or
        where the budget is spent, which leaves its record undone."""
        for place, row in self.rows:
            try:
                await self._carry(place, row)
            except BudgetSpent as spent:
                self.stopped = str(spent)
            if self.stopped:
                return
            await asyncio.sleep(0)  # the others' turn, and a cancel's, where nothing was asked

    async def _carry(self, place: int, row: Row) -> None:
        """A record to its end. Until something is asked nothing is awaited, so that keys are met in order."""
        try:
            key, error = name_of(row), None
        except Exception as raised:
            key, error = f"record {place + 1}", raised
        first = self.log.meet(key)
        if self.log.holds(place, key):
            self.advance(1)
        elif error is not None:
            self._add_raised(place, key, row, error)
        elif first != place:
            detail = f"record {place + 1} of the input has the key of record {first + 1}"
            self._add(failed(place, key, DUPLICATE_KEY, detail, row))
        else:
            await self._converse(place, key, row)

    async def _converse(self, place: int, key: str, row: Row) -> None:
        """Between step and generator: what the step raises is the record's end, what the generator raises the run's."""
        course, reply, asked = None, None, 0
        while True:
            try:
                course = course or self.step(row, Ask(row))
                try:
                    turn = course.send(reply)
                except StopIteration as ended:
                    turn = ended.value
                except Misfit as misfit:
                    turn = Fail(MALFORMED, str(misfit))
                entry = None if isinstance(turn, ChatRequest) else _entry(place, key, row, turn)
            except Exception as error:  # a bad record is no reason to stop the others
                self._add_raised(place, key, row, error)
                return
            if entry is not None:
                self.works = True
                self._add_all_raised()
                self._add(entry)
                return
            assert self.generator is not None, f"{key}: this step asks no model"
            reply = await self.generator.reply(replace(turn, key=f"{key}#{asked}"))
            self.usage.add(reply)
            asked += 1
            if reply.error:  # counted by its own name, where it begins with one, and by none of its words
                name = reply.error.partition(":")[0]
                reason = f"{UNANSWERED}_{name}" if name.isidentifier() else UNANSWERED
                self._add(failed(place, key, reason, reply.error, row))
                return

    def _add(self, entry: Entry) -> None:
        self.log.add(entry)
        self.advance(1)

    def _add_raised(self, place: int, key: str, row: Row, error: Exception) -> None:
        entry = failed(place, key, type(error).__name__, str(error), row)
        self.works |= any(other.reason != entry.reason for other in self.raised)
        self.raised.append(entry)
        if self.works:
            self._add_all_raised()
        elif len(self.raised) == BROKEN_AFTER:
            raise ValueError(
                f"the first {BROKEN_AFTER} records all raised {entry.reason}, at last by {key!r}: "
                f"{' '.join(str(error).split())}; mend the step or the rows and run it again"
            ) from error

    def _add_all_raised(self) -> None:
        while self.raised:
            self._add(self.raised.pop(0))


def _entry(place: int, key: str, row: Row, end: End) -> Entry:
    match end:
        case Keep(rows):
            return kept(place, key, rows)
        case Drop(reason):
            return dropped(place, key, reason)
        case Fail(reason, detail):
            return failed(place, key, reason, detail, row)
    raise TypeError(f"a step awaits `ask` alone and ends in Keep, Drop or Fail, not in {end!r}")
