"""Evol-Instruct (arXiv 2304.12244): a question made harder by a few words, round by round.

A harder version is complete, a few words longer, and free of traces of its making.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ultramed_rl.config.factory_steps import Evolve
from ultramed_rl.data.factory.instructions import (
    NO_JSON,
    Instruction,
    choice_schema,
    new_row,
    read_instruction,
    read_question,
)
from ultramed_rl.data.factory.step import (
    Ask,
    Drop,
    End,
    Form,
    Keep,
    Miss,
    Row,
    ask_until,
    name_of,
    object_schema,
    read_methods,
    read_object,
    read_text,
    user,
)
from ultramed_rl.learning.seeds import seeded_number

_OPEN = Form.read("evolve_open", "question", "method", "least", "most")
_CHOICE = Form.read("evolve_choice", "question", "answer", "method", "least", "most")
_DISTRACTORS = Form.read("evolve_distractors", "question", "answer", "most")
_OPEN_METHODS = read_methods("evolve_methods_open")
_CHOICE_METHODS = read_methods("evolve_methods_choice")
_OPEN_SCHEMA = object_schema({"question": {"type": "string"}})
_REWRITING = re.compile(
    r"\b(?:given|original|rewritten|evolved|initial)\s+(?:question|prompt|instruction)s?\b", re.IGNORECASE
)
_VERDICTS = {"yes", "no", "maybe"}


@dataclass(frozen=True)
class EvolveStep:
    """A record to its harder version, "ID-evol2" after two rounds that fitted, without answer text and score.

    Its `evolution` lists each round: round, method, added_words (to the stem), and in miss why the earlier version was
    kept. A multiple-choice question keeps its number of options, and
    its `answer` is the new version's key. A record of which no round fits stays as it is, but for `evolution`.
    With a `name` versions are of that set, to stand beside the originals, and such a record is dropped.
    """

    config: Evolve

    async def __call__(self, row: Row, ask: Ask) -> End:
        versions = [read_instruction(row)]
        changes: list[dict[str, Any]] = []
        for number in range(1, self.config.rounds + 1):
            old, method = versions[-1], self.method(row, number)
            chat = [user(self._prompt(old, method))]
            schema = choice_schema("".join(old.options)) if old.options else _OPEN_SCHEMA
            read = partial(read_version, self.config, old, method)
            new = await ask_until(ask, self.config, chat, schema, read)
            added, miss = 0, ""
            if isinstance(new, Instruction):
                versions.append(new)
                added = added_words(old, new)
            elif self.config.on_miss == "drop":
                return Drop(new.reason)
            else:
                miss = new.reason
            changes.append({"round": number, "method": method, "added_words": added, "miss": miss})
        if self.config.name and len(versions) == 1:
            return Drop(changes[-1]["miss"])
        return Keep(self._rows(row, versions, changes))

    def method(self, row: Row, number: int) -> str:
        """The method of round `number` (from 1) for this record: always the same one."""
        question, methods = read_instruction(row), list[str](self.config.open_methods)
        if question.options:  # where they are yes, no and maybe, there are no harder distractors
            fixed = {text.casefold() for text in question.options.values()} <= _VERDICTS
            own = list[str](self.config.choice_methods)
            methods = [method for method in own if method != "distractors" or not fixed] or own
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

    def _rows(self, row: Row, versions: Sequence[Instruction], evolution: Sequence[Row]) -> tuple[Row, ...]:
        """The versions that become records, each with the rounds up to it."""
        if len(versions) == 1:
            return ({**row, "evolution": evolution},)
        kind, own = str(row.get("type", "Exam" if versions[0].options else "Open-End")), name_of(row)
        name = f"{self.config.name},{own.partition(',')[2] or own}" if self.config.name else own
        fitted = [change["round"] for change in evolution if not change["miss"]]
        ends = [*fitted[:-1], len(evolution)]  # the last version's rounds include the misses after it
        rows = tuple(
            new_row(f"{name}-evol{number}", kind, version, evolution=evolution[:end])
            for number, (version, end) in enumerate(zip(versions[1:], ends, strict=True), 1)
        )
        return rows if self.config.keep == "every" else rows[-1:]


def words_allowed(config: Evolve, method: str) -> tuple[int, int]:
    """Fewest and most words that a round may add to the stem. Harder distractors need none."""
    return (0 if method == "distractors" else config.least_words), config.most_words


def read_version(config: Evolve, old: Instruction, method: str, text: str) -> Instruction | Miss:
    """The new version in a reply, or what it misses by itself or measured by the old one."""
    reply = read_object(text)
    if reply is None:
        return NO_JSON
    new: Instruction | Miss
    if old.options:
        new = read_question(reply, "".join(old.options))
    else:
        stem = read_text(reply.get("question"))
        new = Instruction(stem) if stem else Miss("no_question", "the question is empty")
    if isinstance(new, Miss):
        return new
    added = added_words(old, new)
    least, most = words_allowed(config, method)
    if not least <= added <= most:
        change = f"{added} words more" if added >= 0 else f"{-added} words fewer"
        reason = "too_few_words" if added < least else "too_many_words"
        return Miss(reason, f"the question has {change} than before; it needs {least} to {most} more")
    if method == "distractors" and _wrong(new) <= _wrong(old):
        return Miss("same_distractors", "none of the wrong options is new")
    if _REWRITING.search(new.text) and not _REWRITING.search(old.text):
        return Miss("speaks_of_rewriting", "the question speaks of an earlier version of itself")
    return new


def added_words(old: Instruction, new: Instruction) -> int:
    """By how many words, parted by white space, the new version's stem is longer."""
    return len(new.stem.split()) - len(old.stem.split())


def _wrong(question: Instruction) -> set[str]:
    """The wrong options in plain form, without their letters."""
    wrong = (text for letter, text in question.options.items() if letter != question.key)
    return {" ".join(text.casefold().split()) for text in wrong}
