"""Score: how hard a question is, 1 to 10, with the reason; records below the threshold are dropped."""

from __future__ import annotations

from collections.abc import Sequence

from ultramed_rl.config.factory import Score
from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.asking import (
    Form,
    Miss,
    after_thoughts,
    ask,
    once_more,
    read_object,
    read_text,
    user,
)
from ultramed_rl.data.factory.difficulty import in_range, read_difficulty
from ultramed_rl.data.factory.instructions import question_text
from ultramed_rl.data.factory.step import Ask, Drop, Fail, Keep, Move, Row
from ultramed_rl.records import ChatReply, Message

_FORMS = {form: Form.read(f"score_{form}", "question") for form in ("json", "text")}
_SCHEMA = (
    '{"type": "object", "properties": {"justification": {"type": "string"}, '
    '"score": {"type": "integer", "minimum": 1, "maximum": 10}}, '
    '"required": ["justification", "score"], "additionalProperties": false}'
)
_NO_SCORE = Miss("no_score", "it gives no single score from 1 to 10")


class ScoreStep:
    """A record to the same record with `score`, the scorer's text, and `difficulty`, the number in it.

    Dropped: below_threshold. Failed: no_score, after all attempts.
    """

    def __init__(self, config: Score) -> None:
        self.config = config

    def start(self, row: Row) -> Move:
        """Ask for the score."""
        try:
            question_text(row)
        except Misfit as misfit:
            return Fail("malformed_record", str(misfit))
        return self._ask(row, 0, self._chat(row))

    def go_on(self, row: Row, replies: Sequence[ChatReply]) -> Move:
        """Keep or drop by the score; without one, ask again or give up."""
        text, difficulty = self.read(replies[-1].text)
        if difficulty is None:
            if len(replies) == self.config.attempts:
                return Fail(_NO_SCORE.reason, replies[-1].text[-200:])
            return self._ask(row, len(replies), once_more(self._chat(row), replies[-1], _NO_SCORE))
        if difficulty < self.config.threshold:
            return Drop("below_threshold")
        return Keep(({**row, "score": text, "difficulty": difficulty},))

    def read(self, reply: str) -> tuple[str, float | None]:
        """The text to keep, in UltraMedical's form, and the score in it."""
        if self.config.form == "text":
            text = after_thoughts(reply)
            return text, read_difficulty(text)
        value = read_object(reply) or {}
        difficulty = in_range(value.get("score"))
        if difficulty is None:
            return "", None
        return f"Score: {difficulty:g}\n\nJustification: {read_text(value.get('justification'))}", difficulty

    def _chat(self, row: Row) -> list[Message]:
        return [user(_FORMS[self.config.form].render(question=question_text(row)))]

    def _ask(self, row: Row, turn: int, chat: Sequence[Message]) -> Ask:
        return ask(self.config, row, turn, chat, _SCHEMA if self.config.form == "json" else "")
