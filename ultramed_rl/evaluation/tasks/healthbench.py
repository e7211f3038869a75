"""HealthBench, health conversations with physicians' rubrics (Arora et al. 2025, arXiv 2505.08775): all, the hard ones, and those
criteria on which physicians agree. The authors give out a JSON-lines file for each: `prompt` (a chat), `rubrics` (criterion,
points, tags), `example_tags`, `prompt_id`.
"""

from __future__ import annotations

from ultramed_rl.data.chats import Misfit, check_order, check_text
from ultramed_rl.evaluation.items import Item, Row, Task
from ultramed_rl.evaluation.rubrics import read_rubric
from ultramed_rl.records import Message


def read_row(row: Row) -> Item:
    """A chat that awaits an answer, with the rubric for that (misfit `rubric`)."""
    given = row.value("prompt")
    if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
        raise Misfit("column 'prompt' is no list of turns")
    turns = tuple(
        Message(role=str(t.get("role")), content=check_text(t.get("content"), "a turn")) for t in given
    )
    check_order(turns, "user")
    try:
        criteria = read_rubric(row.value("rubrics"))
    except ValueError as error:
        raise Misfit(str(error), name="rubric") from None
    tags = tuple(map(str, row.get("example_tags") or ()))
    question = turns[-1]["content"]
    return Item(row.first_id("prompt_id", "id"), question, turns=turns, criteria=criteria, tags=tags)


HEALTHBENCH, HEALTHBENCH_HARD, HEALTHBENCH_CONSENSUS = (
    Task(name, (), read_row, lambda item: item.question, form="rubric")
    for name in ("healthbench", "healthbench_hard", "healthbench_consensus")
)
