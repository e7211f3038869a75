"""Evol-Instruct (arXiv 2304.12244): a question made harder by a few words, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ultramed_rl.config.factory import Evolve
from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.asking import Form, Miss, ask, name_of, once_more, user
from ultramed_rl.data.factory.choices import choice_schema
from ultramed_rl.data.factory.evolve_rules import count_words, fitting_methods, read_version, words_allowed
from ultramed_rl.data.factory.instructions import Instruction, new_row, read_instruction
from ultramed_rl.data.factory.methods import read_methods
from ultramed_rl.data.factory.step import Ask, Drop, Fail, Keep, Move, Row
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import ChatReply

_OPEN = Form.read("evolve_open", "question", "method", "least", "most")
_CHOICE = Form.read("evolve_choice", "question", "answer", "method", "least", "most")
_DISTRACTORS = Form.read("evolve_distractors", "question", "answer", "most")
_OPEN_METHODS = read_methods("evolve_methods_open")
_CHOICE_METHODS = read_methods("evolve_methods_choice")
_OPEN_SCHEMA = (
    '{"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"], '
    '"additionalProperties": false}'
)


@dataclass(frozen=True)
class Change:
    """What a round did: how many words it added to the stem, or in `miss` why the earlier version was kept."""

    round: int
    method: str
    added_words: int = 0
    miss: str = ""


@dataclass(frozen=True)
class _State:
    """Where a record stands after its replies: its versions, oldest first, and the attempt of the next round."""

    versions: tuple[Instruction, ...]
    changes: tuple[Change, ...] = ()
    attempt: int = 0
    miss: Miss | None = None

    @property
    def round(self) -> int:
        return len(self.changes) + 1


class EvolveStep:
    """A record to its harder version, "ID-evol2" after two rounds that fitted, without answer text and score.

    Its `evolution` lists each round as a `Change`. A multiple-choice question keeps its number of options, and
    its `answer` is the new version's key. A record of which no round fits stays as it is, but for `evolution`.
    With a `name` versions are of that set, to stand beside the originals, and such a record is dropped.
    """

    def __init__(self, config: Evolve) -> None:
        self.config = config

    def start(self, row: Row) -> Move:
        """Ask for the first round."""
        try:
            first = read_instruction(row)
        except Misfit as misfit:
            return Fail("malformed_record", str(misfit))
        return self._ask(row, _State((first,)), ())

    def go_on(self, row: Row, replies: Sequence[ChatReply]) -> Move:
        """The round again, the next one, or the end."""
        state = _State((read_instruction(row),))
        for reply in replies:
            state = self._after(row, state, reply)
        last = state.changes[-1] if state.changes else None
        if last and last.miss and self.config.on_miss == "drop":
            return Drop(last.miss)
        if len(state.changes) == self.config.rounds:
            if self.config.name and len(state.versions) == 1 and last:
                return Drop(last.miss)
            return Keep(self._rows(row, state))
        return self._ask(row, state, replies)

    def method(self, row: Row, number: int) -> str:
        """The method of round `number` (from 1) for this record: always the same one."""
        methods = fitting_methods(self.config, read_instruction(row))
        return methods[seeded_number(self.config.seed, "method", name_of(row), number) % len(methods)]

    def _after(self, row: Row, state: _State, reply: ChatReply) -> _State:
        old, method = state.versions[-1], self.method(row, state.round)
        new = read_version(self.config, old, method, reply.text)
        if isinstance(new, Instruction):
            change = Change(state.round, method, count_words(new.stem) - count_words(old.stem))
            return _State((*state.versions, new), (*state.changes, change))
        if state.attempt + 1 < self.config.attempts:
            return _State(state.versions, state.changes, state.attempt + 1, new)
        return _State(state.versions, (*state.changes, Change(state.round, method, miss=new.reason)))

    def _ask(self, row: Row, state: _State, replies: Sequence[ChatReply]) -> Ask:
        old = state.versions[-1]
        chat = [user(self._prompt(old, self.method(row, state.round)))]
        if state.miss:
            chat = once_more(chat, replies[-1], state.miss)
        schema = choice_schema("".join(old.options)) if old.options else _OPEN_SCHEMA
        return ask(self.config, row, len(replies), chat, schema)

    def _prompt(self, old: Instruction, method: str) -> str:
        least, most = map(str, words_allowed(self.config, method))
        if old.key is None:
            return _OPEN.render(question=old.text, method=_OPEN_METHODS[method], least=least, most=most)
        right = f"{old.key}. {old.options[old.key]}"
        if method == "distractors":
            return _DISTRACTORS.render(question=old.text, answer=right, most=most)
        own = _CHOICE_METHODS[method]
        return _CHOICE.render(question=old.text, answer=right, method=own, least=least, most=most)

    def _name(self, row: Row) -> str:
        own = name_of(row)
        return f"{self.config.name},{own.partition(',')[2] or own}" if self.config.name else own

    def _rows(self, row: Row, state: _State) -> tuple[Row, ...]:
        """The versions that become records, each with the rounds up to it."""
        evolution = [asdict(change) for change in state.changes]
        if len(state.versions) == 1:
            return ({**row, "evolution": evolution},)
        kind, name = (
            str(row.get("type", "Exam" if state.versions[0].options else "Open-End")),
            self._name(row),
        )
        fitted = [number for number, change in enumerate(state.changes, 1) if not change.miss]
        ends = [*fitted[:-1], len(evolution)]  # the last version's rounds include the misses after it
        rows = tuple(
            new_row(f"{name}-evol{number}", kind, version, evolution=evolution[:end])
            for number, (version, end) in enumerate(zip(state.versions[1:], ends, strict=True), 1)
        )
        return rows if self.config.keep == "every" else rows[-1:]
