"""Score: how hard a question is, 1 to 10, with the reason; records below the threshold are dropped."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ultramed_rl.config.factory_steps import Score
from ultramed_rl.data.factory.instructions import question_text
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
    object_schema,
    read_object,
    read_text,
    user,
)
from ultramed_rl.thoughts import after_thoughts

LOW, HIGH = 1.0, 10.0
_SCALE = re.compile(
    r"\(?(?:\bon\s+)?(?:\b(?:a|the)\s+)?(?:\bscale\s+(?:of|from)\s+)?\b1\s*(?:-|–|to)\s*10\b(?!\d)(?:\s+scale\b)?\)?",
    re.IGNORECASE,
)
_SPELT = "one|two|three|four|five|six|seven|eight|nine|ten"
# A number to its end, perhaps out of a maximum; `choice` is there if another number stands beside it.
_NUMBER = (
    r"(?P<score>[-−]?\d++(?:\.\d++)?+)(?!\w|%)(?:\s*(?:/|out\s+of)\s*(?P<most>\d++))?+"
    rf"(?P<choice>\s*\(?(?:[-–—/,&]|\b(?:to|or|and)\b)\s*(?:(?:an?|maybe|perhaps|possibly|even)\s+)*(?:\d|(?:{_SPELT})\b))?"
)
_LABELLED = re.compile(
    r"^[\s*_#>\"'{-]*(?:(?:difficulty|complexity|overall|final|the|my)\s+(?:and\s+)?)*"
    r"(?:score|rating|difficulty|complexity|grade)(?:\s+(?:score|rating|level))?[\"'*_\s]*"
    rf"(?:[:=]|\s[-–—]\s|\bis\b)[\s*_\"'\[(]*{_NUMBER}",
    re.IGNORECASE | re.MULTILINE,
)
_BETWEEN = (
    r"(?:\s+(?:this|that|the|it|its|question|problem|item|instruction|difficulty|and|complexity|level|of|in|is|to"
    r"|would|likely|be|as|at|with|by|score|rating|an?|around|about|approximately|roughly|probably|solid))*"
)
# "An Apgar score of 7" and "a heart rate of 9" are findings of the question.
_RATED = re.compile(
    r"\b(?:rated|rating|rate\s+(?:this|that|the|it|its)|(?:give|assign)\s+(?:this|that|the|it)"
    r"|(?:a|the|my|its|overall|difficulty|complexity)\s+(?:score|rating|difficulty))"
    rf"{_BETWEEN}[\s*_\"'\[(:]*(?<![\d.]){_NUMBER}",
    re.IGNORECASE,
)
_ALONE = re.compile(rf"[\s*_#\"'\[(]*{_NUMBER}[\s*_\"'\]).]*", re.IGNORECASE)
_FORMS = {form: Form.read(f"score_{form}", "question") for form in ("json", "text")}
_SCHEMA = object_schema(
    {"justification": {"type": "string"}, "score": {"type": "integer", "minimum": 1, "maximum": 10}}
)
_NO_SCORE = Miss("no_score", "it gives no single score from 1 to 10")


@dataclass(frozen=True)
class ScoreStep:
    """A record to the same record with `score`, the scorer's text, and `difficulty`, the number in it. Dropped:
    below_threshold. Failed: no_score, after all attempts."""

    config: Score

    async def __call__(self, row: Row, ask: Ask) -> End:
        chat = [user(_FORMS[self.config.form].render(question=question_text(row)))]
        schema = _SCHEMA if self.config.form == "json" else None
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


def read_difficulty(text: str) -> float | None:
    """The score in a text, 1 to 10: "Score: 8", "would be rated as a 7", "7/10", "**9**". Labelled lines decide; else what
    the text says that it rates; else the text, or its last line, is the number alone. None for no score, for one out of
    range or of another maximum, for a choice ("7 or 8"), and for several that disagree."""
    text = _SCALE.sub(" ", text).strip()
    last = text.rpartition("\n")[2]
    matches = list(_LABELLED.finditer(text)) or list(_RATED.finditer(text))
    if not matches:
        matches = [match for match in (_ALONE.fullmatch(text), _ALONE.fullmatch(last)) if match]
    scores = {
        None
        if match["choice"] or (match["most"] and float(match["most"]) != HIGH)
        else in_range(float(match["score"].replace("−", "-")))
        for match in matches
    }
    return scores.pop() if len(scores) == 1 else None


def in_range(score: object) -> float | None:
    """The score as a number, or None if it is none from 1 to 10."""
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not LOW <= score <= HIGH:
        return None
    return float(score)
