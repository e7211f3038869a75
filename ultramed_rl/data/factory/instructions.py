"""UltraMedical's records, read and written by structure.

{"id", "type", "conversations": [{"from": "human", ...}, {"from": "gpt", ...}], "answer", "score"}; a
multiple-choice question is its stem, a blank line, and a line "A. ..." per option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from ultramed_rl.data.chats import Misfit, read_turns
from ultramed_rl.data.factory.step import Row
from ultramed_rl.data.vignettes import Vignette, last_run, render_vignette

CHOICE_TYPES = ("Exam", "Literature")
_OPTION = re.compile(r"([A-Z])\. (\S.*)")


@dataclass(frozen=True)
class Instruction:
    """A question: its stem, its options by letter, and the right letter. An open-ended one has the stem alone."""

    stem: str
    options: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None

    @property
    def text(self) -> str:
        """The question as a record holds it."""
        if not self.options:
            return self.stem
        return render_vignette(Vignette(self.stem, dict(self.options), self.key or ""))


def question_text(row: Row) -> str:
    """What the record's human asks, trimmed.

    Raises:
        Misfit: the record isn't one question with at most one answer.
    """
    turns = read_turns(dict(row), "conversations")
    roles = [turn["role"] for turn in turns]
    if roles not in (["user"], ["user", "assistant"]):
        raise Misfit(f"its turns are of {roles}; it needs one of human and perhaps one of gpt", name="order")
    return turns[0]["content"]


def read_instruction(row: Row) -> Instruction:
    """The record's question.

    It is multiple choice if its text ends in lettered options and its `answer` is one of their letters.

    Raises:
        Misfit: as `question_text`; or its type is Exam or Literature, and it has no options or no key.
    """
    text = question_text(row)
    stem, options = split_options(text)
    key = row.get("answer")
    if options and isinstance(key, str) and key.strip() in options:
        return Instruction(stem, options, key.strip())
    if row.get("type") in CHOICE_TYPES:
        lack = f"its answer {key!r:.20} is none of its letters" if options else "its text ends in no options"
        raise Misfit(f"of type {row['type']}, but {lack}", name="key")
    return Instruction(text)


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Stem and options of a text that ends in two or more lines A., B., ...; else the text and no options.

    What isn't in that form stays in the stem whole: no line is ever dropped for its place alone.
    """
    lines = text.strip().split("\n")
    run = last_run([line.strip() for line in lines], _OPTION, over="nothing", least=2)
    stem = "\n".join(lines[: run.start]).rstrip()
    if not run.texts or run.end < len(lines) or not stem:
        return text.strip(), {}
    return stem, dict(zip(ascii_uppercase, run.texts, strict=False))


def new_row(row_id: str, kind: str, instruction: Instruction, **more: Any) -> Row:
    """A record that awaits its answer and its score; `more` are further columns."""
    human = [{"from": "human", "value": instruction.text}]
    return {
        "id": row_id,
        "type": kind,
        "conversations": human,
        "answer": instruction.key,
        "score": None,
        **more,
    }


def answered_row(row: Row, answer: str) -> Row:
    """The record with this answer, in place of the one that it may have had."""
    turns = [{"from": "human", "value": question_text(row)}, {"from": "gpt", "value": answer}]
    return {**row, "conversations": turns}


def set_of(row: Row) -> str:
    """The set that a record belongs to: the part of its id before the first comma, else its type."""
    before, comma, _ = str(row.get("id") or "").partition(",")
    return before if comma and before else str(row.get("type") or "")
