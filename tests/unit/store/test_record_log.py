"""The log of a long stage: nothing lost, nothing twice, and final files that don't show how they came about."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.data.sources import read_rows
from ultramed_rl.store import record_log
from ultramed_rl.store.digests import key_number
from ultramed_rl.store.record_log import FILE, Entry, RecordLog, Tally, dropped, failed, kept


def entry(place: int) -> Entry:
    """What becomes of record `place`: kept as none, one or two rows; dropped for one of two reasons; or failed."""
    key, kind = f"k{place}", place % 6
    if kind < 3:
        return kept(place, key, [{"id": key, "n": n} for n in range(kind)])
    if kind < 5:
        return dropped(place, key, "easy" if kind == 3 else "short")
    return failed(place, key, "unanswered", "status 500", {"id": key})


def fill(log: RecordLog, places: list[int]) -> None:
    for place in places:
        if not log.holds(place, f"k{place}"):
            log.add(entry(place))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def die(log: RecordLog) -> None:
    """As a killed process does: what waits is lost."""
    log._database.close()


def final_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("rows.jsonl", "failures.jsonl")}


def test_final_files_hold_the_records_in_input_order_and_their_counts(tmp_path: Path) -> None:
    with RecordLog(tmp_path, batch=2) as log:
        fill(log, [5, 2, 0, 4, 1, 3])
        log.expect(6)
        path = log.finish()
    assert path.read_text() == '{"id": "k1", "n": 0}\n{"id": "k2", "n": 0}\n{"id": "k2", "n": 1}\n'
    assert list(read_rows(str(path))) == lines(path)
    failure = {"key": "k5", "reason": "unanswered", "detail": "status 500", "row": {"id": "k5"}}
    assert lines(tmp_path / "failures.jsonl") == [failure]
    assert log.tally == Tally(3, 3, {"easy": 1, "short": 1}, {"unanswered": 1})


@settings(max_examples=40, deadline=None)
@given(data=st.data(), records=st.integers(0, 40))
def test_kills_orders_and_part_sizes_never_show_in_the_final_files(
    data: st.DataObject, records: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")
    with RecordLog(whole) as log:
        fill(log, list(range(records)))
        log.expect(records)
        log.finish()
    durable: set[int] = set()
    for _ in range(data.draw(st.integers(0, 4))):
        size = data.draw(st.integers(1, 9))
        todo = data.draw(st.permutations(range(records)))[: data.draw(st.integers(0, records))]
        log = RecordLog(broken, batch=size)
        assert {p for p in range(records) if log.holds(p, f"k{p}")} == durable
        new = [place for place in todo if place not in durable]
        fill(log, todo)
        durable |= set(new[: len(new) // size * size])
        assert log.tally.done == len(durable | set(new))
        die(log)
    with RecordLog(broken) as log:
        assert log.tally.done == len(durable)
        fill(log, data.draw(st.permutations(range(records))))
        log.expect(records)
        log.finish()
    assert final_files(broken) == final_files(whole)


def test_records_are_committed_by_count_and_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for name, batch, age in (("count", 3, 60.0), ("age", 100, 0.0)):
        monkeypatch.setattr(record_log, "COMMIT_S", age)
        log = RecordLog(tmp_path / name, batch=batch)
        for place in range(4):
            log.add(entry(place))
        die(log)
        with RecordLog(tmp_path / name) as log:
            found[name] = log.tally.done
    assert found == {"count": 3, "age": 4}


def test_failures_are_done_again_only_on_demand_and_replaced_by_what_they_become(tmp_path: Path) -> None:
    with RecordLog(tmp_path) as log:
        fill(log, list(range(12)))
        log.expect(12)
        log.finish()
    with RecordLog(tmp_path) as log:
        assert log.holds(5, "k5") and log.finished
    with RecordLog(tmp_path, retry_failed=True) as log:
        assert [p for p in range(12) if not log.holds(p, f"k{p}")] == [5, 11]
        log.add(kept(5, "k5", [{"id": "k5", "n": 7}]))
    with RecordLog(tmp_path, retry_failed=True) as log:
        assert not log.finished
    with RecordLog(tmp_path) as log:  # the failure that was not retried still counts
        assert log.tally == Tally(7, 7, {"easy": 2, "short": 2}, {"unanswered": 1})
        log.expect(12)
        log.finish()
    assert [row["id"] for row in lines(tmp_path / "rows.jsonl")] == ["k1", "k2", "k2", "k5", "k7", "k8", "k8"]
    assert [failure["key"] for failure in lines(tmp_path / "failures.jsonl")] == ["k11"]


def test_a_finished_log_knows_that_it_is_and_writes_the_same_files_again(tmp_path: Path) -> None:
    with RecordLog(tmp_path) as log:
        fill(log, list(range(6)))
        assert not log.finished
        log.expect(6)
        assert log.finished
        log.finish()
    before = final_files(tmp_path)
    (tmp_path / "rows.jsonl").write_text("cut")
    with RecordLog(tmp_path) as log:
        assert log.finished
        log.finish()
    assert final_files(tmp_path) == before


@pytest.mark.parametrize("renamed", range(2))
def test_a_kill_while_the_final_files_are_written_leaves_no_half_of_one(
    tmp_path: Path, renamed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows and the failures take their names in turn."""
    with RecordLog(tmp_path / "whole") as log:
        fill(log, list(range(6)))
        log.expect(6)
        log.finish()
    with RecordLog(tmp_path / "broken") as log:
        fill(log, list(range(3)))
    log, left = RecordLog(tmp_path / "broken"), renamed
    fill(log, list(range(6)))
    log.expect(6)
    rename = os.replace

    def killing(source: Path, target: Path) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        rename(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", killing)
        log.finish()
    die(log)
    for path in (tmp_path / "broken").glob("[!.]*.jsonl"):
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    with RecordLog(tmp_path / "broken") as log:
        fill(log, list(range(6)))
        log.finish()
    assert final_files(tmp_path / "broken") == final_files(tmp_path / "whole")


@pytest.mark.parametrize("expected", [None, 5], ids=["untold", "short"])
def test_an_unfinished_stage_makes_no_final_files(tmp_path: Path, expected: int | None) -> None:
    with RecordLog(tmp_path) as log:
        fill(log, [0, 1, 2, 4])
        if expected:
            log.expect(expected)
        with pytest.raises(
            ValueError, match=rf"^{re.escape(str(tmp_path))}: .*\({'1 ' if expected else '[^0-9]'}"
        ):
            log.finish()
        assert not log.finished and not log.rows_path.exists()


def another_record(folder: Path) -> None:
    with RecordLog(folder) as log:
        log.holds(2, "k3")


def a_shorter_input(folder: Path) -> None:
    with RecordLog(folder) as log:
        log.expect(3)


def a_damaged_database(folder: Path) -> None:
    (folder / FILE).write_bytes(b"SQLite format 3" * 100)
    RecordLog(folder)


@pytest.mark.parametrize(
    ("misuse", "words"),
    [
        (another_record, r": record 3 .*'k3'"),
        (a_shorter_input, r": .*\b4 .*\b3\b"),
        (a_damaged_database, rf"/{FILE}: .*\("),
    ],
)
def test_results_of_something_else_are_refused_in_one_line(
    tmp_path: Path, misuse: Callable[[Path], None], words: str
) -> None:
    with RecordLog(tmp_path) as log:
        fill(log, list(range(4)))
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}{words}") as caught:
        misuse(tmp_path)
    assert "\n" not in str(caught.value)
    RecordLog(tmp_path / "other").close()


def test_a_full_disk_is_told_with_the_file_and_what_to_do(tmp_path: Path) -> None:
    log = RecordLog(tmp_path)
    log._database.execute("PRAGMA max_page_count = 4")
    with pytest.raises(RuntimeError, match=rf"/{FILE}: .*--resume"):
        for place in range(1000):
            log.add(kept(place, f"k{place}", [{"text": "x" * 1000}]))
    die(log)


def test_the_folder_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """Its half transaction goes with it."""
    log = RecordLog(tmp_path, batch=2)
    fill(log, [0, 1, 2])
    journal = (tmp_path / f"{FILE}-journal").read_bytes()
    half = (tmp_path / FILE).read_bytes()
    die(log)
    (tmp_path / FILE).write_bytes(half)
    (tmp_path / f"{FILE}-journal").write_bytes(journal)
    with RecordLog(tmp_path) as log:
        assert [place for place in range(3) if log.holds(place, f"k{place}")] == [0, 1]
    with sqlite3.connect(tmp_path / FILE) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_record_is_never_done_twice(tmp_path: Path) -> None:
    with RecordLog(tmp_path) as log:
        log.add(entry(0))
        with pytest.raises(AssertionError, match="^record 0 "):
            log.add(entry(0))


def test_what_text_files_cannot_hold_is_written_so_that_json_readers_can(tmp_path: Path) -> None:
    row = {"half": "\ud83d", "line": "a\u2028b\n", "none": float("nan"), "é": "ü"}
    with RecordLog(tmp_path) as log:
        log.add(kept(0, "\ud800", [row, {"é": "ü"}]))
        log.add(failed(1, "b", "bad \udfff", "", {"image": b"\x00", "when": {1}}))
        log.expect(2)
        log.finish()
    first, second = lines(tmp_path / "rows.jsonl")
    assert first == {**row, "none": None}
    assert second == {"é": "ü"} and "ü".encode() in (tmp_path / "rows.jsonl").read_bytes()
    [failure] = lines(tmp_path / "failures.jsonl")
    assert failure["row"] == {"image": "b'\\x00'", "when": "{1}"}
    with pytest.raises(TypeError, match=r"\bbytes\b"):
        kept(0, "a", [{"image": b"\x00"}])


@settings(max_examples=25, deadline=None)
@given(keys=st.lists(st.text(max_size=2), max_size=300))
def test_every_key_is_found_at_its_first_place(
    keys: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = dict[str, int]()
    with RecordLog(tmp_path_factory.mktemp("log")) as log:
        assert [log.meet(key) for key in keys] == [first.setdefault(key, i) for i, key in enumerate(keys)]


def test_a_keys_number_is_the_same_in_every_version() -> None:
    # The first 8 bytes of SHA-256 of "abc", from FIPS 180-2's example.
    assert key_number("abc") == 0xBA7816BF8F01CFEA
