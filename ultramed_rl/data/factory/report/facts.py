"""What the statistics need of one record, and which set it belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ultramed_rl.data.chats import Misfit, read_turns
from ultramed_rl.data.factory.instructions import question_text, set_of, split_options
from ultramed_rl.data.factory.score import in_range, read_difficulty
from ultramed_rl.data.factory.step import Row
from ultramed_rl.tracking.page import clean_text

OTHERS, UNNAMED = "(others)", "(unnamed)"
MOST_NAMES = 100  # ids that aren't UltraMedical's may have a new prefix in every row
_LONGEST_NAME = 60


@dataclass(frozen=True)
class Facts:
    """One record.

    Args:
        group: the set that it belongs to.
        words, answer_words: separated by spaces; of the whole question, options included. None without answer.
        score: its difficulty, 1 to 10; None if it has none that can be read.
        choice: whether it is multiple choice, with a key.
    """

    id: str
    group: str
    kind: str
    question: str
    words: int
    answer_words: int | None
    score: float | None
    choice: bool


def read_all_facts(rows: Iterable[Any], misfits: Counter[str]) -> Iterator[Facts]:
    """The facts of every row in turn; a row that doesn't fit is counted in `misfits` by its reason's name.

    After the first `MOST_NAMES` sets, rows of new ones go together, so that memory stays flat; so do types.
    """
    groups, kinds = _Names(), _Names()
    for row in rows:
        try:
            facts = read_facts(row)
        except Misfit as misfit:
            misfits[misfit.name] += 1
            continue
        yield replace(facts, group=groups.keep(facts.group), kind=kinds.keep(facts.kind))


def read_facts(row: Any) -> Facts:
    """The facts of a row.

    Raises:
        Misfit: it isn't one question with at most one answer.
    """
    if not isinstance(row, Mapping):
        raise Misfit(f"a row is a {type(row).__name__}, not a record", name="row")
    question = question_text(row)
    answers = read_turns(dict(row), "conversations")[1:]
    return Facts(
        id=_name(row.get("id")),
        group=set_name(row),
        kind=_name(row.get("type")) or UNNAMED,
        question=question,
        words=len(question.split()),
        answer_words=len(answers[0]["content"].split()) if answers else None,
        score=_score(row),
        choice=_name(row.get("answer")) in split_options(question)[1],
    )


def set_name(row: Row) -> str:
    """As `set_of` has it, fit to be shown."""
    return _name(set_of(row)) or UNNAMED


class _Names:
    """The first names that come, and one for all later ones."""

    def __init__(self) -> None:
        self._kept: set[str] = set()

    def keep(self, name: str) -> str:
        if len(self._kept) < MOST_NAMES:
            self._kept.add(name)
        return name if name in self._kept else OTHERS


def _name(value: object) -> str:
    return "" if value is None else " ".join(clean_text(str(value)).split())[:_LONGEST_NAME]


def _score(row: Row) -> float | None:
    number = in_range(row.get("difficulty"))
    if number is not None:
        return number
    score = row.get("score")
    return read_difficulty(score) if isinstance(score, str) else in_range(score)
