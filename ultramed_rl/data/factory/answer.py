"""Answers with their reasoning: checked against the key, asked for again with solved exemplars, else dropped."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ultramed_rl.config.factory import Answer
from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.asking import Form, after_thoughts, assistant, user
from ultramed_rl.data.factory.instructions import (
    Instruction,
    answered_row,
    question_text,
    read_instruction,
    split_options,
)
from ultramed_rl.data.factory.step import Ask, Drop, End, Fail, Keep, Row
from ultramed_rl.data.likeness import normalise_text
from ultramed_rl.data.vignettes import read_letter as closing_letter
from ultramed_rl.records import Message

ReadLetter = Callable[[str, Mapping[str, str]], str | None]
FindExemplars = Callable[[Row], Sequence[tuple[str, str]]]
_CHOICE = Form.read("answer_choice", "question")
_OPEN = Form.read("answer_open", "question")
# Prose that isn't cut off ends in one of these, perhaps in bold or in brackets. A last item of a list, a
# row of a table or a heading needs none.
_ENDED = re.compile(r"[.!?…。)\]}>|`$*_\"'”’»]\s*$")
_ITEM = re.compile(r"\s*(?:[-*•+|#]|\d+[.)]|[A-Z][.)])\s*\S")

_CLOSING = re.compile(
    r"\W*(?:(?:so|thus|hence|therefore),? )?the (?:final |correct |best )?(?:answer|option) is\W*([A-Z])\W*",
    re.IGNORECASE,
)


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
        """Ask without exemplars first, then with them."""
        try:
            question = read_instruction(row)
        except Misfit as misfit:
            return Fail("malformed_record", str(misfit))
        form, text, miss = _CHOICE if question.key else _OPEN, question_text(row), ""
        for attempt in range(self.config.attempts):
            shown = self._solved(row) if attempt else []
            reply = await ask(self.config, [*shown, user(form.render(question=text))])
            answer = after_thoughts(reply.text)
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
        if is_cut(answer) and not self._settles(question, answer.rpartition("\n")[2]):
            return "truncated"
        if question.key is None:
            return ""
        letter = self.read_letter(answer, question.options)
        if letter is None:
            return "no_letter"
        return "" if letter == question.key else "wrong_letter"

    def _settles(self, question: Instruction, line: str) -> bool:
        """Whether a line without a full stop, "So, the answer is C", is an end all the same."""
        return bool(question.key and _CLOSING.fullmatch(line) and self.read_letter(line, question.options))

    def _solved(self, row: Row) -> list[Message]:
        """Solved questions as earlier turns of the chat, asked as the record's own is."""
        own = normalise_text(question_text(row))
        others = [pair for pair in self.exemplars(row) if normalise_text(pair[0]) != own]
        turns = []
        for question, answer in others[: self.config.exemplars]:
            form = _CHOICE if split_options(question)[1] else _OPEN
            turns += [user(form.render(question=question)), assistant(answer)]
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
