"""Candidate answers: each model answers on its own, then the answers to a record come together.

record --> CandidateStep (a run for each model) --> record + candidate  --+
                                                    record + candidate  --+--> gather --> record + candidates
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from ultramed_rl.config.factory_steps import Candidates
from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.asking import after_thoughts, user
from ultramed_rl.data.factory.instructions import question_text
from ultramed_rl.data.factory.judgements import Candidate
from ultramed_rl.data.factory.step import Ask, End, Fail, Keep, Row
from ultramed_rl.data.identity import row_id
from ultramed_rl.data.sources import read_rows
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Message

logger = logging.getLogger(__name__)

LEAST = 2  # candidates of a record, or there is nothing to compare
_END = re.compile(r"[.!?…:;。！？)\]}|]\Z")
_ITEM = re.compile(r"\s*(?:[-*•#|]|\(?(?:\d{1,2}|[A-Za-z])[.):](?:\s|\Z))")


@dataclass(frozen=True)
class CandidateStep:
    """A record to one model's answer to it: the record with `candidate`, or a failure.

    Fails by: misfit (no question), too_long (the instruction has more than `most_words` words), empty (nothing
    said, or thoughts that never end), unfinished (where config fails such). An answer that the generator knows
    to be cut off doesn't get here: it is an error of its request.
    """

    config: Candidates
    model: str

    async def __call__(self, row: Row, ask: Ask) -> End:
        """Asks the instruction as it is; keeps the answer, trimmed and without thoughts."""
        try:
            question = question_text(row)
        except Misfit as misfit:
            return Fail("misfit", str(misfit))
        words = len(question.split())
        if words > self.config.most_words:
            return Fail("too_long", f"{words} words, most_words={self.config.most_words}")
        system = [Message(role="system", content=self.config.system)] if self.config.system else []
        text = after_thoughts((await ask(self.config, [*system, user(question)])).text)
        if not text:
            return Fail("empty")
        unfinished = is_unfinished(text)
        if unfinished and self.config.unfinished == "fail":
            return Fail("unfinished", f"it ends in {text[-40:]!r}")
        return Keep(({**row, "candidate": asdict(Candidate(self.model, text, unfinished))},))


def is_unfinished(text: str) -> bool:
    """Whether a text seems to stop within a sentence: by its last line, which ends in no mark that closes one.

    A guess from the text alone, so that it is the same for a cached reply. A list's last item, a heading, a table
    and a lone word need no mark.
    """
    last = text.strip().rpartition("\n")[2]
    bare = last.rstrip().rstrip("*_`\"'”’$ ")
    lone = len(text.split()) < 2
    return not (lone or _END.search(bare) or _ITEM.match(last))


def gather_candidates(files: Mapping[str, str], counts: Counter[str]) -> Iterator[Row]:
    """Join the answers of several models: each record once, with `candidates` in the order of `files`.

    Files are what `CandidateStep` has written; a record may lack in any of them, and needs two answers. They are
    read side by side, twice. Memory holds two numbers a record and, of rows, no more than the files are apart in
    their order; the result is in the first file's order, what that one lacks in between.

    Args:
        files: a source (see `read_rows`) by model.
        counts: gains records (that any file has), gathered, too_few, and missing_MODEL of each model.

    Raises:
        ValueError: fewer than two models, an unreadable file, a row without id or candidate, an id that stands
            twice in a file, or one that has another question in another file.
    """
    if len(files) < LEAST:
        raise ValueError(
            f"{len(files)} models ({', '.join(files)}): candidates need {LEAST}; name more files"
        )
    holders = _find_holders(files)
    counts.update({"records": len(holders), "gathered": 0, "too_few": 0, **_count_missing(files, holders)})
    streams = [_Stream(model, uri) for model, uri in files.items()]
    for name in _names(streams, holders):
        held = holders[_number(name)]
        joined = _join([stream.take(name) for place, stream in enumerate(streams) if held >> place & 1])
        counts["gathered" if joined else "too_few"] += 1
        if joined:
            yield joined


@dataclass(frozen=True)
class _Answer:
    """A row of a model's file."""

    model: str
    name: str
    row: Row


class _Stream:
    """One model's rows: in file order, but for those that were taken ahead."""

    def __init__(self, model: str, uri: str) -> None:
        self._rows = _read_answers(model, uri)
        self.waiting: dict[str, _Answer] = {}  # read, and not yet taken

    def first(self) -> str | None:
        """The id of the first row that isn't taken; None after the last."""
        if not self.waiting and not self._read():
            return None
        return next(iter(self.waiting))

    def take(self, name: str) -> _Answer:
        """The row of an id that the file holds."""
        while name not in self.waiting:
            assert self._read(), f"{name} was there when the file was read first"
        return self.waiting.pop(name)

    def _read(self) -> bool:
        answer = next(self._rows, None)
        if answer is not None:
            self.waiting[answer.name] = answer
        return answer is not None


def _read_answers(model: str, uri: str) -> Iterator[_Answer]:
    for number, row in enumerate(read_rows(uri), start=1):
        name = row_id(row, ("id",))
        if not name or not isinstance(row.get("candidate"), dict):
            raise ValueError(
                f"source {uri!r}, row {number}: has no id or no candidate; give model {model!r} a file that the "
                "candidates stage wrote"
            )
        yield _Answer(model, name, row)


def _number(name: str) -> int:
    return seeded_number("record", name)


def _find_holders(files: Mapping[str, str]) -> dict[int, int]:
    """By an id's number, which files have it: bit k stands for the file at place k."""
    holders: dict[int, int] = {}
    for place, (model, uri) in enumerate(files.items()):
        for answer in _read_answers(model, uri):
            number, bit = _number(answer.name), 1 << place
            if holders.get(number, 0) & bit:
                raise ValueError(f"source {uri!r}: record {answer.name!r:.60} stands there twice; remove one")
            holders[number] = holders.get(number, 0) | bit
    return holders


def _count_missing(files: Mapping[str, str], holders: Mapping[int, int]) -> dict[str, int]:
    """By missing_MODEL how many records a model lacks; those who lack any are named in the log."""
    lacking = {
        model: sum(not held >> place & 1 for held in holders.values()) for place, model in enumerate(files)
    }
    for model, count in lacking.items():
        if count:
            logger.warning("model %s has no answer to %d of %d records", model, count, len(holders))
    return {f"missing_{model}": count for model, count in lacking.items()}


def _names(streams: Sequence[_Stream], holders: Mapping[int, int]) -> Iterator[str]:
    """Every record's id once, provided that its rows are taken before the next one is asked for."""
    for place, stream in enumerate(streams):
        while (name := stream.first()) is not None:
            yield name
            # What the others had to pass by, and no earlier file has, would wait until the end.
            for later, other in enumerate(streams[place + 1 :], start=place + 1):
                for passed in list(other.waiting):
                    held = holders[_number(passed)]
                    if passed in other.waiting and held & -held == 1 << later:
                        yield passed


def _join(answers: Sequence[_Answer]) -> Row | None:
    """The record with its candidates; None where they are too few."""
    first = answers[0]
    for answer in answers[1:]:
        if question_text(answer.row) != question_text(first.row):
            raise ValueError(
                f"record {first.name!r:.60}: models {first.model!r} and {answer.model!r} were asked different "
                "questions; gather answers to the same records"
            )
    if len(answers) < LEAST:
        return None
    record = {name: value for name, value in first.row.items() if name != "candidate"}
    return {
        **record,
        "candidates": [{**answer.row["candidate"], "model": answer.model} for answer in answers],
    }
