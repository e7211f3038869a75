"""MedXpertQA's text questions, with ten options (Zuo et al. 2025, arXiv 2501.18362).

The hub's rows hold `options` by letter and `label` as a letter; the authors' files hold `options` as a list of
letter and content, and `label` as a list of one letter. Both are read. The subject is the body system.
"""

from __future__ import annotations

from ultramed_rl.data.chats import Misfit
from ultramed_rl.evaluation.items import Item, Row, Task, weigh_letters


def read_row(row: Row) -> Item:
    """TsinghuaC3I/MedXpertQA, config Text; a question with pictures is a misfit, `picture`."""
    if row.get("images"):
        raise Misfit("it has pictures, which nobody is shown", name="picture")
    return row.choice("question", "options", "label", subject=row.optional("body_system"))


MEDXPERTQA = Task(
    "medxpertqa",
    ("hf://TsinghuaC3I/MedXpertQA/Text:test",),
    read_row,
    # The harness has no such task; this is its medqa's form.
    continuations=lambda item: weigh_letters(f"Question: {item.question}", item),
    shuffles=True,
)
