"""Records to parquet and back, with an explicit schema for each kind.

Groups are written with the conversational columns `prompt`, `chosen`, `rejected` that TRL and others read: the best answer against
the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, TypeVar

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
from ultramed_rl.token_ids import TokenIds

T = TypeVar("T")
_BLOCK, _COMPRESSION = 4000, "zstd"
_TOKENS = pa.list_(pa.int32())
_CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PROMPT = [
    ("prompt_id", pa.string()),
    ("messages", _CHAT),
    ("token_ids", _TOKENS),
    ("answer", pa.string()),
    ("kind", pa.string()),
    ("source", pa.int32()),
]
_COMPLETION = [
    ("prompt_id", pa.string()),
    ("sample", pa.int32()),
    ("text", pa.string()),
    ("token_ids", _TOKENS),
    ("finish_reason", pa.string()),
    ("logprob", pa.float64()),
    ("policy_version", pa.int32()),
]
_OPTIONS = [
    ("question_id", pa.string()),
    ("logprobs", pa.list_(pa.float64())),
    ("policy_version", pa.int32()),
]
_SCORED = [*_COMPLETION, ("reward", pa.float64()), ("terms", pa.map_(pa.string(), pa.float64()))]
_GROUP = [
    ("group_id", pa.string()),
    ("prompt", _CHAT),
    ("chosen", _CHAT),
    ("rejected", _CHAT),
    ("margin", pa.float64()),
    ("prompt_id", pa.string()),
    ("prompt_token_ids", _TOKENS),
    ("answer", pa.string()),
    ("kind", pa.string()),
    ("source", pa.int32()),
    ("completions", pa.list_(pa.struct(_COMPLETION))),
    ("rewards", pa.list_(pa.float64())),
    ("desirable", pa.int32()),
]
_REFERENCE = [
    ("group_id", pa.string()),
    ("logprobs", pa.list_(pa.float64())),
    ("mismatched", pa.float64()),
]


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
    """Records of one kind as the table that is written."""
    if kind in _COLUMNS:  # those that come by the million
        return pa.Table.from_arrays(_COLUMNS[kind](records), schema=schema_of(kind))
    return pa.Table.from_pylist([row_of_record(record) for record in records], schema=schema_of(kind))


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
    tokens = [field.name for field in table.schema if field.type == _TOKENS]
    columns = [_token_lists(table.column(name)) for name in tokens]
    rows = table.drop_columns(tokens).to_pylist()
    for name, lists in zip(tokens, columns, strict=True):
        for row, ids in zip(rows, lists, strict=True):
            row[name] = ids
    return [record_from_row(kind, row) for row in rows]


def schema_of(kind: type) -> pa.Schema:
    """The columns of a kind of records."""
    return pa.schema(_KINDS[kind][0])


def row_of_record(record: Any) -> dict[str, Any]:
    """A record as a row of its schema."""
    return _KINDS[type(record)][1](record)


def record_from_row(kind: type[T], row: dict[str, Any]) -> T:
    """What `row_of_record` was given."""
    record: T = _KINDS[kind][2](row)
    return record


_CHAT_SAMPLE = [
    ("conversation_id", pa.string()),
    ("token_ids", _TOKENS),
    ("learned", pa.list_(pa.bool_())),
    ("kind", pa.string()),
]


def _prompt_row(p: Prompt) -> dict[str, Any]:
    return {
        "prompt_id": p.prompt_id,
        "messages": [dict(m) for m in p.messages],
        "token_ids": list(p.token_ids),
        "answer": p.answer,
        "kind": p.kind,
        "source": p.source,
    }


def _prompt(row: dict[str, Any]) -> Prompt:
    messages = tuple(Message(role=m["role"], content=m["content"]) for m in row["messages"])
    tokens = TokenIds(row["token_ids"])
    return Prompt(row["prompt_id"], messages, tokens, row["answer"], row["kind"], row["source"])


def _completion_row(c: Completion) -> dict[str, Any]:
    return {**{name: getattr(c, name) for name, _ in _COMPLETION}, "token_ids": list(c.token_ids)}


def _completion(row: dict[str, Any]) -> Completion:
    fields = {name: row[name] for name, _ in _COMPLETION}
    return Completion(**{**fields, "token_ids": TokenIds(fields["token_ids"])})


def _completion_columns(completions: Sequence[Completion]) -> list[pa.Array]:
    columns = {name: [getattr(c, name) for c in completions] for name, _ in _COMPLETION}
    return [
        _token_column(columns[name]) if kind is _TOKENS else pa.array(columns[name], type=kind)
        for name, kind in _COMPLETION
    ]


def _token_column(lists: Sequence[Sequence[int]]) -> pa.Array:
    """Token ids as they are packed; Arrow's own way goes through Python's numbers."""
    packed = b"".join([TokenIds(tokens).packed for tokens in lists])
    values = pa.Array.from_buffers(pa.int32(), len(packed) // 4, [None, pa.py_buffer(packed)])
    offsets = pa.array(accumulate(map(len, lists), initial=0), type=pa.int32(), size=len(lists) + 1)
    return pa.ListArray.from_arrays(offsets, values)


def _token_lists(column: pa.ChunkedArray) -> list[TokenIds]:
    """What `_token_column` was given, cut out of Arrow's buffer."""
    found: list[TokenIds] = []
    for chunk in column.chunks:
        packed, places = chunk.values.to_numpy(zero_copy_only=True), chunk.offsets.to_pylist()
        found += [TokenIds.of_bytes(packed[a:b].tobytes()) for a, b in pairwise(places)]
    return found


def _scored_columns(scored: Sequence[ScoredCompletion]) -> list[pa.Array]:
    return [
        *_completion_columns([s.completion for s in scored]),
        pa.array([s.reward for s in scored], type=pa.float64()),
        pa.array([s.terms for s in scored], type=_SCORED[-1][1]),
    ]


def _scored_row(s: ScoredCompletion) -> dict[str, Any]:
    return {**_completion_row(s.completion), "reward": s.reward, "terms": s.terms}


def _scored(row: dict[str, Any]) -> ScoredCompletion:
    return ScoredCompletion(_completion(row), row["reward"], dict(row["terms"]))


def _group_row(g: PreferenceGroup) -> dict[str, Any]:
    return {
        "group_id": g.group_id,
        "prompt": [dict(m) for m in g.prompt.messages],
        "chosen": [{"role": "assistant", "content": g.chosen.text}],
        "rejected": [{"role": "assistant", "content": g.rejected.text}],
        "margin": g.margin,
        "prompt_id": g.prompt.prompt_id,
        "prompt_token_ids": list(g.prompt.token_ids),
        "answer": g.prompt.answer,
        "kind": g.prompt.kind,
        "source": g.prompt.source,
        "completions": [_completion_row(c) for c in g.completions],
        "rewards": list(g.rewards),
        "desirable": g.desirable,
    }


def _group(row: dict[str, Any]) -> PreferenceGroup:
    prompt = _prompt({**row, "messages": row["prompt"], "token_ids": row["prompt_token_ids"]})
    completions = tuple(_completion(c) for c in row["completions"])
    return PreferenceGroup(prompt, completions, tuple(row["rewards"]), row["desirable"])


def _reference_row(r: ReferenceLogprobs) -> dict[str, Any]:
    return {"group_id": r.group_id, "logprobs": list(r.logprobs), "mismatched": r.mismatched}


def _reference(row: dict[str, Any]) -> ReferenceLogprobs:
    return ReferenceLogprobs(row["group_id"], tuple(row["logprobs"]), row["mismatched"])


def _options_row(o: OptionLogprobs) -> dict[str, Any]:
    return {
        "question_id": o.question_id,
        "logprobs": list(o.logprobs),
        "policy_version": o.policy_version,
    }


def _options(row: dict[str, Any]) -> OptionLogprobs:
    return OptionLogprobs(row["question_id"], tuple(row["logprobs"]), row["policy_version"])


def _chat_row(c: TokenizedChat) -> dict[str, Any]:
    return {name: getattr(c, name) for name, _ in _CHAT_SAMPLE}


def _chat(row: dict[str, Any]) -> TokenizedChat:
    return TokenizedChat(
        row["conversation_id"], TokenIds(row["token_ids"]), tuple(row["learned"]), row["kind"]
    )


_KINDS: dict[type, tuple[list[tuple[str, Any]], Callable[[Any], dict[str, Any]], Callable[[Any], Any]]] = {
    Prompt: (_PROMPT, _prompt_row, _prompt),
    Completion: (_COMPLETION, _completion_row, _completion),
    ScoredCompletion: (_SCORED, _scored_row, _scored),
    PreferenceGroup: (_GROUP, _group_row, _group),
    TokenizedChat: (_CHAT_SAMPLE, _chat_row, _chat),
    OptionLogprobs: (_OPTIONS, _options_row, _options),
    ReferenceLogprobs: (_REFERENCE, _reference_row, _reference),
}
_COLUMNS: dict[type, Callable[[Sequence[Any]], list[pa.Array]]] = {
    Completion: _completion_columns,
    ScoredCompletion: _scored_columns,
}
