"""Rubrics out of reference answers: criteria with points, of both signs.

Positive criteria alone reward whoever says much: in RubricHub's runs they lowered HealthBench, so a rubric without a negative one
is asked for again.
"""

from __future__ import annotations

from dataclasses import dataclass

from ultramed_rl.config.factory_steps import WriteRubric
from ultramed_rl.data.chats import Misfit, read_turns
from ultramed_rl.data.factory.instructions import question_text
from ultramed_rl.data.factory.step import (
    Ask,
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

_FORM = Form.read("rubric", "question", "reference", "most")
_CRITERION = object_schema(
    {"criterion": {"type": "string"}, "points": {"type": "integer", "minimum": -10, "maximum": 10}}
)
_SCHEMA = object_schema({"criteria": {"type": "array", "minItems": 2, "items": _CRITERION}})
Rubric = list[dict[str, str | int]]


@dataclass(frozen=True)
class RubricStep:
    """A record with an answer to the same record with `rubrics`, in HealthBench's form. Failed: misfit (no question, or no
    answer to go by); after all attempts no_criteria, bad_points, repeated, one_sign."""

    config: WriteRubric

    async def __call__(self, row: Row, ask: Ask) -> End:
        """Ask until the rubric can be used."""
        try:
            turns = read_turns(dict(row), "conversations")
            said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
            if not said:
                raise Misfit("no answer that a rubric could be written from")
            text = _FORM.render(
                question=question_text(row), reference="\n\n".join(said), most=str(self.config.most)
            )
        except Misfit as misfit:
            return Fail("misfit", str(misfit))
        rubric = await ask_until(ask, self.config, [user(text)], _SCHEMA, self._read)
        return rubric if isinstance(rubric, Fail) else Keep(({**row, "rubrics": rubric},))

    def _read(self, reply: str) -> Rubric | Miss:
        """The criteria in a reply, the first `most` of them, or what they lack."""
        given = (read_object(reply) or {}).get("criteria")
        items = given if isinstance(given, list) else []
        if not items or not all(isinstance(i, dict) and read_text(i.get("criterion")) for i in items):
            return Miss("no_criteria", "it is no JSON object with a list of criteria, each with its text")
        if not all(type(i.get("points")) is int and 0 < abs(i["points"]) <= 10 for i in items):
            return Miss("bad_points", "points are not whole numbers from -10 to 10 other than 0")
        rubric: Rubric = [{"criterion": read_text(i["criterion"]), "points": i["points"]} for i in items]
        kept = rubric[: self.config.most]
        if len({str(c["criterion"]).casefold() for c in kept}) < len(kept):
            return Miss("repeated", "two criteria say the same")
        if len({int(c["points"]) > 0 for c in kept}) < 2:
            return Miss(
                "one_sign", "it needs criteria with positive points and criteria with negative points"
            )
        return kept
