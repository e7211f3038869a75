"""Answers with their reasoning: checked against the key, asked for again with solved exemplars, else dropped.

solved rows --> stems --> unit vectors
row --> its stem's vector --> the nearest of its kind --> (question, answer), shown from the second attempt on
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ultramed_rl.config.factory_steps import Answer
from ultramed_rl.data.chats import Misfit, read_turns
from ultramed_rl.data.factory.instructions import (
    Instruction,
    answered_row,
    question_text,
    read_instruction,
    split_options,
)
from ultramed_rl.data.factory.step import Ask, Drop, End, Form, Keep, Row, assistant, name_of, user
from ultramed_rl.data.likeness import Embed, check_unit_vectors, normalise_text, read_stem
from ultramed_rl.data.vignettes import read_letter as closing_letter
from ultramed_rl.records import Message
from ultramed_rl.thoughts import after_thoughts

ReadLetter = Callable[[str, Mapping[str, str]], str | None]
FindExemplars = Callable[[Row], Sequence[tuple[str, str]]]
Kind = Literal["choice", "open"]
_FORMS = {kind: Form.read(f"answer_{kind}", "question") for kind in ("choice", "open")}
# Prose that isn't cut off ends in one of these, perhaps in bold or in quotes. A last item of a list, a row of a table, a
# heading or a formula needs none.
_ENDED = re.compile(r"[.!?…。！？)\]}>|`$»][*_\"'”’\s]*$")
_ITEM = re.compile(r"\s*(?:[-*•+|#]|\(?(?:\d+|[A-Za-z])[.)])\s*\S")
_CLOSING = re.compile(
    r"\W*(?:(?:so|thus|hence|therefore),? )?the (?:final |correct |best )?(?:answer|option) is\W*([A-Z])\W*",
    re.IGNORECASE,
)
_DIGITS = 6  # of a similarity, beyond which two are equal


class AnswerStep:
    """A record to the same record with an answer of the model; one that it had before is replaced.

    A multiple-choice question's answer must give the key, and ends "So, the answer is X."; where it is right
    but doesn't end so, that sentence is added. Dropped after all attempts, by the last one's miss: empty,
    truncated, refusal, no_letter, wrong_letter.
    """

    def __init__(
        self, config: Answer, read_letter: ReadLetter, exemplars: FindExemplars = lambda row: ()
    ) -> None:
        """`read_letter` gives the letter of an answer, given the options, or None. `exemplars` finds solved
        questions like a record's, most similar first, as (question, answer): shown from the second attempt on,
        and never the record's own question, whose answer would give the key away."""
        self.config = config
        self.read_letter = read_letter
        self.exemplars = exemplars
        self.refusals = [re.compile(pattern, re.IGNORECASE) for pattern in config.refusals]

    async def __call__(self, row: Row, ask: Ask) -> End:
        question = read_instruction(row)
        asked = user(_FORMS["choice" if question.key else "open"].render(question=question_text(row)))
        miss = ""
        for attempt in range(self.config.attempts):
            shown = self._solved(row) if attempt else []
            answer = after_thoughts((await ask(self.config, [*shown, asked])).text)
            miss = self.miss(question, answer)
            if not miss:
                return Keep((answered_row(row, _closed(answer, question.key)),))
        return Drop(miss)

    def miss(self, question: Instruction, answer: str) -> str:
        """What is wrong with an answer, as the reason it would be dropped for; empty where nothing is."""
        if not answer:
            return "empty"
        if any(pattern.search(answer) for pattern in self.refusals):
            return "refusal"
        # A line without a full stop, "So, the answer is C", is an end all the same.
        last = answer.rpartition("\n")[2]
        settles = question.key and _CLOSING.fullmatch(last) and self.read_letter(last, question.options)
        if is_cut(answer) and not settles:
            return "truncated"
        if question.key is None:
            return ""
        letter = self.read_letter(answer, question.options)
        if letter is None:
            return "no_letter"
        return "" if letter == question.key else "wrong_letter"

    def _solved(self, row: Row) -> list[Message]:
        """Solved questions as earlier turns of the chat, asked as the record's own is."""
        own = normalise_text(question_text(row))
        others = [pair for pair in self.exemplars(row) if normalise_text(pair[0]) != own]
        turns = []
        for question, answer in others[: self.config.exemplars]:
            turns += [user(_FORMS[_kind(question)].render(question=question)), assistant(answer)]
        return turns


def is_cut(answer: str) -> bool:
    """Whether an answer looks as if it were cut off: a last line of prose without an end, or an open code block."""
    last = answer.rstrip().rpartition("\n")[2]
    ended = bool(_ENDED.search(last) or _ITEM.match(last))
    return not ended or answer.count("```") % 2 == 1


def _closed(answer: str, key: str | None) -> str:
    """The answer with the closing sentence; one in other signs, such as "**the answer is: C**", is replaced."""
    if key is None or closing_letter(answer) == key:
        return answer
    before, _, last = answer.rpartition("\n")
    reasons = before if _CLOSING.fullmatch(last) else answer
    return f"{reasons.rstrip()}\n\nSo, the answer is {key}.".lstrip()


def _kind(question: str) -> Kind:
    return "choice" if split_options(question)[1] else "open"


@dataclass(frozen=True)
class _Solved:
    name: str  # the record's
    kind: Kind
    key: str  # the words of its stem
    question: str
    answer: str


class ExemplarIndex:
    """The solved questions most like a record's: to be given to `AnswerStep` as its `exemplars`.

    The index is fixed once it is built, out of a file of solved records. Those that a run solves do not join it: a
    run that was killed and goes on would find others than one that was not, and ask other requests. Texts and
    float32 vectors are held in memory. Not to be sent to another process: make one there.
    """

    def __init__(self, rows: Iterable[Row], embed: Embed, most: int = 3) -> None:
        """
        Args:
            rows: records; those with an answer are used, and of those of multiple choice the ones whose answer
                ends "So, the answer is X." with X their key. All others are passed over.
            embed: stems to unit vectors.
            most: exemplars found for a record.

        Raises:
            ValueError: `embed` gives other than one unit vector a text.
        """
        assert most >= 0, most
        self._embed, self._most = embed, most
        self._solved = [one for one in map(_read_solved, rows) if one is not None and one.key]
        if self._solved:
            self._known = self._vectors([one.question for one in self._solved])

    def __len__(self) -> int:
        """How many solved questions there are."""
        return len(self._solved)

    def __call__(self, row: Row) -> tuple[tuple[str, str], ...]:
        """(question, answer) of the nearest records of the row's kind, most similar first, then as in `rows`. Never the
        record itself, by its id or by the words of its stem, and no question twice. Raises Misfit: the row isn't a
        question."""
        question = read_instruction(row)
        kind, key = "choice" if question.key else "open", read_stem(question.text).key
        if not (self._most and self._solved and key):
            return ()
        similarities = self._known @ self._vectors([question.text])[0]
        nearest = np.argsort(-np.round(similarities.astype(np.float64), _DIGITS), kind="stable")
        own, pairs = name_of(row), dict[str, tuple[str, str]]()
        for one in (self._solved[place] for place in nearest):
            if one.kind == kind and one.key != key and one.name != own:
                pairs.setdefault(one.key, (one.question, one.answer))
            if len(pairs) == self._most:
                break
        return tuple(pairs.values())

    def _vectors(self, questions: Sequence[str]) -> np.ndarray:
        return check_unit_vectors(self._embed([read_stem(text).text for text in questions]), len(questions))


def _read_solved(row: Row) -> _Solved | None:
    """A row's question and answer, or None if it isn't solved."""
    try:
        question = read_instruction(row)
        turns = read_turns(dict(row), "conversations")
    except Misfit:
        return None
    if len(turns) < 2:
        return None
    text, answer = question.text, turns[1]["content"]
    # Of options without a key nobody knows which is right.
    if _kind(text) == "choice" and (question.key is None or closing_letter(answer) != question.key):
        return None
    return _Solved(name_of(row), _kind(text), read_stem(text).key, text, answer)
