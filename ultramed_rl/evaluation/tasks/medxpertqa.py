"""MedXpertQA's text questions, with ten options (Zuo et al. 2025, arXiv 2501.18362).

The hub's rows hold `options` by letter and `label` as a letter; the authors' files hold `options` as a list of
letter and content, and `label` as a list of one letter. Both are read. The subject is the body system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ultramed_rl.evaluation.items import Item, Row, Task, ask_choice
from ultramed_rl.evaluation.tasks.medqa import continue_question
from ultramed_rl.evaluation.tasks.rows import (
    build_choice,
    read_id,
    read_key,
    read_optional,
    read_question,
    read_value,
)


def read_row(row: Row) -> Item:
    """TsinghuaC3I/MedXpertQA, config Text."""
    question, options, key = (
        read_question(row, "question"),
        read_value(row, "options"),
        read_key(row, "label"),
    )
    if isinstance(options, list) and all(isinstance(option, Mapping) for option in options):
        options = {str(option.get("letter")): option.get("content") for option in options}
    if isinstance(key, list) and len(key) == 1:
        key = key[0]
    item = build_choice(question, options, key, read_id(row, "id"), subject=read_optional(row, "body_system"))
    return replace(item, question=strip_choices(question, "".join(item.lettered)))


def strip_choices(question: str, letters: str) -> str:
    """The question without "Answer Choices: (A) ... (B) ..." at its end, which repeats the options.

    A tail that doesn't hold every letter, in order and from its start, is part of the question. So is a tail
    that would leave no question.
    """
    stem, _, tail = question.rpartition("\nAnswer Choices:")
    places = [tail.find(f"({letter})") for letter in letters]
    repeats = tail.lstrip().startswith("(A)") and min(places) >= 0 and places == sorted(places)
    return stem.rstrip() if repeats and stem.strip() else question


MEDXPERTQA = Task(
    "medxpertqa",
    ("hf://TsinghuaC3I/MedXpertQA/Text:test",),
    read_row,
    ask_choice,
    continuations=continue_question,  # the harness has no such task; this is its medqa's form
    shuffles=True,
)
