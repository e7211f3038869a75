"""MMLU-Pro's health questions, with up to ten options (Wang et al. 2024, arXiv 2406.01574)."""

from __future__ import annotations

from string import ascii_uppercase

from ultramed_rl.data.chats import Misfit
from ultramed_rl.evaluation.items import Continuations, Item, Row, Task, ask_choice
from ultramed_rl.evaluation.tasks.rows import choice_of_row, read_text, weigh_letters


def read_row(row: Row) -> Item | None:
    """TIGER-Lab/MMLU-Pro; rows of other categories are left out."""
    if read_text(row, "category") != "health":
        return None
    item = choice_of_row(row, "question", "options", "answer", "question_id")
    index = row.get("answer_index")
    if index is not None and ascii_uppercase.index(item.answer) != index:
        raise Misfit(f"the answer is {item.answer}, but answer_index is {index!r}", name="wrong_key")
    return item


def continue_question(item: Item) -> Continuations:
    """As lm-evaluation-harness's leaderboard_mmlu_pro without examples; its mmlu_pro only generates."""
    return weigh_letters(item.question, item)


MMLU_PRO_HEALTH = Task(
    "mmlu_pro_health",
    ("hf://TIGER-Lab/MMLU-Pro:test",),
    read_row,
    ask_choice,
    continuations=continue_question,
    shuffles=True,
)
