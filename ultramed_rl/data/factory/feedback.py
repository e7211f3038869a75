"""The judge: a record's candidates, shuffled, to scores by aspect and a strict ranking.

record + candidates --> order 1 --> reply --> read --(faulty: once more)--> [order 2, of a sample] --> judged row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ultramed_rl.config.factory_steps import Feedback
from ultramed_rl.data.chats import read_turns
from ultramed_rl.data.factory.instructions import NO_JSON, question_text, read_instruction
from ultramed_rl.data.factory.judgements import Order, Verdict, contradictions, judged_row, read_candidates
from ultramed_rl.data.factory.step import (
    Ask,
    End,
    Fail,
    Form,
    Keep,
    Miss,
    Row,
    Schema,
    name_of,
    object_schema,
    once_more,
    read_object,
    read_text,
    user,
)
from ultramed_rl.data.templates import without_tags
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Message

TRIES = 2  # of one order
_NAMES = ("question", "answer", "reference_answer")
_FORM = Form.read("feedback", "count", "question", "reference", "answers", "aspects", "names", "low", "high")
_ANSWER = Form.read("feedback_answer", "number", "text")
_REFERENCE = Form.read("feedback_reference", "reference")
_INCONSISTENT = Miss("inconsistent", "an answer stands in the ranking behind one with a lower overall score")


@dataclass(frozen=True)
class FeedbackStep:
    """A record with candidates to its judged row (see `judgements`), by a language model.

    The candidates are shown in an order drawn for the record, and numbered from 1 in the prompt and in the reply.
    A share of the records is judged a second time in the reverse order, which moves every candidate as far as can
    be: `position_report` compares. The first order's feedback counts, so that the sample changes no pair.

    A reply is faulty if it isn't the JSON asked for, leaves out or repeats a candidate, scores off the scale, or
    (see `inconsistent`) ranks against its own overall scores. It is asked for once more, with the fault named.

    Fails by: too_few_candidates, or the fault. A second order that stays faulty fails nothing: the row says second=failed.
    """

    config: Feedback
    judge: str

    async def __call__(self, row: Row, ask: Ask) -> End:
        messages = [self._messages(row, which) for which in range(1 + self.asks_twice(row))]
        if len(row["candidates"]) < 2:
            return Fail("too_few_candidates", f"{len(row['candidates'])} of at least 2")
        readings = []
        for which, asked in enumerate(messages):
            reading = await self._judge(row, which, asked, ask)
            if not isinstance(reading, Miss):
                readings.append(reading)
            elif which == 0:
                return Fail(reading.reason, reading.detail)
        second = "unasked" if len(messages) == 1 else "asked" if len(readings) == 2 else "failed"
        orders = [order for _, order in readings]
        return Keep((judged_row(row, self.judge, readings[0][0], orders, second),))

    def asks_twice(self, row: Row) -> bool:
        """Whether the record is in the sample that is judged in two orders."""
        drawn = seeded_number(self.config.seed, "second order", name_of(row))
        return drawn < self.config.second_order_share * 2**64

    def shown(self, row: Row, which: int) -> tuple[int, ...]:
        """Places of the candidates as they are shown; the second order (which=1) is the first one's reverse."""
        draw = lambda place: seeded_number(self.config.seed, "shown", name_of(row), place)
        return tuple(sorted(range(len(row["candidates"])), key=draw, reverse=bool(which)))

    async def _judge(self, row: Row, which: int, messages: list[Message], ask: Ask) -> Reading | Miss:
        """What one order came to, or the fault of its last reply."""
        schema, policy = feedback_schema(len(row["candidates"]), self.config), self.config.inconsistent
        for attempt in range(1, TRIES + 1):
            reply = await ask(self.config, messages, schema)
            reading = read_reply(reply.text, self.shown(row, which), self.config)
            allowed = policy == "keep" or (policy == "retry" and attempt == TRIES)
            if isinstance(reading, Miss):
                fault = reading
            elif allowed or not contradictions(reading[0]):
                return reading
            else:
                fault = _INCONSISTENT
            messages = once_more(messages, reply.text, fault)
        return fault

    def _messages(self, row: Row, which: int) -> list[Message]:
        candidates, config = read_candidates(row), self.config
        texts = [without_tags(candidates[place].text, *_NAMES) for place in self.shown(row, which)]
        answers = [_ANSWER.render(number=str(n), text=text) for n, text in enumerate(texts, start=1)]
        text = _FORM.render(
            count=str(len(texts)),
            question=without_tags(question_text(row), *_NAMES),
            reference=_reference(row),
            answers="\n\n".join(answers),
            aspects="\n".join(f"- {aspect.name}: {aspect.question}" for aspect in config.aspects),
            names=", ".join(f'"{aspect.name}": <score>' for aspect in config.aspects),
            low=str(config.low),
            high=str(config.high),
        )
        return [user(text)]


def _reference(row: Row) -> str:
    """Of multiple choice the key, and the record's own answer if it has one; of an open-ended record nothing."""
    instruction = read_instruction(row)
    if instruction.key is None:
        return ""
    key = f"{instruction.key}. {instruction.options[instruction.key]}"
    turns = read_turns(dict(row), "conversations")
    own = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    return _REFERENCE.render(reference=without_tags("\n\n".join([key, *own]), *_NAMES))


def feedback_schema(count: int, config: Feedback) -> Schema:
    """The JSON schema of a reply on `count` candidates. That a ranking holds each once, no schema says."""
    number = {"type": "integer", "minimum": 1, "maximum": count}
    score = {"type": "integer", "minimum": config.low, "maximum": config.high}
    parts = {
        "number": number,
        "evaluation": {"type": "string"},
        "scores": object_schema({aspect.name: score for aspect in config.aspects}),
        "overall": score,
    }
    size = {"type": "array", "minItems": count, "maxItems": count}
    evaluations, ranking = {**size, "items": object_schema(parts)}, {**size, "items": number}
    return object_schema({"evaluations": evaluations, "ranking": ranking})


# What a reply says: verdicts in the candidates' own order, and how these were shown.
Reading = tuple[tuple[Verdict, ...], Order]


def read_reply(text: str, shown: Sequence[int], config: Feedback) -> Reading | Miss:
    """The verdicts in a judge's reply, moved back from the order in which the candidates were shown; or its fault:
    unreadable_reply, bad_evaluations, bad_ranking, bad_score."""
    reply, count = read_object(text), len(shown)
    if reply is None:
        return NO_JSON
    if (ranking := _permutation(reply.get("ranking"), count)) is None:
        return Miss("bad_ranking", f"the ranking does not hold each of the numbers 1 to {count} exactly once")
    given = reply.get("evaluations")
    items = given if isinstance(given, list) and all(isinstance(item, dict) for item in given) else []
    if (numbers := _permutation([item.get("number") for item in items], count)) is None:
        return Miss("bad_evaluations", f"the answers 1 to {count} are not each evaluated exactly once")
    names = [aspect.name for aspect in config.aspects]
    verdicts: dict[int, Verdict] = {}
    for number, item in zip(numbers, items, strict=True):
        named = item["scores"] if isinstance(item.get("scores"), dict) else {}
        *scores, overall = (*map(named.get, names), item.get("overall"))
        if not all(type(score) is int and config.low <= score <= config.high for score in [*scores, overall]):
            scale = f"from {config.low} to {config.high} for {', '.join(names)} and overall"
            return Miss("bad_score", f"the scores of answer {number} are not whole numbers {scale}")
        by_name, rank = dict(zip(names, scores, strict=True)), ranking.index(number) + 1
        verdicts[shown[number - 1]] = Verdict(read_text(item.get("evaluation")), by_name, overall, rank)
    order = Order(tuple(shown), tuple(shown[number - 1] for number in ranking))
    return tuple(verdicts[place] for place in range(count)), order


def _permutation(value: Any, count: int) -> list[int] | None:
    """A list of each of the numbers 1 to `count`, once; else None. True is no number."""
    if not isinstance(value, list) or not all(type(number) is int for number in value):
        return None
    return value if sorted(value) == list(range(1, count + 1)) else None
