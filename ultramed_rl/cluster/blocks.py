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
from itertools import accumulate
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
    paths = [Path(file).resolve() for file in files]
    facts = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths]
    begin_parts(folder, [facts, *identity, rows])
    remove_leftovers(folder)
    blocks = list(_blocks(paths, folder, rows))
    missing = [block for block in blocks if not Path(block.part).is_file()]
    if workers and missing:
        _run_on_ray(missing, function, workers)
    else:
        for block in missing:
            _compute(block, function)
    return [Path(block.part) for block in blocks]


def read_part(path: Path) -> pa.Table:
    """A part, mapped from disk: its columns cost memory when they are looked at."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


# -- parts -------------------------------------------------------------------------------------------------


def _compute(block: _Block, function: BlockFunction) -> None:
    read = _KINDS[Path(block.path).suffix][1]
    table, part = function(read(block)), Path(block.part)

    def write(path: Path) -> None:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    # A name of its own: workers of a killed driver may still be writing the same part.
    own = part.with_name(f".tmp-{secrets.token_hex(6)}-{part.name}")
    write_whole(own, write)
    os.replace(own, part)


# -- blocks ------------------------------------------------------------------------------------------------


def _blocks(files: Sequence[Path], folder: Path, rows: int) -> Iterator[_Block]:
    """In input order, none empty."""
    assert rows > 0, rows
    for number, path in enumerate(files):
        if path.suffix not in _KINDS:
            raise ValueError(f"{path}: blocks are cut out of {' or '.join(_KINDS)} files; convert it to one")
        cut = _KINDS[path.suffix][0]
        for place, (first, last) in enumerate(cut(path, rows)):
            yield _Block(str(path), first, last, str(folder / f"{number:05d}-{place:06d}.arrow"))


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


def _read_lines(block: _Block) -> list[Row]:
    with open(block.path, "rb") as file:
        file.seek(block.first)
        lines = file.read(block.last - block.first).splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise ValueError(
                f"{block.path}: line {number} after byte {block.first} is not JSON ({error}); repair the file"
            ) from None
        if row is not None:
            rows.append(row)
    return rows


def _cut_parquet(path: Path, rows: int) -> Iterator[tuple[int, int]]:
    total = pq.read_metadata(path).num_rows
    return ((first, min(first + rows, total)) for first in range(0, total, rows))


def _read_parquet(block: _Block) -> list[Row]:
    """Only the row groups that hold the block's rows are read."""
    file = pq.ParquetFile(block.path)
    counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    starts = list(accumulate(counts, initial=0))
    groups = [g for g in range(len(counts)) if starts[g] < block.last and starts[g + 1] > block.first]
    table = file.read_row_groups(groups).slice(block.first - starts[groups[0]], block.last - block.first)
    rows: list[Row] = table.to_pylist()
    return rows


# How a kind of file is cut, and how a block of it is read.
_KINDS: dict[str, tuple[Callable[[Path, int], Iterator[tuple[int, int]]], Callable[[_Block], list[Row]]]] = {
    ".jsonl": (_cut_lines, _read_lines),
    ".parquet": (_cut_parquet, _read_parquet),
}


# -- workers -----------------------------------------------------------------------------------------------


def _run_on_ray(blocks: Sequence[_Block], function: BlockFunction, workers: int) -> None:
    """Every block is a row of a Ray data set; its task gives back what was wrong with its rows."""
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and hints are no news for a user
    ray.data.DataContext.get_current().enable_progress_bars = False
    places = ray.data.from_items([asdict(block) for block in blocks], override_num_blocks=len(blocks))
    done = places.map_batches(
        _compute_batch,
        fn_kwargs={"sent": [ray.put(function)]},
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
    """In a worker: what was wrong with each block's rows. The function is fetched once a process, so that its indexes are
    built once."""
    import ray

    key = sent[0].hex()
    if key not in _held:
        _held.clear()
        _held[key] = ray.get(sent[0])
    errors = []
    for path, first, last, part in zip(*(batch[name] for name in _Block.__annotations__), strict=True):
        try:
            _compute(_Block(str(path), int(first), int(last), str(part)), _held[key])
            errors.append("")
        except ValueError as error:  # as a value: Ray Data would wrap it, and lose what it says
            errors.append(str(error))
    return {"error": np.array(errors, dtype=object)}
