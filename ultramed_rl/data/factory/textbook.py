"""Textbook synthesis: paragraph -> worth an exam question? -> enough to test a strong model? -> question as JSON."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

from ultramed_rl.config.factory import Textbook
from ultramed_rl.data.factory.asking import Form, Miss, ask, name_of, once_more, read_object, read_text, user
from ultramed_rl.data.factory.choices import NO_JSON, choice_schema, read_question
from ultramed_rl.data.factory.instructions import Instruction, new_row
from ultramed_rl.data.factory.step import Ask, Drop, Fail, Keep, Move, Row
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.records import ChatReply, Message

LETTERS = "ABCD"
_WORTHY = Form.read("textbook_worthy", "paragraph")
_ENOUGH = Form.read("textbook_enough", "paragraph")
_QUESTION = Form.read("textbook_question", "paragraph", "exemplars")
_GATES = ((_WORTHY, "not_exam_worthy"), (_ENOUGH, "too_little_knowledge"))
_VERDICT = json.dumps(
    {
        "type": "object",
        "properties": {"reason": {"type": "string"}, "verdict": {"type": "string", "enum": ["yes", "no"]}},
        "required": ["reason", "verdict"],
        "additionalProperties": False,
    }
)
# "The passage of stones" and "the nasal passage" are anatomy; "the text message" is no textbook.
_POINTER = re.compile(
    r"\b(?:the|this|that)\s+(?:(?:above|following|given|preceding|previous|provided|source)\s+)*"
    r"(?:paragraph|passage|excerpt|text|textbook|extract)\b"
    r"(?!\s+(?:of|through|into|from|to|between|across|along|message|neck)\b)",
    re.IGNORECASE,
)
_POINTS = Miss(
    "points_at_paragraph",
    "it speaks of the paragraph, which whoever answers will not see; state what is needed in the question",
)


class TextbookStep:
    """A paragraph, {"id", "text"}, to an Exam record whose `answer` is the key.

    Dropped: not_exam_worthy, too_little_knowledge (the gates), not_worth_it (an empty object). Failed: a reply
    that still misses something after all attempts, by what it misses.
    """

    def __init__(self, config: Textbook, exemplars: Sequence[Instruction]) -> None:
        """`exemplars` are multiple-choice questions with their keys, to draw from.

        Raises:
            ValueError: fewer exemplars than are to be shown.
        """
        if len(exemplars) < config.exemplars:
            raise ValueError(
                f"textbook.exemplars={config.exemplars}: only {len(exemplars)} are given; lower it or give more"
            )
        self.config = config
        self.exemplars = exemplars

    def start(self, row: Row) -> Move:
        """Ask the first gate."""
        text = row.get("text")
        if not isinstance(text, str) or not text.strip():
            return Fail("malformed_record", "no text under 'text'")
        return self._gate(row, 0)

    def go_on(self, row: Row, replies: Sequence[ChatReply]) -> Move:
        """The other gate, the question, the question again, or the end."""
        gate = len(replies) - 1
        if gate >= len(_GATES):
            return self._judge(row, replies)
        verdict = read_text((read_object(replies[-1].text) or {}).get("verdict")).casefold()
        if verdict == "no":
            return Drop(_GATES[gate][1])
        if verdict != "yes":
            return Fail("unreadable_gate", replies[-1].text[-200:])
        if gate + 1 < len(_GATES):
            return self._gate(row, gate + 1)
        return ask(self.config, row, len(replies), self._chat(row), self._schema)

    def draw(self, row: Row) -> list[Instruction]:
        """The exemplars shown with this record: always the same ones."""
        drawn = random.Random(derive_seed(self.config.seed, "exemplars", name_of(row)))
        return drawn.sample(list(self.exemplars), self.config.exemplars)

    @property
    def _schema(self) -> str:
        return choice_schema(LETTERS, needed=False, explained=True)

    def _gate(self, row: Row, gate: int) -> Ask:
        prompt = _GATES[gate][0].render(paragraph=row["text"])
        return ask(self.config, row, gate, [user(prompt)], _VERDICT)

    def _chat(self, row: Row) -> list[Message]:
        shown = "\n\n".join(_as_json(exemplar) for exemplar in self.draw(row)) or "(none)"
        return [user(_QUESTION.render(paragraph=row["text"], exemplars=shown))]

    def _judge(self, row: Row, replies: Sequence[ChatReply]) -> Move:
        """Keep the question in the last reply, ask again, or give up."""
        reply = read_object(replies[-1].text)
        if reply == {}:
            return Drop("not_worth_it")
        found = NO_JSON if reply is None else _check(read_question(reply, LETTERS))
        if isinstance(found, Instruction):
            explanation = read_text((reply or {}).get("explanation"))
            more = {"explanation": explanation} if explanation else {}
            return Keep((new_row(f"{self.config.name},{name_of(row)}", "Exam", found, **more),))
        if len(replies) - len(_GATES) < self.config.attempts:
            chat = once_more(self._chat(row), replies[-1], found)
            return ask(self.config, row, len(replies), chat, self._schema)
        return Fail(found.reason, replies[-1].text[-200:])


def _check(found: Instruction | Miss) -> Instruction | Miss:
    if isinstance(found, Instruction) and _POINTER.search(found.text):
        return _POINTS
    return found


def _as_json(exemplar: Instruction) -> str:
    shown = {"question": exemplar.stem, "options": exemplar.options, "answer": exemplar.key}
    return json.dumps(shown, ensure_ascii=False)
