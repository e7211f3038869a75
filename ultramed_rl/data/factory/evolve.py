"""Evol-Instruct (arXiv 2304.12244): a question made harder by a few words, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

from ultramed_rl.config.factory import Evolve
from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.asking import Form, ask_until, user
from ultramed_rl.data.factory.choices import choice_schema
from ultramed_rl.data.factory.evolve_rules import count_words, fitting_methods, read_version, words_allowed
from ultramed_rl.data.factory.instructions import Instruction, new_row, read_instruction
from ultramed_rl.data.factory.methods import read_methods
from ultramed_rl.data.factory.step import Ask, Drop, End, Fail, Keep, Row, name_of
from ultramed_rl.learning.seeds import seeded_number

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


class EvolveStep:
    """A record to its harder version, "ID-evol2" after two rounds that fitted, without answer text and score.

    Its `evolution` lists each round as a `Change`. A multiple-choice question keeps its number of options, and
    its `answer` is the new version's key. A record of which no round fits stays as it is, but for `evolution`.
    With a `name` versions are of that set, to stand beside the originals, and such a record is dropped.
    """

    def __init__(self, config: Evolve) -> None:
        self.config = config

    async def __call__(self, row: Row, ask: Ask) -> End:
        """Round by round, each on the last version that fitted."""
        try:
            versions = [read_instruction(row)]
        except Misfit as misfit:
            return Fail("malformed_record", str(misfit))
        changes: list[Change] = []
        for number in range(1, self.config.rounds + 1):
            old, method = versions[-1], self.method(row, number)
            chat = [user(self._prompt(old, method))]
            schema = choice_schema("".join(old.options)) if old.options else _OPEN_SCHEMA
            read = partial(read_version, self.config, old, method)
            new = await ask_until(ask, self.config, chat, schema, read, attempts=self.config.attempts)
            if isinstance(new, Instruction):
                versions.append(new)
                changes.append(Change(number, method, count_words(new.stem) - count_words(old.stem)))
            elif self.config.on_miss == "drop":
                return Drop(new.reason)
            else:
                changes.append(Change(number, method, miss=new.reason))
        if self.config.name and len(versions) == 1:
            return Drop(changes[-1].miss)
        return Keep(self._rows(row, versions, changes))

    def method(self, row: Row, number: int) -> str:
        """The method of round `number` (from 1) for this record: always the same one."""
        methods = fitting_methods(self.config, read_instruction(row))
        return methods[seeded_number(self.config.seed, "method", name_of(row), number) % len(methods)]

    def _prompt(self, old: Instruction, method: str) -> str:
        least, most = map(str, words_allowed(self.config, method))
        if old.key is None:
            return _OPEN.render(question=old.text, method=_OPEN_METHODS[method], least=least, most=most)
        right = f"{old.key}. {old.options[old.key]}"
        if method == "distractors":
            return _DISTRACTORS.render(question=old.text, answer=right, most=most)
        own = _CHOICE_METHODS[method]
        return _CHOICE.render(question=old.text, answer=right, method=own, least=least, most=most)

    def _rows(self, row: Row, versions: Sequence[Instruction], changes: Sequence[Change]) -> tuple[Row, ...]:
        """The versions that become records, each with the rounds up to it."""
        evolution = [asdict(change) for change in changes]
        if len(versions) == 1:
            return ({**row, "evolution": evolution},)
        kind, own = str(row.get("type", "Exam" if versions[0].options else "Open-End")), name_of(row)
        name = f"{self.config.name},{own.partition(',')[2] or own}" if self.config.name else own
        fitted = [change.round for change in changes if not change.miss]
        ends = [*fitted[:-1], len(evolution)]  # the last version's rounds include the misses after it
        rows = tuple(
            new_row(f"{name}-evol{number}", kind, version, evolution=evolution[:end])
            for number, (version, end) in enumerate(zip(versions[1:], ends, strict=True), 1)
        )
        return rows if self.config.keep == "every" else rows[-1:]
