"""A phase whose records come over hours: kept in files as they come, and a folder of these files at the end; and a round's
pairs as its learners read them."""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs
from ultramed_rl.store.artifacts import ArtifactFolder, begin_parts
from ultramed_rl.store.atomic import write_whole
from ultramed_rl.store.tables import (
    LazySequence,
    read_records,
    records_of_table,
    table_of_records,
    told_of,
    write_table,
)

T = TypeVar("T")
SHARD_RECORDS = 4000
SHARD_SECONDS = 20.0
_TABLE_RECORDS = 128
_NEEDED = ("group_id", "prompt_id", "prompt_token_ids", "completions.list.element.token_ids")
# Files whose records are kept by those who read one after the other: few pairs are far from their place.
_OPEN_FILES = 4


class RecordFiles(LazySequence[T]):
    """The records of a parquet file or of a folder of such, in the order in which they came; some thousands are in memory
    at a time."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self.kind = kind
        self._blocks: list[tuple[Path, int]] = []
        self._starts = [0]
        for file in shard_files(path):
            with told_of(file):
                metadata = pq.read_metadata(file)
                for block in range(metadata.num_row_groups):
                    self._blocks.append((file, block))
                    self._starts.append(self._starts[-1] + metadata.row_group(block).num_rows)
        self._open: tuple[int, list[T]] = (-1, [])

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._blocks)):
            yield from self._read(number)

    def _read(self, number: int) -> list[T]:
        file, block = self._blocks[number]
        return read_records(self.kind, file, block=block)

    def _at(self, place: int) -> T:
        number = bisect_right(self._starts, place) - 1
        if self._open[0] != number:
            self._open = (number, self._read(number))
        return self._open[1][place - self._starts[number]]


class ShardedPhase(Generic[T]):
    """One phase of a folder. What a killed run kept is there; `finish` makes the rest final. The records of one key are
    kept together, so that after a kill each key is there wholly or not at all. Raises ValueError: the finished phase is
    of other inputs, or not what was written."""

    def __init__(self, folder: ArtifactFolder, name: str, kind: type[T], *inputs: Any) -> None:
        self.folder, self.name, self.kind, self.inputs = folder, name, kind, inputs
        self.finished = folder.finished(name)
        self.after: ShardedPhase[Any] | None = None  # whose records are in files before those made of them
        self._waiting: list[T] = []
        self._tables: list[pa.Table] = []  # of those before them
        self._rows = 0  # in these tables
        self._writer: ThreadPoolExecutor | None = None
        self._written: Future[None] | None = None
        self._since = time.monotonic()
        if self.finished:
            folder.verify(name, inputs)
            return
        path = folder.path / f"{name}.parts"
        if folder.artifact(name).is_dir() and not path.exists():
            os.replace(folder.artifact(name), path)  # a kill came just before the manifest
        begin_parts(path, inputs)
        self._parts = path
        self._number = max((int(file.stem) for file in shard_files(path)), default=-1)

    def read(self) -> RecordFiles[T]:
        """All that is in files."""
        return RecordFiles(self.folder.artifact(self.name) if self.finished else self._parts, self.kind)

    def keep(self, records: Sequence[T]) -> None:
        """The records of one key; they are in a file soon."""
        self._waiting += records
        if len(self._waiting) >= _TABLE_RECORDS:
            self._convert()
        rows = self._rows + len(self._waiting)
        if rows >= SHARD_RECORDS or time.monotonic() - self._since > SHARD_SECONDS:
            self._write()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within, files are written by a thread, and the caller goes on meanwhile; at the end they are there. What is kept
        outlives an error and Ctrl-C: it is in a file when these are raised on. What the thread raises is raised by the
        next `keep` or `flush`, or else at the end."""
        try:
            with ThreadPoolExecutor(1, thread_name_prefix=f"write-{self.name}") as self._writer:
                try:
                    yield
                finally:
                    self._writer = None
        except (Exception, KeyboardInterrupt):
            self.flush()
            raise
        self.flush()

    def flush(self) -> None:
        """What is kept is in a file now."""
        self._write()
        self._settle()

    def _convert(self) -> None:
        """Make a table of what waits, while the processor has it in its cache; the thread that writes it needs no Python."""
        if self._waiting:
            self._tables.append(table_of_records(self._waiting, self.kind))
            self._rows += len(self._waiting)
            self._waiting = []

    def _write(self) -> None:
        self._settle()  # one at a time: a slow disk holds its caller back
        self._convert()
        if self._tables:
            if self.after is not None:
                self.after.flush()
            self._number += 1
            file = self._parts / f"{self._number:06d}.parquet"
            write = partial(write_table, pa.concat_tables(self._tables))
            if self._writer is None:
                write_whole(file, write)
            else:
                self._written = self._writer.submit(write_whole, file, write)
        self._tables, self._rows, self._since = [], 0, time.monotonic()

    def _settle(self) -> None:
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def finish(self, seconds: Mapping[str, float], **extra: Any) -> RecordFiles[T]:
        """All keys are there.

        Args:
            seconds: that the phase took, under its name; perhaps with others' that it did on the way.
            extra: for the manifest.
        """
        self.flush()
        rows = len(self.read())
        artifact = self.folder.artifact(self.name)
        os.replace(self._parts, artifact)
        self.folder.write_manifest(self.name, artifact, self.inputs, dict(seconds), rows=rows, **extra)
        self.finished = True
        return self.read()


def in_order(records: Iterable[T], key: Callable[[T], str], order: Sequence[str]) -> list[T]:
    """Records by their keys in this order; those of one key as they came. Every key has some, and no other."""
    by_key: dict[str, list[T]] = {}
    for record in records:
        by_key.setdefault(key(record), []).append(record)
    assert by_key.keys() == set(order), f"keys lost or unasked for: {list(by_key.keys() ^ set(order))[:4]}"
    return [record for k in order for record in by_key[k]]


def read_columns(path: Path, *columns: str) -> pa.Table:
    """Columns of a parquet file, or of a folder of such, in the files' order; all if none is named. Raises ValueError: one
    that cannot be read."""
    tables = []
    for file in shard_files(path) or [path]:
        with told_of(file), pq.ParquetFile(file) as parquet:
            tables.append(parquet.read(columns=columns or None))
    return pa.concat_tables(tables)


def rows_of(
    files: Iterable[Path], prompts: Iterable[str], columns: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of these prompts in parquet files, of those columns that are there. A round may have millions of others: only the
    parts that hold one are read whole. Raises ValueError for a file that cannot be read."""
    wanted = pc.field("prompt_id").isin(list(prompts))
    for file in files:
        with told_of(file):
            dataset = ds.dataset(file, format="parquet")
            known = [name for name in columns or dataset.schema.names if name in dataset.schema.names]
            for fragment in dataset.get_fragments():
                for part in fragment.split_by_row_group():
                    if part.count_rows(filter=wanted):
                        yield from part.to_table(columns=known, filter=wanted).to_pylist()


def shard_files(path: Path) -> list[Path]:
    """The parquet files of an artifact: itself, or those in its folder; none where it isn't there."""
    if path.is_dir():
        return sorted(path.glob("[0-9]*.parquet"))
    return [path] if path.is_file() else []


# -- a round's pairs ---------------------------------------------------------------------------------------


class RoundPairs(LazySequence[PreferenceGroup]):
    """Pairs by their place. The files hold them in the order in which their answers came, which is no one's choice: what
    is learnt goes by the prompts' order, and so doesn't depend on who was faster.

    What is not loaded is read from its file. It is sent between processes as its folder.

    Attributes:
        ids: [N] the groups' ids.
        answer_counts: [N] answers of each.
        packed_tokens, padded_tokens: [N] what each costs in a forward pass, see `AnswerGroup`.
    """

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: of a round, with prompts.parquet and pairs.parquet.

        Raises:
            ValueError: files that cannot be read.
        """
        self.folder = folder
        self._files = shard_files(folder / "pairs.parquet")
        names, costs = [], []
        for file in self._files:
            read = read_columns(file, *_NEEDED)
            names.append(read.select(["group_id", "prompt_id"]))
            costs.append(_costs(read))
        self._starts = np.cumsum([0, *map(len, names)])
        table = pa.concat_tables(names)
        prompts = read_columns(folder / "prompts.parquet", "prompt_id")
        places = pc.index_in(table["prompt_id"], value_set=prompts["prompt_id"])
        assert not places.null_count, f"{folder}: pairs of prompts that are not the round's"
        self._order = np.argsort(places.to_numpy(), kind="stable")
        self.ids: list[str] = table["group_id"].take(pa.array(self._order)).to_pylist()
        self.answer_counts, self.packed_tokens, self.padded_tokens = np.hstack(costs)[:, self._order]
        self._loaded: dict[int, PreferenceGroup] = {}
        self._read = lru_cache(_OPEN_FILES)(lambda number: read_records(PreferenceGroup, self._files[number]))

    def __reduce__(self) -> tuple[Any, ...]:
        return RoundPairs, (self.folder,)

    def __len__(self) -> int:
        return len(self._order)

    def load(self, wanted: Iterable[int]) -> None:
        """Keep these in memory from now on."""
        places = np.unique(np.fromiter(wanted, dtype=np.int64))
        rows = self._order[places]
        for number, file in enumerate(self._files):
            inside = (rows >= self._starts[number]) & (rows < self._starts[number + 1])
            if inside.any():
                table = read_columns(file).take(pa.array(rows[inside] - self._starts[number]))
                records = records_of_table(PreferenceGroup, table)
                self._loaded.update(zip(places[inside].tolist(), records, strict=True))

    def _at(self, place: int) -> PreferenceGroup:
        if place in self._loaded:
            return self._loaded[place]
        row = self._order[place]
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._read(number)[row - self._starts[number]]


def read_references(folder: Path, ids: Sequence[str]) -> list[ReferenceLogprobs]:
    """The reference logprobs of these groups, in their order. Raises ValueError: files that cannot be read, or without one
    of them."""
    file = folder / "reference.parquet"
    table = read_columns(file)
    rows = pc.index_in(pa.array(ids, type=pa.string()), value_set=table["group_id"])
    if rows.null_count:
        raise ValueError(
            f"{file}: has no logprobs of {rows.null_count} of the round's pairs; put it back, or "
            "delete it and reference.json beside it to compute it again"
        )
    return records_of_table(ReferenceLogprobs, table.take(rows))


def _costs(table: pa.Table) -> np.ndarray:
    """[3, N] answers, packed tokens and padded tokens of each pair."""
    prompts = pc.list_value_length(table["prompt_token_ids"]).to_numpy()
    answers = pc.list_value_length(table["completions"]).to_numpy()
    tokens = pc.list_value_length(
        pc.struct_field(pc.list_flatten(table["completions"]), "token_ids")
    ).to_numpy()
    starts = np.cumsum(answers) - answers
    if not len(table):
        return np.zeros((3, 0), dtype=np.int64)
    packed = prompts + np.add.reduceat(tokens, starts)
    padded = answers * (prompts + np.maximum.reduceat(tokens, starts))
    return np.stack([answers, packed, padded]).astype(np.int64)
