"""What became of every record of a long stage, kept as it comes; any kill loses only what was not committed yet. That a stage has
one writer, and goes on with the inputs that it began with, its work directory sees to.

FOLDER/
  log.sqlite                       a row for each record by its place in the input
  rows.jsonl  failures.jsonl   written by `finish`, in the order of the input
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from ultramed_rl.store.atomic import explain_full_disk, json_line, remove_leftovers, write_whole
from ultramed_rl.store.digests import key_number

Status = Literal["keep", "drop", "failed"]
FILE = "log.sqlite"
COMMIT_RECORDS, COMMIT_S = 500, 20.0  # a commit after so many records, or when the oldest has waited so long
# Of one that failed and is to be done again, status is "retry" until it is.
_TABLES = """
CREATE TABLE IF NOT EXISTS expected (records INTEGER);
CREATE TABLE IF NOT EXISTS done (place INTEGER PRIMARY KEY, number INTEGER, status TEXT, reason TEXT, rows INTEGER, lines BLOB);
CREATE TEMP TABLE met (number INTEGER PRIMARY KEY, place INTEGER);
"""
_ADD = """INSERT INTO done VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (place) DO UPDATE SET
status = excluded.status, reason = excluded.reason, rows = excluded.rows, lines = excluded.lines WHERE done.status = 'retry'"""


@dataclass(frozen=True)
class Entry:
    """What became of a record. `number` is its key's; `lines` holds the JSON lines that it became, `rows` of them, or its
    failure."""

    place: int
    number: int
    status: Status
    reason: str = ""
    rows: int = 0
    lines: bytes = b""


def kept(place: int, key: str, rows: Sequence[Mapping[str, Any]]) -> Entry:
    """A record that became these rows, none or many. Raises TypeError for a value that JSON has not."""
    lines = b"".join(map(json_line, rows))
    return Entry(place, _number(key), "keep", rows=len(rows), lines=lines)


def dropped(place: int, key: str, reason: str) -> Entry:
    """A record that was left out on purpose."""
    return Entry(place, _number(key), "drop", _printable(reason))


def failed(place: int, key: str, reason: str, detail: str, row: Mapping[str, Any]) -> Entry:
    """A record that could not be done, with the row that it came from; what JSON has not is written as text."""
    failure = {"key": key, "reason": reason, "detail": detail, "row": dict(row)}
    return Entry(place, _number(key), "failed", _printable(reason), lines=json_line(failure, default=str))


@dataclass(frozen=True)
class Tally:
    """Records by status: `kept` ones, which became `rows`, and the others by reason."""

    kept: int = 0
    rows: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Records that have a status."""
        return self.kept + sum(self.drops.values()) + sum(self.failures.values())


class RecordLog:
    """The one writer of a stage's results. Use as a context: its end commits what waits."""

    def __init__(self, folder: Path, *, retry_failed: bool = False, batch: int = COMMIT_RECORDS) -> None:
        """Begin in `folder`, or take up what is there.

        Args:
            retry_failed: failed records count as not done. Until one is done again its failure is kept.
            batch: records of a commit, the most.

        Raises:
            ValueError: the results in it are damaged.
            RuntimeError: the disk is full.
        """
        self.folder, self._batch = folder, batch
        self.rows_path, self.failures_path = folder / "rows.jsonl", folder / "failures.jsonl"
        self.met = 0  # keys, by this process
        self._waiting, self._since, self._expected = 0, 0.0, -1
        self._counts: Counter[tuple[str, str]] = Counter()  # records by status and reason
        self._rows = 0
        folder.mkdir(parents=True, exist_ok=True)
        # One thread at a time, of whoever carries the records.
        self._database = sqlite3.connect(folder / FILE, check_same_thread=False)
        try:
            with self._explained():
                self._take_up(retry_failed)
        except BaseException:
            self._database.close()
            raise

    @property
    def finished(self) -> bool:
        """Whether all records of the input, which has been read to its end once, are done."""
        return self.tally.done == self._expected

    @property
    def tally(self) -> Tally:
        """All records so far, of earlier runs too."""
        drops, failures = (
            {reason: count for (status, reason), count in sorted(self._counts.items()) if status == wanted}
            for wanted in ("drop", "failed")
        )
        return Tally(self._counts["keep", ""], self._rows, drops, failures)

    def meet(self, key: str) -> int:
        """The place, from 0, at which `key` was met first: the number of keys before this call if it is new. Places are kept on
        disk, so that memory doesn't grow with them."""
        number = _number(key)
        self._database.execute("INSERT OR IGNORE INTO met VALUES (?, ?)", (number, self.met))
        self.met += 1
        (first,) = self._database.execute("SELECT place FROM met WHERE number = ?", (number,)).fetchone()
        return int(first)

    def holds(self, place: int, key: str) -> bool:
        """Whether the record at this place of the input, from 0, is done. Raises ValueError: another record stood there
        when it was done."""
        find = "SELECT number, status FROM done WHERE place = ?"
        number, status = self._database.execute(find, (place,)).fetchone() or (None, "retry")
        if number not in (None, _number(key)):
            raise ValueError(
                f"{self.folder}: record {place + 1} of the input is {key!r} and was another one before; give the "
                "same input in the same order, or delete the folder to begin anew"
            )
        return bool(status != "retry")

    def add(self, entry: Entry) -> None:
        """Keep what became of a record that is not done. Raises RuntimeError: the disk is full."""
        with self._explained():
            new = self._database.execute(_ADD, astuple(entry)).rowcount
        assert new == 1, f"record {entry.place} is done twice"
        self._counts[entry.status, entry.reason] += 1
        self._rows += entry.rows
        self._since = self._since if self._waiting else time.monotonic()
        self._waiting += 1
        if self._waiting >= self._batch or time.monotonic() - self._since >= COMMIT_S:
            self.flush()

    def flush(self) -> None:
        """Commit what waits. Raises like `add`."""
        if self._waiting:
            with self._explained():
                self._database.commit()
            self._waiting = 0

    def expect(self, records: int) -> None:
        """The input has ended, and had so many records. Raises ValueError: more of them are done."""
        (done,) = self._database.execute("SELECT COALESCE(MAX(place) + 1, 0) FROM done").fetchone()
        if done > records:
            raise ValueError(
                f"{self.folder}: holds results of {done} records, and the input has {records}; give "
                "the same input, or delete the folder to begin anew"
            )
        with self._explained():
            self._database.execute("DELETE FROM expected")
            self._database.execute("INSERT INTO expected VALUES (?)", (records,))
            self._database.commit()
        self._expected, self._waiting = records, 0

    def finish(self) -> Path:
        """Write the rows and failures in the order of the input; returns the rows' path.

        The files depend on the entries alone, not on when and in how many runs they came.

        Raises:
            ValueError: `expect` was never called, or records are not done.
            RuntimeError: the disk is full.
        """
        if not self.finished:
            missing = "it is not known how many" if self._expected < 0 else self._expected - self.tally.done
            raise ValueError(
                f"{self.folder}: not all records are done ({missing} open); run the stage again to go on"
            )
        self.flush()
        for path, failed in ((self.rows_path, False), (self.failures_path, True)):
            write_whole(path, partial(self._write_lines, failed))
        return self.rows_path

    def close(self) -> None:
        """Commit what waits."""
        try:
            self.flush()
        finally:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_up(self, retry_failed: bool) -> None:
        # No WAL: the folder may be on a file system that several machines share.
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.executescript(_TABLES)
        to_do = ("retry", "failed") if retry_failed else ("failed", "retry")
        self._database.execute("UPDATE done SET status = ? WHERE status = ?", to_do)
        self._database.commit()
        (expected,) = self._database.execute("SELECT MAX(records) FROM expected").fetchone()
        self._expected = -1 if expected is None else expected
        count = "SELECT status, reason, COUNT(*), SUM(rows) FROM done WHERE status != 'retry' GROUP BY status, reason"
        for status, reason, records, rows in self._database.execute(count):
            self._counts[status, reason] = records
            self._rows += rows
        remove_leftovers(self.folder)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Within, what SQLite raises is told as this class tells it."""
        file = self.folder / FILE
        try:
            with explain_full_disk(file):
                yield
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{file}: not what was written ({error}); put it back, or delete it to have its records done again"
            ) from error

    def _write_lines(self, failed: bool, path: Path) -> None:
        query = "SELECT lines FROM done WHERE (status = 'failed') = ? ORDER BY place"
        with path.open("wb") as file:
            file.writelines(lines for (lines,) in self._database.execute(query, (failed,)))


def _number(key: str) -> int:
    """63 bits of a key's hash, which SQLite holds: of a million keys two share one with probability 5e-8."""
    return key_number(key) >> 1


def _printable(reason: str) -> str:
    return reason.encode("utf-8", "replace").decode()
