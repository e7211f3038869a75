"""Records to parquet and back, with an explicit schema for each kind.

Groups are written with the conversational columns `prompt`, `chosen`, `rejected` that TRL and others read: the best answer against
the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

T = TypeVar("T")
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


def write_records(records: Sequence[Any], kind: type, path: Path) -> None:
    """Write records of one kind, none or many."""
    assert all(type(r) is kind for r in records), f"not all records are {kind.__name__}"
    rows = [row_of_record(record) for record in records]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema_of(kind)), path)


def read_records(kind: type[T], path: Path) -> list[T]:
    """Read what `write_records` wrote."""
    return [record_from_row(kind, row) for row in pq.read_table(path).to_pylist()]


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
    tokens = tuple(row["token_ids"])
    return Prompt(row["prompt_id"], messages, tokens, row["answer"], row["kind"], row["source"])


def _completion_row(c: Completion) -> dict[str, Any]:
    return {**{name: getattr(c, name) for name, _ in _COMPLETION}, "token_ids": list(c.token_ids)}


def _completion(row: dict[str, Any]) -> Completion:
    fields = {name: row[name] for name, _ in _COMPLETION}
    return Completion(**{**fields, "token_ids": tuple(fields["token_ids"])})


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
    return TokenizedChat(row["conversation_id"], tuple(row["token_ids"]), tuple(row["learned"]), row["kind"])


_KINDS: dict[type, tuple[list[tuple[str, Any]], Callable[[Any], dict[str, Any]], Callable[[Any], Any]]] = {
    Prompt: (_PROMPT, _prompt_row, _prompt),
    Completion: (_COMPLETION, _completion_row, _completion),
    ScoredCompletion: (_SCORED, _scored_row, _scored),
    PreferenceGroup: (_GROUP, _group_row, _group),
    TokenizedChat: (_CHAT_SAMPLE, _chat_row, _chat),
    OptionLogprobs: (_OPTIONS, _options_row, _options),
    ReferenceLogprobs: (_REFERENCE, _reference_row, _reference),
}
