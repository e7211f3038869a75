"""Records of any number in one Arrow file: written as they come, read by index without being loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from ultramed_rl.store.sequences import LazySequence
from ultramed_rl.store.tables import records_of_table, schema_of, table_of_records

T = TypeVar("T")
_ROWS = 256  # of each batch but the last, so that a place in the file is a division


def write_samples(records: Iterable[T], kind: type[T], path: Path) -> int:
    """Write records of one kind as they come, holding 256 of them at a time; returns how many."""
    schema, stream, count = schema_of(kind), iter(records), 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        while block := list(islice(stream, _ROWS)):
            writer.write_table(table_of_records(block, kind))
            count += len(block)
    return count


class SampleFile(LazySequence[T]):
    """The records of a file by index, memory-mapped. It is sent between processes as its path."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self.path, self.kind = path, kind
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = self._reader.num_record_batches
        last = self._reader.get_batch(batches - 1).num_rows if batches else 0
        self._length = max(0, batches - 1) * _ROWS + last

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleFile, (self.path, self.kind)

    def __len__(self) -> int:
        return self._length

    def _at(self, place: int) -> T:
        batch, row = divmod(place, _ROWS)
        return self._records(self._reader.get_batch(batch).slice(row, 1))[0]

    def __iter__(self) -> Iterator[T]:
        for number in range(self._reader.num_record_batches):
            yield from self._records(self._reader.get_batch(number))

    def _records(self, batch: pa.RecordBatch) -> list[T]:
        return records_of_table(self.kind, pa.Table.from_batches([batch]))
