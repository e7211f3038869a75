"""K-QA, patients' questions with the statements that an answer must or may make (Manes et al. 2024, 2401.14493).

The authors' file `questions_w_answers.jsonl` holds 201 questions: `Question`, `Must_have` and `Nice_to_have` as
lists of statements, and `Free_form_answer`, which no metric uses. The hub has the same file as a split.
"""

from __future__ import annotations

from ultramed_rl.data.chats import Misfit, check_text
from ultramed_rl.evaluation.items import Item, Row, Task


def read_row(row: Row) -> Item:
    """A question with at least one statement (misfit `missing_key`)."""
    question = row.question("Question")
    required, optional = _statements(row, "Must_have"), _statements(row, "Nice_to_have")
    if not required and not optional:
        missing = None if "Must_have" in row else "Must_have"
        raise Misfit("no statement to judge an answer by", name="missing_key", column=missing)
    return Item(row.first_id("id"), question, required=required, optional=optional)


def _statements(row: Row, column: str) -> tuple[str, ...]:
    statements = row.get(column) or []
    if not isinstance(statements, list):
        raise Misfit(f"column {column!r} holds {statements!r:.40}, not a list of statements")
    texts = (check_text(statement, f"column {column!r}").strip() for statement in statements)
    return tuple(text for text in texts if text)


# Asked as a patient asks: the question alone.
KQA = Task(
    "kqa",
    ("hf://Itaykhealth/K-QA:questions_with_answers",),
    read_row,
    lambda item: item.question.strip(),
    form="statements",
)
