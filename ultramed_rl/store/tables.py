"""Records to parquet or Arrow files and back. The columns of a kind are its fields, by their annotations.

A record in a record has its columns in the outer one's. Groups are written with the conversational columns `prompt`, `chosen`,
`rejected` that TRL and others read: the best answer against the last.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import cache
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_type_hints, overload

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ultramed_rl.records import Message, PreferenceGroup
from ultramed_rl.token_ids import TokenIds, pack_ids

T = TypeVar("T")
_SAMPLES = 256  # of each batch of a file of samples but the last, so that a place in it is a division
_BLOCK, _COMPRESSION = 4000, "zstd"
_TEXT, _FLOAT = pa.string(), pa.float64()
_CHAT = pa.list_(pa.struct([("role", _TEXT), ("content", _TEXT)]))
_TOKENS, _TURNS = Sequence[int], tuple[Message, ...]
_TYPES: dict[Any, pa.DataType] = {  # by a field's annotation
    **{str: _TEXT, str | None: _TEXT, int: pa.int32(), float: _FLOAT, float | None: _FLOAT},
    **{tuple[float, ...]: pa.list_(_FLOAT), tuple[bool, ...]: pa.list_(pa.bool_())},
    **{_TOKENS: pa.list_(pa.int32()), _TURNS: _CHAT, dict[str, float]: pa.map_(_TEXT, _FLOAT)},
}
# Of a group, what comes first and follows from its fields; and its prompt's columns that are called otherwise.
_DERIVED = dict(group_id=_TEXT, prompt=_CHAT, chosen=_CHAT, rejected=_CHAT, margin=_FLOAT)
_RENAMED = {"messages": "prompt", "token_ids": "prompt_token_ids"}


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Within, a file that cannot be read as parquet is a ValueError with its name."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: not the parquet that was written ({why}); put it back, or delete it and the JSON beside it"
        ) from None


def write_records(records: Iterable[Any], kind: type, path: Path) -> int:
    """Write records of one kind as they come, none or many, holding 8000 of them at a time; returns how many."""
    with pq.ParquetWriter(path, schema_of(kind), compression=_COMPRESSION) as writer:
        return _write_blocks(records, kind, _BLOCK, writer)


def write_samples(records: Iterable[T], kind: type[T], path: Path) -> int:
    """The same to a `SampleFile`, holding 512 of them at a time."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema_of(kind)) as writer:
        return _write_blocks(records, kind, _SAMPLES, writer)


def _write_blocks(records: Iterable[Any], kind: type, size: int, writer: Any) -> int:
    stream, count = iter(records), 0
    written: Future[None] | None = None
    # A thread compresses a block and writes it while the next one is made.
    with ThreadPoolExecutor(1, thread_name_prefix="write-table") as thread:
        while block := list(islice(stream, size)):
            assert all(type(r) is kind for r in block), f"not all records are {kind.__name__}"
            table = table_of_records(block, kind)
            if written is not None:
                written.result()
            written = thread.submit(writer.write_table, table)
            count += len(block)
        if written is not None:
            written.result()
    return count


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as this store does."""
    pq.write_table(table, path, compression=_COMPRESSION)


def read_records(kind: type[T], path: Path, *, block: int | None = None) -> list[T]:
    """Read what `write_records` wrote, or one block of it. Raises ValueError for a file that isn't parquet."""
    with told_of(path):
        table = pq.read_table(path) if block is None else pq.ParquetFile(path).read_row_group(block)
    return records_of_table(kind, table)


class LazySequence(Sequence[T], Generic[T]):
    """Subclasses say how many items there are, and which one is at a place from 0 on."""

    @abstractmethod
    def _at(self, place: int) -> T: ...

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        size = len(self)
        if isinstance(index, slice):
            return [self._at(place) for place in range(*index.indices(size))]
        if not -size <= index < size:
            raise IndexError(index)
        return self._at(index % size)


class SampleFile(LazySequence[T]):
    """The records of a file by index, memory-mapped. It is sent between processes as its path."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self.path, self.kind = path, kind
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = self._reader.num_record_batches
        last = self._reader.get_batch(batches - 1).num_rows if batches else 0
        self._length = max(0, batches - 1) * _SAMPLES + last

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleFile, (self.path, self.kind)

    def __len__(self) -> int:
        return self._length

    def _at(self, place: int) -> T:
        batch, row = divmod(place, _SAMPLES)
        return self._records(self._reader.get_batch(batch).slice(row, 1))[0]

    def __iter__(self) -> Iterator[T]:
        for number in range(self._reader.num_record_batches):
            yield from self._records(self._reader.get_batch(number))

    def _records(self, batch: pa.RecordBatch) -> list[T]:
        return records_of_table(self.kind, pa.Table.from_batches([batch]))


# -- columns ----------------------------------------------------------------------------------------------


def schema_of(kind: type) -> pa.Schema:
    """The columns of a kind of records."""
    fields = _fields(kind)
    return pa.schema(_DERIVED | _renamed(fields) if kind is PreferenceGroup else fields)


def table_of_records(records: Sequence[Any], kind: type) -> pa.Table:
    """Records of one kind as the table that is written. Columns are made of whole lists: no row is ever a dict."""
    columns = _columns(kind, records)
    if kind is PreferenceGroup:
        sides = {"chosen": [g.chosen for g in records], "rejected": [g.rejected for g in records]}
        for side, answers in sides.items():
            turns = [[Message(role="assistant", content=answer.text)] for answer in answers]
            columns[side] = _array(turns, _TURNS)
        ids, margins = _array([g.group_id for g in records], str), _array([g.margin for g in records], float)
        columns = _renamed(columns) | {"group_id": ids, "margin": margins}
    schema = schema_of(kind)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


def records_of_table(kind: type[T], table: pa.Table) -> list[T]:
    """What `table_of_records` was given."""
    records: list[T] = []
    for batch in table.to_batches():
        arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
        if kind is PreferenceGroup:
            arrays |= {name: arrays[column] for name, column in _RENAMED.items()}
        records += _records(kind, arrays)
    return records


def _renamed(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): column for name, column in columns.items()}


_hints = cache(get_type_hints)
_is_record: Callable[[Any], bool] = is_dataclass


@cache
def _items(hint: Any) -> Any:
    """The kind of records that a field holds several of; None of another field."""
    return next((kind for kind in get_args(hint) if _is_record(kind)), None)


@cache
def _fields(kind: Any) -> dict[str, pa.DataType]:
    """A kind's columns, without those that are derived."""
    fields: dict[str, pa.DataType] = {}
    for name, hint in _hints(kind).items():
        if _is_record(hint):
            fields |= _fields(hint)
        else:
            several = _items(hint)
            fields[name] = pa.list_(pa.struct(_fields(several))) if several else _TYPES[hint]
    return fields


def _columns(kind: type, records: Sequence[Any]) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    for name, hint in _hints(kind).items():
        values = [getattr(record, name) for record in records]
        columns |= _columns(hint, values) if _is_record(hint) else {name: _array(values, hint)}
    return columns


def _records(kind: type, arrays: Mapping[str, pa.Array]) -> Iterable[Any]:
    """What `_columns` was given."""
    fields = (
        _records(hint, arrays) if _is_record(hint) else _values(arrays[name], hint)
        for name, hint in _hints(kind).items()
        if _is_record(hint) or name in arrays  # the last fields may be younger than the file
    )
    return map(kind, *fields)


def _array(values: Sequence[Any], hint: Any) -> pa.Array:
    if hint == _TOKENS:  # as they are packed; Arrow's own way goes through Python's numbers
        blocks = [pack_ids(ids) for ids in values]
        packed = b"".join(blocks)
        ids = pa.Array.from_buffers(pa.int32(), len(packed) // 4, [None, pa.py_buffer(packed)])
        return pa.ListArray.from_arrays(pc.divide(_offsets(blocks), 4), ids)
    if hint == _TURNS:
        messages = [message for chat in values for message in chat]
        parts = [pa.array([m[name] for m in messages], type=_TEXT) for name in ("role", "content")]
        turns = pa.StructArray.from_arrays(parts, fields=list(_CHAT.value_type))
        return pa.ListArray.from_arrays(_offsets(values), turns)
    if several := _items(hint):
        columns = _columns(several, [record for records in values for record in records])
        structs = pa.StructArray.from_arrays(list(columns.values()), fields=list(pa.struct(_fields(several))))
        return pa.ListArray.from_arrays(_offsets(values), structs)
    if hint == dict[str, float]:
        names = pa.array([name for numbers in values for name in numbers], type=_TEXT)
        floats = pa.array([number for numbers in values for number in numbers.values()], type=_FLOAT)
        return pa.MapArray.from_arrays(_offsets(values), names, floats)
    return pa.array(values, type=_TYPES[hint])


def _values(column: pa.Array, hint: Any) -> Iterable[Any]:
    """What `_array` was given."""
    several = _items(hint)
    if hint == _TOKENS:
        ids, places = _end_to_end(column)
        packed = ids.to_numpy(zero_copy_only=True)
        return [TokenIds.of_bytes(packed[a:b].tobytes()) for a, b in pairwise(places)]
    if hint == _TURNS or several:
        structs, places = _end_to_end(column)
        parts = dict(zip(structs.type.names, structs.flatten(), strict=True))
        items: list[Any]
        if several:
            items = list(_records(several, parts))
        else:
            turns = zip(parts["role"].to_pylist(), parts["content"].to_pylist(), strict=True)
            items = [Message(role=role, content=content) for role, content in turns]
        return [tuple(items[a:b]) for a, b in pairwise(places)]
    values: list[Any] = column.to_pylist()
    convert = dict if hint == dict[str, float] else tuple
    return map(convert, values) if pa.types.is_nested(column.type) else values


def _offsets(lists: Sequence[Sized]) -> pa.Array:
    return pa.array(accumulate(map(len, lists), initial=0), type=pa.int32(), size=len(lists) + 1)


def _end_to_end(column: pa.ListArray) -> tuple[pa.Array, list[int]]:
    """The items of all lists, and where among them each list begins and the last one ends."""
    places = column.offsets.to_pylist()
    return column.values.slice(places[0], places[-1] - places[0]), [place - places[0] for place in places]
