"""Textbook synthesis: paragraph -> worth an exam question? -> enough to test a strong model? -> question as JSON."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from functools import partial

from ultramed_rl.config.factory_steps import Textbook
from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.instructions import NO_JSON, Instruction, choice_schema, new_row, read_question
from ultramed_rl.data.factory.step import (
    Ask,
    Drop,
    End,
    Fail,
    Form,
    Keep,
    Miss,
    Row,
    ask_until,
    name_of,
    object_schema,
    read_object,
    read_text,
    user,
)
from ultramed_rl.learning.seeds import derive_seed

LETTERS = "ABCD"
_WORTHY = Form.read("textbook_worthy", "paragraph")
_ENOUGH = Form.read("textbook_enough", "paragraph")
_QUESTION = Form.read("textbook_question", "paragraph", "exemplars")
_GATES = ((_WORTHY, "not_exam_worthy"), (_ENOUGH, "too_little_knowledge"))
_VERDICT = object_schema({"reason": {"type": "string"}, "verdict": {"type": "string", "enum": ["yes", "no"]}})
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
    """A paragraph, {"id", "text"} or {"id", "content"}, to an Exam record whose `answer` is the key. Dropped:
    not_exam_worthy, too_little_knowledge (the gates), not_worth_it (an empty object). Failed: a reply that still misses
    something after all attempts, by what it misses."""

    def __init__(self, config: Textbook, exemplars: Sequence[Instruction]) -> None:
        """`exemplars` are multiple-choice questions with their keys, to draw from. Raises ValueError: fewer exemplars than
        are to be shown."""
        if len(exemplars) < config.exemplars:
            raise ValueError(
                f"textbook.exemplars={config.exemplars}: only {len(exemplars)} are given; lower it or give more"
            )
        self.config = config
        self.exemplars = exemplars

    async def __call__(self, row: Row, ask: Ask) -> End:
        """Through both gates to the question."""
        text = row.get("text", row.get("content"))
        if not isinstance(text, str) or not text.strip():
            raise Misfit("no text under 'text' or 'content'")
        for form, reason in _GATES:
            reply = (await ask(self.config, [user(form.render(paragraph=text))], _VERDICT)).text
            verdict = read_text((read_object(reply) or {}).get("verdict")).casefold()
            if verdict == "no":
                return Drop(reason)
            if verdict != "yes":
                return Fail("unreadable_gate", reply[-200:])
        shown = "\n\n".join(_as_json(exemplar) for exemplar in self.draw(row)) or "(none)"
        chat = [user(_QUESTION.render(paragraph=text, exemplars=shown))]
        schema = choice_schema(LETTERS, needed=False, explained=True)
        return await ask_until(ask, self.config, chat, schema, partial(self._read, row))

    def draw(self, row: Row) -> list[Instruction]:
        """The exemplars shown with this record: always the same ones."""
        drawn = random.Random(derive_seed(self.config.seed, "exemplars", name_of(row)))
        return drawn.sample(list(self.exemplars), self.config.exemplars)

    def _read(self, row: Row, text: str) -> End | Miss:
        """The record of the question in a reply."""
        reply = read_object(text)
        if reply is None:
            return NO_JSON
        if not reply:
            return Drop("not_worth_it")
        question = read_question(reply, LETTERS)
        if isinstance(question, Miss):
            return question
        if _POINTER.search(question.text):
            return _POINTS
        explanation = read_text(reply.get("explanation"))
        more = {"explanation": explanation} if explanation else {}
        return Keep((new_row(f"{self.config.name},{name_of(row)}", "Exam", question, **more),))


def _as_json(exemplar: Instruction) -> str:
    shown = {"question": exemplar.stem, "options": exemplar.options, "answer": exemplar.key}
    return json.dumps(shown, ensure_ascii=False)
