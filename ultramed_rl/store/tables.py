"""Records to parquet and back, with an explicit schema for each kind.

Pairs are written in the conversational columns `prompt`, `chosen`, `rejected` that TRL and others read.
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
    PreferencePair,
    Prompt,
    ReferenceLogprobs,
    ScoredCompletion,
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
_SIDE = ("sample", "text", "token_ids", "finish_reason", "logprob", "policy_version")
_SIDE_TYPES = dict(_COMPLETION)
_PAIR = [
    ("pair_id", pa.string()),
    ("prompt", _CHAT),
    ("chosen", _CHAT),
    ("rejected", _CHAT),
    ("chosen_reward", pa.float64()),
    ("rejected_reward", pa.float64()),
    ("margin", pa.float64()),
    ("prompt_id", pa.string()),
    ("prompt_token_ids", _TOKENS),
    ("answer", pa.string()),
    ("kind", pa.string()),
    *[(f"{side}_{name}", _SIDE_TYPES[name]) for side in ("chosen", "rejected") for name in _SIDE],
]
_REFERENCE = [("pair_id", pa.string()), ("chosen", pa.float64()), ("rejected", pa.float64())]


def write_records(records: Sequence[Any], kind: type, path: Path) -> None:
    """Write records of one kind, none or many."""
    schema, to_row, _ = _KINDS[kind]
    assert all(type(r) is kind for r in records), f"not all records are {kind.__name__}"
    pq.write_table(pa.Table.from_pylist([to_row(r) for r in records], schema=pa.schema(schema)), path)


def read_records(kind: type[T], path: Path) -> list[T]:
    """Read what `write_records` wrote."""
    _, _, from_row = _KINDS[kind]
    return [from_row(row) for row in pq.read_table(path).to_pylist()]


def _prompt_row(p: Prompt) -> dict[str, Any]:
    return {
        "prompt_id": p.prompt_id,
        "messages": [dict(m) for m in p.messages],
        "token_ids": list(p.token_ids),
        "answer": p.answer,
        "kind": p.kind,
    }


def _prompt(row: dict[str, Any]) -> Prompt:
    messages = tuple(Message(role=m["role"], content=m["content"]) for m in row["messages"])
    return Prompt(row["prompt_id"], messages, tuple(row["token_ids"]), row["answer"], row["kind"])


def _completion_row(c: Completion) -> dict[str, Any]:
    return {
        "prompt_id": c.prompt_id,
        **{name: getattr(c, name) for name in _SIDE},
        "token_ids": list(c.token_ids),
    }


def _completion(row: dict[str, Any]) -> Completion:
    fields = {name: row[name] for name, _ in _COMPLETION}
    return Completion(**{**fields, "token_ids": tuple(fields["token_ids"])})


def _scored_row(s: ScoredCompletion) -> dict[str, Any]:
    return {**_completion_row(s.completion), "reward": s.reward}


def _scored(row: dict[str, Any]) -> ScoredCompletion:
    return ScoredCompletion(_completion(row), row["reward"])


def _pair_row(p: PreferencePair) -> dict[str, Any]:
    sides = {
        f"{side}_{name}": value
        for side, completion in (("chosen", p.chosen), ("rejected", p.rejected))
        for name, value in _completion_row(completion).items()
        if name != "prompt_id"
    }
    return {
        "pair_id": p.pair_id,
        "prompt": [dict(m) for m in p.prompt.messages],
        "chosen": [{"role": "assistant", "content": p.chosen.text}],
        "rejected": [{"role": "assistant", "content": p.rejected.text}],
        "chosen_reward": p.chosen_reward,
        "rejected_reward": p.rejected_reward,
        "margin": p.margin,
        "prompt_id": p.prompt.prompt_id,
        "prompt_token_ids": list(p.prompt.token_ids),
        "answer": p.prompt.answer,
        "kind": p.prompt.kind,
        **sides,
    }


def _pair(row: dict[str, Any]) -> PreferencePair:
    def side(name: str) -> Completion:
        fields = {field: row[f"{name}_{field}"] for field in _SIDE}
        return _completion({"prompt_id": row["prompt_id"], **fields})

    prompt = _prompt({**row, "messages": row["prompt"], "token_ids": row["prompt_token_ids"]})
    return PreferencePair(
        prompt, side("chosen"), side("rejected"), row["chosen_reward"], row["rejected_reward"]
    )


def _reference_row(r: ReferenceLogprobs) -> dict[str, Any]:
    return {"pair_id": r.pair_id, "chosen": r.chosen, "rejected": r.rejected}


def _reference(row: dict[str, Any]) -> ReferenceLogprobs:
    return ReferenceLogprobs(**row)


_KINDS: dict[type, tuple[list[tuple[str, Any]], Callable[[Any], dict[str, Any]], Callable[[Any], Any]]] = {
    Prompt: (_PROMPT, _prompt_row, _prompt),
    Completion: (_COMPLETION, _completion_row, _completion),
    ScoredCompletion: ([*_COMPLETION, ("reward", pa.float64())], _scored_row, _scored),
    PreferencePair: (_PAIR, _pair_row, _pair),
    ReferenceLogprobs: (_REFERENCE, _reference_row, _reference),
}
