"""A pure function over files of rows, block by block on Ray Data; every block's result is a file of its own.

files --> blocks (places in the files alone) --> workers: read, compute, write a part --> parts in input order

The driver and Ray's object store hold places and names, never rows, so memory is flat. A part appears whole or not
at all; a killed run goes on with the parts that are missing.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ultramed_rl.store.artifacts import begin_parts
from ultramed_rl.store.atomic import remove_leftovers, write_whole

Row = dict[str, Any]
BlockFunction = Callable[[Sequence[Row]], pa.Table]
_held: dict[str, BlockFunction] = {}  # in a worker: the function that it was sent last


@dataclass(frozen=True)
class _Block:
    """Some rows of a file: of JSON lines the bytes from `first` to `last`, of parquet the rows."""

    path: str
    first: int
    last: int
    part: str

    def read(self) -> list[Row]:
        return _read_lines(self) if self.path.endswith(".jsonl") else _read_parquet(self)


def map_blocks(
    files: Sequence[Path],
    function: BlockFunction,
    folder: Path,
    *,
    identity: Sequence[Any],
    rows: int = 4096,
    workers: int = 0,
) -> list[Path]:
    """Apply a function to blocks of rows and keep what it gives, an Arrow file for every block, in input order.

    Args:
        files: .jsonl or .parquet, which every worker can read.
        function: rows to a table; the same for the same rows, however often it is called.
        folder: of the parts; those of the same files and `identity` that are there already are not computed again.
        identity: numbers, strings and records that say what the function does; others than last time make all anew.
        rows: of a block, the most.
        workers: processes of the Ray cluster that is connected, a CPU each; 0: this process, without Ray.

    Raises:
        ValueError: a file of another kind, or a row that cannot be read; names file and row.
    """
    remaining, parts = [], []
    _prepare(folder, [str(Path(file).resolve()) for file in files], [*identity, rows])
    for block in _blocks([Path(file) for file in files], folder, rows):
        parts.append(Path(block.part))
        if not parts[-1].is_file():
            remaining.append(block)
    if workers:
        _run_on_ray(remaining, function, workers)
    else:
        for block in remaining:
            _compute(block, function)
    return parts


def read_part(path: Path) -> pa.Table:
    """A part, mapped from disk: its columns cost memory when they are looked at."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


# -- parts -------------------------------------------------------------------------------------------------


def _prepare(folder: Path, files: Sequence[str], identity: Sequence[Any]) -> None:
    """Empty the folder unless its parts are of the same inputs."""
    states = [Path(file).stat() for file in files]
    facts = [f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in zip(files, states, strict=True)]
    begin_parts(folder, [facts, *identity])
    remove_leftovers(folder)


def _compute(block: _Block, function: BlockFunction) -> None:
    table, part = function(block.read()), Path(block.part)
    # A name of its own: workers of a killed driver may still be writing the same part.
    own = part.with_name(f".tmp-{secrets.token_hex(6)}-{part.name}")
    write_whole(own, lambda file: _write_table(table, file))
    os.replace(own, part)


def _write_table(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


# -- blocks ------------------------------------------------------------------------------------------------


def _blocks(files: Sequence[Path], folder: Path, rows: int) -> Iterator[_Block]:
    """In input order, none empty."""
    assert rows > 0, rows
    for number, path in enumerate(files):
        if path.suffix not in _CUTS:
            raise ValueError(f"{path}: blocks are cut out of {' or '.join(_CUTS)} files; convert it to one")
        for place, (first, last) in enumerate(_CUTS[path.suffix](path, rows)):
            yield _Block(str(path.resolve()), first, last, str(folder / f"{number:05d}-{place:06d}.arrow"))


def _cut_lines(path: Path, rows: int) -> Iterator[tuple[int, int]]:
    first = here = count = 0
    with path.open("rb") as lines:
        for line in lines:
            here, count = here + len(line), count + 1
            if count == rows:
                yield first, here
                first, count = here, 0
    if here > first:
        yield first, here


def _cut_parquet(path: Path, rows: int) -> Iterator[tuple[int, int]]:
    total = pq.read_metadata(path).num_rows
    for first in range(0, total, rows):
        yield first, min(first + rows, total)


_CUTS: dict[str, Callable[[Path, int], Iterator[tuple[int, int]]]] = {
    ".jsonl": _cut_lines,
    ".parquet": _cut_parquet,
}


def _read_lines(block: _Block) -> list[Row]:
    with open(block.path, "rb") as file:
        file.seek(block.first)
        lines = file.read(block.last - block.first).splitlines()
    found = []
    for number, line in enumerate(lines):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise ValueError(
                f"{block.path}: line {number + 1} after byte {block.first} is not JSON ({error}); repair the file"
            ) from None
        if row is not None:
            found.append(row)
    return found


def _read_parquet(block: _Block) -> list[Row]:
    """Only the row groups that hold the block's rows are read."""
    file, start, tables, skipped = pq.ParquetFile(block.path), 0, [], None
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if start < block.last and end > block.first:
            skipped = start if skipped is None else skipped
            tables.append(file.read_row_group(group))
        start = end
    assert skipped is not None, block
    rows: list[Row] = (
        pa.concat_tables(tables).slice(block.first - skipped, block.last - block.first).to_pylist()
    )
    return rows


# -- workers -----------------------------------------------------------------------------------------------


def _run_on_ray(blocks: Sequence[_Block], function: BlockFunction, workers: int) -> None:
    """Every block is a row of a Ray data set; its task gives the part's name back."""
    import ray
    import ray.data

    if not blocks:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and hints are no news for a user
    sent = ray.put(function)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    places = ray.data.from_items([asdict(block) for block in blocks], override_num_blocks=len(blocks))
    done = places.map_batches(
        _compute_batch,
        fn_kwargs={"sent": [sent]},
        batch_size=1,
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=workers),
    )
    # To the end, whatever is wrong: parts that can be made are kept for the next run.
    errors = [str(error) for batch in done.iter_batches(batch_size=None) for error in batch["error"]]
    assert len(errors) == len(blocks), (len(errors), len(blocks))
    wrong = [error for error in errors if error]
    if wrong:
        raise ValueError(wrong[0] + (f" ({len(wrong) - 1} more blocks failed)" if wrong[1:] else ""))


def _compute_batch(batch: Mapping[str, Any], sent: Sequence[Any]) -> dict[str, Any]:
    """In a worker: each part and what was wrong with its rows. The function is fetched once a process, so that its
    indexes are built once."""
    import ray

    key = sent[0].hex()
    if key not in _held:
        _held.clear()
        _held[key] = ray.get(sent[0])
    names = ("path", "first", "last", "part")
    errors = []
    for path, first, last, part in zip(*(batch[name] for name in names), strict=True):
        try:
            _compute(_Block(str(path), int(first), int(last), str(part)), _held[key])
            errors.append("")
        except ValueError as error:  # as a value: Ray Data would wrap it, and lose what it says
            errors.append(str(error))
    return {"part": batch["part"], "error": np.array(errors, dtype=object)}
