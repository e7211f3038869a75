"""Records to parquet or Arrow files and back, with an explicit schema for each kind.

Groups are written with the conversational columns `prompt`, `chosen`, `rejected` that TRL and others read: the best answer against
the last.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, islice, pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import pyarrow as pa
import pyarrow.parquet as pq

from ultramed_rl.records import (
    Completion,
    Message,
    OptionLogprobs,
    PreferenceGroup,
    Prompt,
    ReferenceLogprobs,
    ScoredCompletion,
    TokenizedChat,
)
from ultramed_rl.token_ids import TokenIds, pack_ids

T = TypeVar("T")
_SAMPLES = 256  # of each batch of a file of samples but the last, so that a place in it is a division
_Fields = dict[str, Any]  # Arrow types by name
_Arrays = Mapping[str, pa.Array]  # by the name of a field
_BLOCK, _COMPRESSION = 4000, "zstd"
_TEXT, _INT, _FLOAT, _FLOATS = pa.string(), pa.int32(), pa.float64(), pa.list_(pa.float64())
_TOKENS = pa.list_(pa.int32())
_CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PROMPT = dict(prompt_id=_TEXT, messages=_CHAT, token_ids=_TOKENS, answer=_TEXT, kind=_TEXT, source=_INT)
_ANSWER = dict(prompt_id=_TEXT, sample=_INT, text=_TEXT, token_ids=_TOKENS, finish_reason=_TEXT)
_COMPLETION = dict(**_ANSWER, logprob=_FLOAT, policy_version=_INT)
_SCORED = dict(**_COMPLETION, reward=_FLOAT, terms=pa.map_(_TEXT, _FLOAT))
_GROUP = dict(
    **dict(group_id=_TEXT, prompt=_CHAT, chosen=_CHAT, rejected=_CHAT, margin=_FLOAT, prompt_id=_TEXT),
    **dict(prompt_token_ids=_TOKENS, answer=_TEXT, kind=_TEXT, source=_INT),
    **dict(completions=pa.list_(pa.struct(_COMPLETION)), rewards=_FLOATS, desirable=_INT),
)


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
    """Write records of one kind as they come, none or many, holding 4000 of them at a time; returns how many."""
    stream, count = iter(records), 0
    with pq.ParquetWriter(path, schema_of(kind), compression=_COMPRESSION) as writer:
        while block := list(islice(stream, _BLOCK)):
            assert all(type(r) is kind for r in block), f"not all records are {kind.__name__}"
            writer.write_table(table_of_records(block, kind))
            count += len(block)
    return count


def table_of_records(records: Sequence[Any], kind: type) -> pa.Table:
    """Records of one kind as the table that is written. Columns are made of whole lists: no row is ever a dict."""
    return pa.Table.from_arrays(_KINDS[kind][1](records), schema=schema_of(kind))


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as this store does."""
    pq.write_table(table, path, compression=_COMPRESSION)


def read_records(kind: type[T], path: Path, *, block: int | None = None) -> list[T]:
    """Read what `write_records` wrote, or one block of it. Raises ValueError for a file that isn't parquet."""
    with told_of(path):
        table = pq.read_table(path) if block is None else pq.ParquetFile(path).read_row_group(block)
    return records_of_table(kind, table)


def records_of_table(kind: type[T], table: pa.Table) -> list[T]:
    """What `table_of_records` was given."""
    read: Callable[[_Arrays], Iterable[T]] = _KINDS[kind][2]
    blocks = [dict(zip(batch.schema.names, batch.columns, strict=True)) for batch in table.to_batches()]
    return [record for arrays in blocks for record in read(arrays)]


def schema_of(kind: type) -> pa.Schema:
    """The columns of a kind of records."""
    return pa.schema(_KINDS[kind][0])


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


def write_samples(records: Iterable[T], kind: type[T], path: Path) -> int:
    """Write records of one kind as they come, holding 256 of them at a time; returns how many."""
    schema, stream, count = schema_of(kind), iter(records), 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        while block := list(islice(stream, _SAMPLES)):
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


def _columns(fields: _Fields, records: Sequence[Any], **others: Any) -> list[pa.Array]:
    """An array of each field: of the records' attributes of its name, or of `others` where they are called otherwise."""
    return [
        _array(others[name] if name in others else list(map(attrgetter(name), records)), kind)
        for name, kind in fields.items()
    ]


def _records(kind: type, fields: _Fields, arrays: _Arrays) -> Iterable[Any]:
    """What `_columns` was given, of a kind whose attributes are these fields in their order."""
    return map(kind, *(_values(arrays[name]) for name in fields))


def _array(values: Any, kind: Any) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    if kind is _TOKENS:  # as they are packed; Arrow's own way goes through Python's numbers
        packed = b"".join(map(pack_ids, values))
        ids = pa.Array.from_buffers(pa.int32(), len(packed) // 4, [None, pa.py_buffer(packed)])
        return pa.ListArray.from_arrays(_offsets(values), ids)
    if kind is _CHAT:
        messages = [message for chat in values for message in chat]
        parts = [pa.array([m[name] for m in messages], type=_TEXT) for name in ("role", "content")]
        turns = pa.StructArray.from_arrays(parts, fields=list(_CHAT.value_type))
        return pa.ListArray.from_arrays(_offsets(values), turns)
    return pa.array(values, type=kind)


def _values(column: pa.Array) -> Iterable[Any]:
    """What `_array` was given; other lists as tuples."""
    if not pa.types.is_list(column.type):
        values: list[Any] = column.to_pylist()
        return values
    if column.type == _TOKENS:
        ids, places = _end_to_end(column)
        packed = ids.to_numpy(zero_copy_only=True)
        return [TokenIds.of_bytes(packed[a:b].tobytes()) for a, b in pairwise(places)]
    if column.type == _CHAT:
        turns, places = _end_to_end(column)
        names = zip(*(part.to_pylist() for part in turns.flatten()), strict=True)
        messages = [Message(role=role, content=content) for role, content in names]
        return [tuple(messages[a:b]) for a, b in pairwise(places)]
    return map(tuple, column.to_pylist())


def _offsets(lists: Sequence[Sized]) -> pa.Array:
    return pa.array(accumulate(map(len, lists), initial=0), type=pa.int32(), size=len(lists) + 1)


def _end_to_end(column: pa.ListArray) -> tuple[pa.Array, list[int]]:
    """The items of all lists, and where among them each list begins and the last one ends."""
    places = column.offsets.to_pylist()
    return column.values.slice(places[0], places[-1] - places[0]), [place - places[0] for place in places]


def _scored_columns(scored: Sequence[ScoredCompletion]) -> list[pa.Array]:
    terms = [s.terms for s in scored]
    names = pa.array([name for one in terms for name in one], type=pa.string())
    numbers = pa.array([number for one in terms for number in one.values()], type=pa.float64())
    return [
        *_columns(_COMPLETION, [s.completion for s in scored]),
        pa.array([s.reward for s in scored], type=pa.float64()),
        pa.MapArray.from_arrays(_offsets(terms), names, numbers),
    ]


def _scored(arrays: _Arrays) -> Iterable[ScoredCompletion]:
    completions = _records(Completion, _COMPLETION, arrays)
    return map(ScoredCompletion, completions, _values(arrays["reward"]), map(dict, _values(arrays["terms"])))


def _group_columns(groups: Sequence[PreferenceGroup]) -> list[pa.Array]:
    prompts, answers = [g.prompt for g in groups], [g.completions for g in groups]
    flat = [completion for group in answers for completion in group]
    completions = pa.StructArray.from_arrays(_columns(_COMPLETION, flat), fields=list(pa.struct(_COMPLETION)))
    return _columns(
        _GROUP,
        groups,
        prompt=[p.messages for p in prompts],
        chosen=[[{"role": "assistant", "content": g.chosen.text}] for g in groups],
        rejected=[[{"role": "assistant", "content": g.rejected.text}] for g in groups],
        prompt_id=[p.prompt_id for p in prompts],
        prompt_token_ids=[p.token_ids for p in prompts],
        answer=[p.answer for p in prompts],
        kind=[p.kind for p in prompts],
        source=[p.source for p in prompts],
        completions=pa.ListArray.from_arrays(_offsets(answers), completions),
    )


def _groups(arrays: _Arrays) -> Iterable[PreferenceGroup]:
    named = {**arrays, "messages": arrays["prompt"], "token_ids": arrays["prompt_token_ids"]}
    flat, places = _end_to_end(arrays["completions"])
    parts = dict(zip(_COMPLETION, flat.flatten(), strict=True))
    completions = list(_records(Completion, _COMPLETION, parts))
    answers = [tuple(completions[a:b]) for a, b in pairwise(places)]
    prompts, rewards = _records(Prompt, _PROMPT, named), _values(arrays["rewards"])
    return map(PreferenceGroup, prompts, answers, rewards, _values(arrays["desirable"]))


_PLAIN: dict[type, _Fields] = {
    Prompt: _PROMPT,
    Completion: _COMPLETION,
    TokenizedChat: dict(conversation_id=_TEXT, token_ids=_TOKENS, learned=pa.list_(pa.bool_()), kind=_TEXT),
    OptionLogprobs: dict(question_id=_TEXT, logprobs=_FLOATS, policy_version=_INT),
    ReferenceLogprobs: dict(group_id=_TEXT, logprobs=_FLOATS, mismatched=_FLOAT),
}
# Of each kind its fields, how records become columns, and how these become records.
_KINDS: dict[type, tuple[_Fields, Callable[[Any], list[pa.Array]], Callable[[_Arrays], Iterable[Any]]]] = {
    **{kind: (f, partial(_columns, f), partial(_records, kind, f)) for kind, f in _PLAIN.items()},
    ScoredCompletion: (_SCORED, _scored_columns, _scored),
    PreferenceGroup: (_GROUP, _group_columns, _groups),
}
