"""The judge: a record's candidates, shuffled, to scores by aspect and a strict ranking.

record + candidates --> order 1 --> reply --> read --(faulty: once more)--> [order 2, of a sample] --> judged row
"""

from __future__ import annotations

from collections.abc import Sequence

from ultramed_rl.config.factory_pairs import Feedback
from ultramed_rl.data.chats import Misfit, read_turns
from ultramed_rl.data.factory.asking import Form, Miss, ask, name_of, once_more, user
from ultramed_rl.data.factory.feedback_reply import Reading, feedback_schema, read_reply
from ultramed_rl.data.factory.instructions import question_text, read_instruction
from ultramed_rl.data.factory.judgements import Candidate, contradictions, judged_row, read_candidates
from ultramed_rl.data.factory.step import Fail, Keep, Move, Row
from ultramed_rl.data.templates import without_tags
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import ChatReply, Message

TRIES = 2  # of one order
_NAMES = ("question", "answer", "reference_answer")
_FORM = Form.read("feedback", "count", "question", "reference", "answers", "aspects", "names", "low", "high")
_ANSWER = Form.read("feedback_answer", "number", "text")
_REFERENCE = Form.read("feedback_reference", "reference")


class FeedbackStep:
    """A record with candidates to its judged row (see `judgements`), by a language model.

    The candidates are shown in an order drawn for the record, and numbered from 1 in the prompt and in the reply.
    A share of the records is judged a second time in the reverse order, which moves every candidate as far as can
    be: `position_report` compares. The first order's feedback counts, so that the sample changes no pair.

    A reply is faulty if it isn't the JSON asked for, leaves out or repeats a candidate, scores off the scale, or
    (see `inconsistent`) ranks against its own overall scores. It is asked for once more, with the fault named.

    Fails by: misfit (no question, or a multiple-choice record without options or key), too_few_candidates, or the
    fault. A second order that stays faulty fails nothing: the row says second=failed.
    """

    def __init__(self, config: Feedback, judge: str) -> None:
        self.config, self.judge = config, judge

    def start(self, row: Row) -> Move:
        """Asks for the first order."""
        try:
            messages = self._messages(row, 0)
        except Misfit as misfit:
            return Fail("misfit", str(misfit))
        if len(row["candidates"]) < 2:
            return Fail("too_few_candidates", f"{len(row['candidates'])} of at least 2")
        return ask(self.config, row, 0, messages, self._schema(row))

    def go_on(self, row: Row, replies: Sequence[ChatReply]) -> Move:
        """Reads what was said so far; asks again, for the second order, or is done."""
        first, rest = self._hear(row, 0, replies)
        if not isinstance(first, Reading):
            return self._answer_to(first, row, len(replies))
        if not self.asks_twice(row):
            return self._keep(row, [first], "unasked")
        second, _ = self._hear(row, 1, rest)
        if isinstance(second, Reading):
            return self._keep(row, [first, second], "asked")
        if isinstance(second, Miss):
            return self._keep(row, [first], "failed")
        return self._answer_to(second, row, len(replies))

    def asks_twice(self, row: Row) -> bool:
        """Whether the record is in the sample that is judged in two orders."""
        return seeded_number(self.config.seed, "second order", name_of(row)) < (
            self.config.second_order_share * 2**64
        )

    def shown(self, row: Row, which: int) -> tuple[int, ...]:
        """Places of the candidates as they are shown; the second order (which=1) is the first one's reverse."""
        places = range(len(row["candidates"]))
        drawn = sorted(
            places, key=lambda place: seeded_number(self.config.seed, "shown", name_of(row), place)
        )
        return tuple(reversed(drawn)) if which else tuple(drawn)

    # -- hearing ------------------------------------------------------------------------------------------

    def _hear(
        self, row: Row, which: int, replies: Sequence[ChatReply]
    ) -> tuple[Reading | Miss | list[Message], Sequence[ChatReply]]:
        """What an order came to, and the replies after it: a reading, its last fault, or what to ask next."""
        messages, shown = self._messages(row, which), self.shown(row, which)
        for attempt, reply in enumerate(replies[:TRIES], start=1):
            found = read_reply(reply.text, shown, self.config)
            if isinstance(found, Reading) and contradictions(found.verdicts):
                found = self._inconsistent(found, last=attempt == TRIES)
            if isinstance(found, Reading) or attempt == TRIES:
                return found, replies[attempt:]
            messages = once_more(messages, reply, found)
        return messages, ()

    def _inconsistent(self, reading: Reading, *, last: bool) -> Reading | Miss:
        policy = self.config.inconsistent
        if policy == "keep" or (policy == "retry" and last):
            return reading
        return Miss("inconsistent", "an answer stands in the ranking behind one with a lower overall score")

    def _answer_to(self, found: Miss | list[Message], row: Row, turn: int) -> Move:
        if isinstance(found, Miss):
            return Fail(found.reason, found.detail)
        return ask(self.config, row, turn, found, self._schema(row))

    def _keep(self, row: Row, readings: Sequence[Reading], second: str) -> Keep:
        orders = [reading.order for reading in readings]
        return Keep((judged_row(row, self.judge, readings[0].verdicts, orders, second),))

    # -- asking -------------------------------------------------------------------------------------------

    def _messages(self, row: Row, which: int) -> list[Message]:
        candidates, config = read_candidates(row), self.config
        shown = [candidates[place] for place in self.shown(row, which)]
        text = _FORM.render(
            count=str(len(shown)),
            question=without_tags(question_text(row), *_NAMES),
            reference=_reference(row),
            answers=_numbered(shown),
            aspects="\n".join(f"- {aspect.name}: {aspect.question}" for aspect in config.aspects),
            names=", ".join(f'"{aspect.name}": <score>' for aspect in config.aspects),
            low=str(config.low),
            high=str(config.high),
        )
        return [user(text)]

    def _schema(self, row: Row) -> str:
        return feedback_schema(len(row["candidates"]), self.config)


def _numbered(shown: Sequence[Candidate]) -> str:
    texts = (without_tags(candidate.text, *_NAMES) for candidate in shown)
    return "\n\n".join(_ANSWER.render(number=str(n), text=text) for n, text in enumerate(texts, start=1))


def _reference(row: Row) -> str:
    """Of multiple choice the key, and the record's own answer if it has one; of an open-ended record nothing."""
    instruction = read_instruction(row)
    if instruction.key is None:
        return ""
    key = f"{instruction.key}. {instruction.options[instruction.key]}"
    turns = read_turns(dict(row), "conversations")
    own = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    return _REFERENCE.render(reference=without_tags("\n\n".join([key, *own]), *_NAMES))
