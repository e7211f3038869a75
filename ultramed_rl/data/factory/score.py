"""Score: how hard a question is, 1 to 10, with the reason; records below the threshold are dropped."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ultramed_rl.config.factory_steps import Score
from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.asking import (
    Form,
    Miss,
    after_thoughts,
    ask_until,
    object_schema,
    read_object,
    read_text,
    user,
)
from ultramed_rl.data.factory.difficulty import in_range, read_difficulty
from ultramed_rl.data.factory.instructions import question_text
from ultramed_rl.data.factory.step import Ask, Drop, End, Fail, Keep, Row

_FORMS = {form: Form.read(f"score_{form}", "question") for form in ("json", "text")}
_SCHEMA = json.dumps(
    object_schema(
        {"justification": {"type": "string"}, "score": {"type": "integer", "minimum": 1, "maximum": 10}}
    )
)
_NO_SCORE = Miss("no_score", "it gives no single score from 1 to 10")


@dataclass(frozen=True)
class ScoreStep:
    """A record to the same record with `score`, the scorer's text, and `difficulty`, the number in it.

    Dropped: below_threshold. Failed: no_score, after all attempts.
    """

    config: Score

    async def __call__(self, row: Row, ask: Ask) -> End:
        """Keep or drop by the score."""
        try:
            chat = [user(_FORMS[self.config.form].render(question=question_text(row)))]
        except Misfit as misfit:
            return Fail("malformed_record", str(misfit))
        schema = _SCHEMA if self.config.form == "json" else ""
        score = await ask_until(ask, self.config, chat, schema, self._read)
        if isinstance(score, Fail):
            return score
        text, difficulty = score
        if difficulty < self.config.threshold:
            return Drop("below_threshold")
        return Keep(({**row, "score": text, "difficulty": difficulty},))

    def _read(self, reply: str) -> tuple[str, float] | Miss:
        """The text to keep, in UltraMedical's form, and the score in it."""
        if self.config.form == "text":
            text = after_thoughts(reply)
            difficulty = read_difficulty(text)
        else:
            value = read_object(reply) or {}
            difficulty = in_range(value.get("score"))
            text = f"Score: {difficulty or 0:g}\n\nJustification: {read_text(value.get('justification'))}"
        return _NO_SCORE if difficulty is None else (text, difficulty)
