"""MedXpertQA's text questions, with ten options (Zuo et al. 2025, arXiv 2501.18362).

The hub's rows hold `options` by letter and `label` as a letter; the authors' files hold `options` as a list of
letter and content, and `label` as a list of one letter. Both are read. The subject is the body system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ultramed_rl.evaluation.items import Item, Row, Task, build_choice, weigh_letters


def read_row(row: Row) -> Item:
    """TsinghuaC3I/MedXpertQA, config Text; "Answer Choices: (A) ... (B) ..." at a question's end repeats the options
    and is left out.

    A tail that doesn't hold every letter, in order and from its start, is part of the question. So is a tail
    that would leave no question.
    """
    question = row.question("question")
    options, key = row.value("options"), row.key("label")
    if isinstance(options, list) and all(isinstance(option, Mapping) for option in options):
        options = {str(option.get("letter")): option.get("content") for option in options}
    if isinstance(key, list) and len(key) == 1:
        key = key[0]
    item = build_choice(question, options, key, row.first_id("id"), subject=row.optional("body_system"))
    stem, _, tail = question.rpartition("\nAnswer Choices:")
    places = [tail.find(f"({letter})") for letter in item.lettered]
    repeats = tail.lstrip().startswith("(A)") and min(places) >= 0 and places == sorted(places)
    return replace(item, question=stem.rstrip()) if repeats and stem.strip() else item


MEDXPERTQA = Task(
    "medxpertqa",
    ("hf://TsinghuaC3I/MedXpertQA/Text:test",),
    read_row,
    # The harness has no such task; this is its medqa's form.
    continuations=lambda item: weigh_letters(f"Question: {item.question}", item),
    shuffles=True,
)
