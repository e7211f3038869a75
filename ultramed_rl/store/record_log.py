"""What became of every record of a long stage, kept as it comes; any kill loses only what was not written yet.

FOLDER/
  inputs.json           digest of what the stage is made from
  parts/000000.parquet  entries by place in the input; append-only; a later part's entry replaces an earlier one's
  rows.jsonl  dead_letters.jsonl  manifest.json       written by `finish`
"""

from __future__ import annotations

import fcntl
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from ultramed_rl.store.artifacts import read_json
from ultramed_rl.store.atomic import remove, remove_leftovers, write_json, write_whole
from ultramed_rl.store.digests import digest_inputs, digest_path
from ultramed_rl.store.entries import Entry, merge_entries, read_heads, write_entries
from ultramed_rl.store.keys import key_number


@dataclass(frozen=True)
class Tally:
    """Records by fate: `kept` ones, which became `rows`, and the others by reason."""

    kept: int = 0
    rows: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Records that have a fate."""
        return self.kept + sum(self.drops.values()) + sum(self.dead_letters.values())


@dataclass(frozen=True)
class PartSize:
    """When a part is written: at so many records or bytes, or when the oldest has waited so long."""

    records: int = 2000
    seconds: float = 60.0
    bytes: int = 64 << 20


class RecordLog:
    """The one writer of a stage's results. Use as a context: its end writes what waits.

    A record is known by its place in the input, and by 8 bytes of its key's hash; with what it came to this is 12
    bytes in memory for each. Rows are in memory until their part is written.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Sequence[Any] = (),
        *,
        retry_dead: bool = False,
        part: PartSize | None = None,
    ) -> None:
        """Begin in `folder`, or take up what is there.

        Args:
            inputs: what the results depend on, as for `ArtifactFolder.phase`.
            retry_dead: forget that failed records were done. Until one is done again its failure is kept.

        Raises:
            ValueError: the results in it are of other inputs, a part of it is broken, or it is in use.
            RuntimeError: the disk is full.
        """
        self.folder, self._part = folder, part or PartSize()
        self._waiting: list[Entry] = []
        self._waiting_bytes, self._since = 0, 0.0  # and when the first of them came
        self._numbers, self._fates = array("Q"), array("I")  # by place; 0 is none
        self._names: dict[tuple[str, str], int] = {}  # of a fate and its reason: the code in _fates
        self._rows, self._expected = 0, -1
        self._files: list[tuple[int, Path]] = []  # first place and path
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        try:
            self._take_up(digest_inputs(inputs), retry_dead)
        except BaseException:
            self._lock.close()
            raise

    @property
    def rows_path(self) -> Path:
        """Where the kept rows are once the log is finished."""
        return self.folder / "rows.jsonl"

    @property
    def dead_letters_path(self) -> Path:
        """Where the failures are once the log is finished."""
        return self.folder / "dead_letters.jsonl"

    @property
    def finished(self) -> bool:
        """Whether the final files are written and nothing was added since."""
        return all(path.is_file() for path in (self._manifest, self.rows_path, self.dead_letters_path))

    @property
    def tally(self) -> Tally:
        """All records so far, of earlier runs too."""
        counts = np.bincount(np.asarray(self._fates), minlength=len(self._names) + 1)
        named = {name: int(counts[code]) for name, code in sorted(self._names.items()) if counts[code]}
        by_reason = {
            fate: {reason: count for (other, reason), count in named.items() if other == fate}
            for fate in ("drop", "dead")
        }
        return Tally(named.get(("keep", ""), 0), self._rows, by_reason["drop"], by_reason["dead"])

    def holds(self, place: int, key: str) -> bool:
        """Whether the record at this place of the input, from 0, is done.

        Raises:
            ValueError: another record stood there when it was done.
        """
        if place >= len(self._numbers) or not self._numbers[place]:
            return False
        if self._numbers[place] != key_number(key):
            raise ValueError(
                f"{self.folder}: record {place + 1} of the input is {key!r} and was another one before; give the "
                "same input in the same order, or delete the folder to begin anew"
            )
        return bool(self._fates[place])

    def add(self, entry: Entry) -> None:
        """Keep what became of a record that is not done.

        Raises:
            RuntimeError: the disk is full.
        """
        self._note(entry)
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting.append(entry)
        self._waiting_bytes += len(entry.lines)
        if (
            len(self._waiting) >= self._part.records
            or self._waiting_bytes >= self._part.bytes
            or time.monotonic() - self._since >= self._part.seconds
        ):
            self.flush()

    def flush(self) -> None:
        """Write what waits as one more part. Raises like `add`."""
        if not self._waiting:
            return
        remove(self._manifest)
        number = int(self._files[-1][1].stem) + 1 if self._files else 0
        path = self.folder / "parts" / f"{number:06d}.parquet"
        write_whole(path, lambda temporary: write_entries(self._waiting, temporary))
        self._files.append((min(entry.place for entry in self._waiting), path))
        self._waiting, self._waiting_bytes = [], 0

    def expect(self, records: int) -> None:
        """The input has ended, and had so many records.

        Raises:
            ValueError: more of them are done.
        """
        if len(self._numbers) > records:
            raise ValueError(
                f"{self.folder}: holds results of {len(self._numbers)} records, and the input has {records}; give "
                "the same input, or delete the folder to begin anew"
            )
        self._expected = records

    def finish(self) -> Path:
        """Write the rows and failures in the order of the input, and the manifest; returns the rows' path.

        The files depend on the entries alone, not on when and in how many runs they came. What is finished
        already, and as it was written, stays.

        Raises:
            ValueError: `expect` was not called since the log was opened, or records are not done.
            RuntimeError: the disk is full.
        """
        tally = self.tally
        if tally.done != self._expected:
            missing = "it is not known how many" if self._expected < 0 else self._expected - tally.done
            raise ValueError(
                f"{self.folder}: not all records are done ({missing} open); run the stage again to go on"
            )
        self.flush()
        if not self.finished or read_json(self._manifest) != self._account(tally):
            remove(self._manifest)
            write_whole(
                self.rows_path,
                lambda rows: write_whole(
                    self.dead_letters_path, lambda letters: self._write_files(rows, letters)
                ),
            )
            write_json(self._manifest, self._account(tally))
        return self.rows_path

    def close(self) -> None:
        """Write what waits, and let others write here."""
        try:
            self.flush()
        finally:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _manifest(self) -> Path:
        return self.folder / "manifest.json"

    def _take_up(self, digest: str, retry_dead: bool) -> None:
        remove_leftovers(self.folder)
        known = self.folder / "inputs.json"
        if not known.is_file():
            write_json(known, {"inputs": digest})
        if (before := read_json(known)["inputs"]) != digest:
            raise ValueError(
                f"{self.folder}: holds results of other inputs ({before[:12]}, now {digest[:12]}); "
                "delete the folder to begin anew"
            )
        for path in sorted((self.folder / "parts").glob("*.parquet")):
            heads = read_heads(path)
            self._files.append((heads[0].place, path))
            for entry in heads:
                self._note(entry, again=True)
        if retry_dead:
            self._forget_dead()

    def _note(self, entry: Entry, again: bool = False) -> None:
        """Remember a fate; only that of a failure may be noted `again`."""
        missing = entry.place + 1 - len(self._numbers)
        if missing > 0:
            self._numbers.frombytes(bytes(self._numbers.itemsize * missing))
            self._fates.frombytes(bytes(self._fates.itemsize * missing))
        code = self._fates[entry.place]
        assert not code or (again and code in self._dead_codes()), f"record {entry.place} is done twice"
        self._numbers[entry.place] = entry.number
        self._fates[entry.place] = self._names.setdefault((entry.fate, entry.reason), len(self._names) + 1)
        self._rows += entry.rows

    def _dead_codes(self) -> set[int]:
        return {code for (fate, _), code in self._names.items() if fate == "dead"}

    def _forget_dead(self) -> None:
        fates = np.frombuffer(self._fates, dtype=np.uint32)
        fates[np.isin(fates, list(self._dead_codes()))] = 0

    def _write_files(self, rows: Path, letters: Path) -> None:
        with rows.open("wb") as row_file, letters.open("wb") as letter_file:
            for entry in merge_entries(self._files):
                (letter_file if entry.fate == "dead" else row_file).write(entry.lines)

    def _account(self, tally: Tally) -> dict[str, Any]:
        """The manifest of the final files as they are."""
        files = (self.rows_path, self.dead_letters_path)
        return {
            "inputs": read_json(self.folder / "inputs.json")["inputs"],
            "records": tally.done,
            "kept": tally.kept,
            "rows": tally.rows,
            "drops": tally.drops,
            "dead_letters": tally.dead_letters,
            "files": {path.name: digest_path(path) for path in files},
        }


def _lock(folder: Path) -> IO[str]:
    """Held until it is closed or its process ends, however that comes."""
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"{folder}/.lock: another process is writing here; wait for it or stop it") from None
    return file
