"""What became of one record, and files of such entries by the record's place in the input."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ultramed_rl.store.atomic import without_non_finite
from ultramed_rl.store.keys import key_number

Fate = Literal["keep", "drop", "dead"]
_GROUP_ROWS = 128  # entries of a part that are in memory at once when parts are merged
_SCHEMA = pa.schema(
    [
        ("place", pa.int64()),
        ("number", pa.uint64()),
        ("fate", pa.string()),
        ("reason", pa.string()),
        ("rows", pa.int32()),
        ("lines", pa.binary()),
    ]
)
_HEAD = [name for name in _SCHEMA.names if name != "lines"]


@dataclass(frozen=True)
class Entry:
    """A record's fate. `number` is its key's; `lines` holds the JSON lines that it became, `rows` of them, or its
    dead letter."""

    place: int
    number: int
    fate: Fate
    reason: str = ""
    rows: int = 0
    lines: bytes = b""


def kept(place: int, key: str, rows: Sequence[Mapping[str, Any]]) -> Entry:
    """A record that became these rows, none or many. Raises TypeError for a value that JSON has not."""
    lines = b"".join(_line(dict(row)) for row in rows)
    return Entry(place, key_number(key), "keep", rows=len(rows), lines=lines)


def dropped(place: int, key: str, reason: str) -> Entry:
    """A record that was left out on purpose."""
    return Entry(place, key_number(key), "drop", _printable(reason))


def dead(place: int, key: str, reason: str, detail: str, row: Mapping[str, Any]) -> Entry:
    """A record that could not be done, with the row that it came from; what JSON has not is written as text."""
    letter = {"key": key, "reason": reason, "detail": detail, "row": dict(row)}
    return Entry(place, key_number(key), "dead", _printable(reason), lines=_line(letter, default=str))


def write_entries(entries: Sequence[Entry], path: Path) -> None:
    """Write entries as parquet, by place."""
    ordered = sorted(entries, key=lambda entry: entry.place)
    columns = {name: [getattr(entry, name) for entry in ordered] for name in _SCHEMA.names}
    table = pa.Table.from_pydict(columns, schema=_SCHEMA)
    pq.write_table(table, path, row_group_size=_GROUP_ROWS, compression="zstd")


def read_heads(path: Path) -> list[Entry]:
    """A file's entries without their lines.

    Raises:
        ValueError: the file is not what was written.
    """
    try:
        return [Entry(**row) for row in pq.ParquetFile(path).read(columns=_HEAD).to_pylist()]
    except (pa.ArrowException, OSError) as error:
        line = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: not the part that was written ({line}); delete it to have its records done again"
        ) from error


def merge_entries(files: Sequence[tuple[int, Path]]) -> Iterator[Entry]:
    """The entries of many files by place; where a place is in several, that of the last file.

    `files` are pairs of a file's first place and its path. A file is read from when its first place is reached,
    a few entries at a time and opened anew for them, so that memory and open files go by how many overlap.
    """
    unread = sorted(((first, -order, path) for order, (first, path) in enumerate(files)), reverse=True)
    heap: list[tuple[int, int, Entry, Iterator[Entry]]] = []
    last = -1
    while unread or heap:
        while unread and (not heap or unread[-1][0] <= heap[0][0]):
            _, order, path = unread.pop()
            _push(heap, order, _read_by_groups(path))
        place, order, entry, rest = heapq.heappop(heap)
        _push(heap, order, rest)
        if place != last:
            yield entry
        last = place


def _push(heap: list[tuple[int, int, Entry, Iterator[Entry]]], order: int, rest: Iterator[Entry]) -> None:
    entry = next(rest, None)
    if entry is not None:
        heapq.heappush(heap, (entry.place, order, entry, rest))


def _read_by_groups(path: Path) -> Iterator[Entry]:
    for group in range(pq.read_metadata(path).num_row_groups):
        for row in pq.ParquetFile(path).read_row_group(group).to_pylist():
            yield Entry(**row)


def _line(value: dict[str, Any], default: Callable[[Any], Any] | None = None) -> bytes:
    finite = without_non_finite(value)
    try:
        text = json.dumps(finite, ensure_ascii=False, allow_nan=False, default=default)
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which models do write: only an escape can hold it
        return json.dumps(finite, allow_nan=False, default=default).encode() + b"\n"


def _printable(reason: str) -> str:
    return reason.encode("utf-8", "replace").decode()
