"""A policy's reasoning and the answer after it: where the one ends and the other begins.

The answer is what follows the last end of a thought. Where a thought begins and doesn't end, there is no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Begin and end of a thought, as models write them.
MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Thinking:
    """How a policy's reasoning is delimited.

    Attributes:
        begin, end: its marks.
        opened: what the generation prompt ends with, where it begins the thought; an answer's own text has no `begin` then.
        ids: the tokens that the marks are, where they are some; a special one is missing from the text.
    """

    begin: str
    end: str
    opened: str = ""
    ids: tuple[int | None, int | None] = (None, None)

    def answer_start(self, text: str) -> int | None:
        """Where in a text the answer begins; None where it has no thought; its length where a thought doesn't end."""
        ended = text.rfind(self.end)
        start = 0 if ended < 0 else ended + len(self.end)
        if self.begin in text[start:] or (ended < 0 and self.opened):
            return len(text)
        return None if ended < 0 else start

    def split(self, text: str, token_ids: Sequence[int], decode: Decode) -> tuple[int, int]:
        """(tokens, characters) of an answer up to where its thought ends; (0, 0) where it has none."""
        ids, (begins, ends) = list(token_ids), self.ids
        tokens = len(ids) - ids[::-1].index(ends) if ends in ids else 0
        if begins in ids[tokens:]:
            return len(ids), len(text)
        if tokens and self.end not in text:
            return tokens, len(decode(ids[:tokens]))
        start = self.answer_start(text)
        if start is None or start == len(text):
            return (0, 0) if start is None else (len(ids), start)
        low, high = 0, len(ids)  # the fewest tokens that make the text up to there
        while low < high and not tokens:
            middle = (low + high) // 2
            low, high = (low, middle) if len(decode(ids[:middle])) >= start else (middle + 1, high)
        return tokens or low, start

    def go_on(self, answer: str) -> str:
        """What an answer of data writes after a generation prompt that opens the thought; one without a thought ends it at once."""
        begun = self.opened.strip()
        if answer.startswith(begun):
            return answer[len(begun) :].lstrip("\n")
        return answer if self.end in answer else f"\n{self.end}\n\n{answer}"


def after_thoughts(text: str) -> str:
    """A reply without its thoughts by whichever marks it has, trimmed; thoughts that never end leave nothing."""
    marks = next((marks for marks in MARKS if any(mark in text for mark in marks)), MARKS[0])
    start = Thinking(*marks).answer_start(text)
    return text[start or 0 :].strip()


def marks_in(template: str) -> tuple[str, str] | None:
    """The marks of a thought that a chat template writes or takes away; None of one that knows none."""
    return next((marks for marks in MARKS if marks[1] in template), None)
