"""MT-Bench, 80 chats of two turns whose answers a judge grades from 1 to 10 (Zheng et al. 2023, arXiv 2306.05685).

The hub's rows hold `category`, `prompt` (both turns), `reference` (of the categories that have right answers, one for each
turn) and `prompt_id`; FastChat's `question.jsonl` calls them `turns` and `question_id`.
"""

from __future__ import annotations

from ultramed_rl.data.chats import Misfit, check_text
from ultramed_rl.evaluation.items import Item, Row, Task


def read_row(row: Row) -> Item:
    """Two turns, and a reference answer for each or none."""
    column = "turns" if "turns" in row else "prompt"
    turns, references = _texts(row, column), _texts(row, "reference")
    if len(turns) != 2 or not all(turn.strip() for turn in turns):
        raise Misfit(f"column {column!r} has {len(turns)} turns, not two", name="empty_question")
    item_id, subject = row.first_id("question_id", "prompt_id"), row.optional("category")
    return Item(item_id, turns[0], subject=subject, follow_up=turns[1], beside=references)


def _texts(row: Row, column: str) -> tuple[str, ...]:
    texts = row.value(column) if column != "reference" else row.get(column) or []
    if not isinstance(texts, list):
        raise Misfit(f"column {column!r} holds {texts!r:.40}, not a list of texts")
    return tuple(check_text(text, f"column {column!r}") for text in texts)


MT_BENCH = Task(
    "mt_bench",
    ("hf://HuggingFaceH4/mt_bench_prompts:train",),
    read_row,
    lambda item: item.question,
    form="chat",
)
