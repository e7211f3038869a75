"""Carrying a step over records: with any generator, through any end, every record exactly once."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.numbered_step import (
    GENERATORS,
    AtOnce,
    Budget,
    NumberedStep,
    Window,
    answer,
    expected,
    found,
    request,
    rows_of,
    run,
)
from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.runner import MALFORMED, run_step
from ultramed_rl.data.factory.step import Ask, Drop, End, Keep, Row, send
from ultramed_rl.records import ChatReply, ChatRequest
from ultramed_rl.store.record_log import RecordLog

pytestmark = pytest.mark.timeout(300)  # a deadlock


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(GENERATORS)),
    count=st.integers(0, 60),
    size=st.integers(1, 12),
    workers=st.integers(1, 12),
    budgets=st.lists(st.integers(0, 20), max_size=4),
)
def test_with_any_generator_and_any_ends_every_record_is_done_once_and_in_order(
    kind: str,
    count: int,
    size: int,
    workers: int,
    budgets: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, asked = tmp_path_factory.mktemp("log"), list[str]()
    for left in [*budgets, 10**9]:
        budget = Budget(left)
        result = run(folder, GENERATORS[kind](size, budget), count, workers)
        assert result.usage.requests == len(budget.asked)
        assert len(set(budget.asked)) == len(budget.asked), "a request was asked twice in one run"
        assert budget.most_held <= workers
        asked += budget.asked
    assert not result.stopped and result.tally.done == count
    assert found(folder) == expected(count)
    # Only what was open at an end is asked again: at most three requests of each open record.
    assert len(asked) - len(set(asked)) <= 3 * workers * len(budgets)
    again = Budget()
    assert not run(folder, AtOnce(size, again), count, workers).stopped and not again.asked


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("misfit: no JSON (at character 7)", "unanswered_misfit"),
        ("truncated", "unanswered_truncated"),
        ("HTTP 500 of 10.0.0.7", "unanswered"),
    ],
)
def test_unanswered_requests_are_counted_by_the_errors_name_never_by_its_words(
    tmp_path: Path, error: str, reason: str
) -> None:
    class Wrong(AtOnce):
        async def reply(self, request: ChatRequest) -> ChatReply:
            return ChatReply(request.key, "", error)

    with RecordLog(tmp_path) as log:
        result = run_step(NumberedStep(), rows_of(3), Wrong(), log)
        log.finish()
    assert result.tally.failures == {reason: 1}
    assert json.loads((tmp_path / "failures.jsonl").read_text())["detail"] == error


@pytest.mark.parametrize("kind", sorted(GENERATORS))
def test_a_generator_that_ends_early_leaves_the_rest_undone_and_says_so(tmp_path: Path, kind: str) -> None:
    result = run(tmp_path, GENERATORS[kind](4, Budget(10)), 50, 8)
    assert result.stopped.startswith("left=0: ") and result.usage.requests == 10
    assert 0 < result.tally.done < 50 and not (tmp_path / "rows.jsonl").exists()


def test_records_that_need_no_model_never_touch_the_generator(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "n": n} for n in (0, 1, 5, 6)]
    with RecordLog(tmp_path) as log:
        result = run_step(NumberedStep(), rows, None, log)
    assert not result.stopped and (result.tally.kept, result.tally.drops) == (2, {"easy": 2})


def test_rows_are_taken_only_as_there_is_room_for_them(tmp_path: Path) -> None:
    taken, done, most = 0, 0, 0

    def rows() -> Iterator[Row]:
        nonlocal taken, most
        for row in rows_of(100):
            taken += 1
            most = max(most, taken - done)
            yield row

    def advance(count: int) -> None:
        nonlocal done
        done += count

    with RecordLog(tmp_path) as log:
        run_step(NumberedStep(), rows(), Window(3), log, workers=5, advance=advance)
    assert (taken, done, most) == (100, 100, 5)


def test_the_second_record_of_a_key_is_a_dead_letter_in_a_resumed_run_too(tmp_path: Path) -> None:
    rows = [{"id": name, "n": 6 + i} for i, name in enumerate("abcab")]
    for left in (0, 1, 10):
        with RecordLog(tmp_path) as log:
            result = run_step(NumberedStep(), rows, AtOnce(1, Budget(left)), log, workers=1)
        assert bool(result.stopped) == (left < 10)
    with RecordLog(tmp_path) as log:
        log.expect(5)
        log.finish()
    letters = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
    assert [(letter["key"], letter["reason"]) for letter in letters] == [
        ("a", "duplicate_key"),
        ("b", "duplicate_key"),
    ]
    assert [re.findall(r"\d+", letter["detail"]) for letter in letters] == [["4", "1"], ["5", "2"]]
    assert result.tally.kept == 3


@dataclass
class Fragile:
    """Raises on every record from `first` to `last`."""

    first: int
    last: int

    async def __call__(self, row: Row, ask: Ask) -> End:
        if self.first <= row["n"] <= self.last:
            raise KeyError("question")
        return Keep(({"n": row["n"]},))


def test_a_step_that_raises_on_everything_stops_with_one_line_and_leaves_no_failures(
    tmp_path: Path,
) -> None:
    with (
        RecordLog(tmp_path) as log,
        pytest.raises(ValueError, match=r"\b20 .*\bKeyError.*'r19'.*question") as caught,
    ):
        run_step(Fragile(0, 999), rows_of(1000), None, log)
    assert "\n" not in str(caught.value)
    with RecordLog(tmp_path) as log:
        assert log.tally.done == 0
        assert not run_step(Fragile(0, -1), rows_of(30), None, log).stopped


@pytest.mark.parametrize(("first", "last", "count"), [(0, 18, 30), (1, 999, 1000), (0, 18, 19)])
def test_a_step_that_raises_on_some_records_goes_on_and_keeps_their_letters(
    tmp_path: Path, first: int, last: int, count: int
) -> None:
    with RecordLog(tmp_path) as log:
        result = run_step(Fragile(first, last), rows_of(count), None, log)
        log.finish()
    raised = len(range(first, min(last + 1, count)))
    assert result.tally.failures == {"KeyError": raised} and result.tally.kept == count - raised


def test_records_that_a_step_does_not_read_are_failures_and_say_nothing_against_the_step(
    tmp_path: Path,
) -> None:
    class Picky:
        async def __call__(self, row: Row, ask: Ask) -> End:
            raise Misfit("no question", name="order")

    with RecordLog(tmp_path) as log:
        result = run_step(Picky(), rows_of(40), None, log)
        log.finish()
    assert result.tally.failures == {MALFORMED: 40}
    first = json.loads((tmp_path / "failures.jsonl").read_text().splitlines()[0])
    assert (first["reason"], first["detail"]) == (MALFORMED, "no question")


def test_a_resumed_run_goes_through_a_bad_stretch_since_the_step_has_worked(tmp_path: Path) -> None:
    for count in (5, 60):
        with RecordLog(tmp_path) as log:
            result = run_step(Fragile(5, 40), rows_of(count), None, log)
    assert not result.stopped and result.tally.failures == {"KeyError": 36}


class Odd:
    """What a careless step may end in."""

    ends: dict[str, object] = {
        "none": None,
        "sleeper": None,
        "no json": Keep(({"image": b"\x00"},)),
        "no tuple": Keep({"n": 1}),  # type: ignore[arg-type]
        "good": Keep(({"n": 1},)),
    }

    async def __call__(self, row: Row, ask: Ask) -> End:
        if row["id"] == "sleeper":
            await asyncio.sleep(0)
        return self.ends[row["id"]]  # type: ignore[return-value]


def test_ends_and_names_that_are_none_are_failures_and_no_crash(tmp_path: Path) -> None:
    rows = [{"id": name} for name in Odd.ends] + [{"id": "half \ud800"}, {}]
    with RecordLog(tmp_path) as log:
        result = run_step(Odd(), rows, None, log)
    assert not result.stopped and result.tally.kept == 1
    assert result.tally.failures == {"KeyError": 1, "Misfit": 1, "TypeError": 3, "ValueError": 1}


def test_usage_adds_up_what_the_replies_say(tmp_path: Path) -> None:
    class Priced(Window):
        async def reply(self, request: ChatRequest) -> ChatReply:
            reply = await super().reply(request)
            return ChatReply(reply.key, reply.text, reply.error, 5, 7, cached=reply.key == "r7#0")

    # r2 to r4 of NumberedStep: 1, 2 (but raises after 1) and 3 questions; r7: 1; r12: 1, which fails.
    rows = [{"id": f"r{n}", "n": n} for n in (2, 3, 4, 7, 12)]
    with RecordLog(tmp_path) as log:
        usage = run_step(NumberedStep(), rows, Priced(2), log).usage
    assert (usage.requests, usage.errors, usage.cached) == (7, 1, 1)
    assert (usage.prompt_tokens, usage.completion_tokens) == (35, 49)


def test_a_generator_that_fails_keeps_what_was_done_before(tmp_path: Path) -> None:
    class Fails(AtOnce):
        async def reply(self, request: ChatRequest) -> ChatReply:
            if self.budget.asked:
                raise RuntimeError("the engine died")
            return await super().reply(request)

    with RecordLog(tmp_path) as log:
        with pytest.raises(RuntimeError, match="the engine died"):
            run_step(NumberedStep(), rows_of(20), Fails(), log, workers=4)
        done = log.tally.done
        log._database.rollback()  # what a kill would take now
    with RecordLog(tmp_path) as log:
        assert log.tally.done == done > 0
    assert not run(tmp_path, Window(3), 20, 4).stopped and found(tmp_path) == expected(20)


def test_a_run_that_is_interrupted_ends_at_once_and_keeps_what_was_done(tmp_path: Path) -> None:
    """Also where no step ever waits for anything."""

    class Interrupts:
        async def __call__(self, row: Row, ask: Ask) -> End:
            if row["n"] == 100:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return Drop("easy")

    with RecordLog(tmp_path) as log:
        with pytest.raises(KeyboardInterrupt):
            run_step(Interrupts(), ({"id": str(n), "n": n} for n in itertools.count()), None, log)
        done = log.tally.done
        log._database.rollback()  # what a kill would take now
    with RecordLog(tmp_path) as log:
        assert log.tally.done == done > 100


def test_a_step_can_be_carried_where_a_loop_runs_already(tmp_path: Path) -> None:
    """As in a notebook."""

    async def cell() -> None:
        assert not run(tmp_path, Window(3), 20, 4).stopped

    asyncio.run(cell())
    assert found(tmp_path) == expected(20)


# One interpreter loads everything, and a fork of it is the process that is killed.
KILLED = """
import os, signal, sys
from pathlib import Path
import pandas  # pyarrow looks for it when it makes its first table
from tests import numbered_step as t

left = 0

def tick():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def ticking(function):
    def called(*args, **kwargs):
        tick()
        result = function(*args, **kwargs)
        tick()
        return result
    return called

os.fsync, os.replace = ticking(os.fsync), ticking(os.replace)

class Ticking(t.Window):
    async def reply(self, request):
        tick()
        reply = await super().reply(request)
        tick()
        return reply

for left in map(int, sys.argv[2:]):
    child = os.fork()
    if not child:
        os._exit(bool(t.run(Path(sys.argv[1]), Ticking(5, seed=left), 120, 7, part=10).stopped))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code)
    if code == 0:
        break
"""


def run_killed(folder: Path, *ticks: int) -> list[int]:
    """Killed after so many ticks and begun anew, until it ends by itself: the exit codes."""
    command = [sys.executable, "-c", KILLED, str(folder), *map(str, ticks)]
    done = subprocess.run(command, cwd=Path(__file__).parents[4], capture_output=True, text=True, check=True)
    return [int(code) for code in done.stdout.split()]


def test_kill_9_anywhere_and_again_gives_the_same_bytes_as_one_unbroken_run(tmp_path: Path) -> None:
    assert run_killed(tmp_path / "whole", 0) == [0]
    assert found(tmp_path / "whole") == expected(120)
    drawn = random.Random(6)
    # The first kills fall into the first part; the others into replies, later parts and the final files.
    codes = run_killed(tmp_path / "broken", 3, 30, *(drawn.randrange(20, 150) for _ in range(12)), 0)
    assert codes.count(-signal.SIGKILL) >= 4 and codes[-1] == 0
    for name in ("rows.jsonl", "failures.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list((tmp_path / "broken").glob("**/.tmp-*"))


class Echo:
    """Keeps a record with the reply to its one question."""

    async def __call__(self, row: Row, ask: Ask) -> End:
        reply = await send(request("0 first"))
        return Keep(({"n": row["n"], "text": reply.text * 10},))


class Plain(AtOnce):
    async def reply(self, request: ChatRequest) -> ChatReply:
        return answer(request)


def peak_bytes(folder: Path, count: int) -> int:
    tracemalloc.start()
    with RecordLog(folder) as log:
        run_step(Echo(), rows_of(count), Plain(), log)
        log.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_grows_neither_by_keys_nor_by_rows(tmp_path: Path) -> None:
    peak_bytes(tmp_path / "warm", 1)  # what is imported late is no growth
    few, many = peak_bytes(tmp_path / "few", 3_000), peak_bytes(tmp_path / "many", 12_000)
    assert many - few < 10 * 9_000, (
        few,
        many,
    )  # a key kept would be five times as much; cycles await the collector
