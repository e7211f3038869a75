"""Candidate answers: each model answers on its own, then the answers to a record come together.

record --> CandidateStep (a run for each model) --> record + candidate  --+
                                                    record + candidate  --+--> gather --> record + candidates
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from ultramed_rl.config.factory_steps import Candidates
from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.answer import is_cut
from ultramed_rl.data.factory.instructions import question_text
from ultramed_rl.data.factory.judgements import Candidate
from ultramed_rl.data.factory.step import Ask, End, Fail, Keep, Row, name_of, user
from ultramed_rl.records import Message
from ultramed_rl.thoughts import after_thoughts

logger = logging.getLogger(__name__)

LEAST = 2  # candidates of a record, or there is nothing to compare


@dataclass(frozen=True)
class CandidateStep:
    """A record to one model's answer to it: the record with `candidate`, or a failure. Fails by: too_long (the instruction
    has more than `most_words` words), empty (nothing said, or thoughts that never end), unfinished (where config fails
    such). An answer that the generator knows to be cut off doesn't get here: it is an error of its request."""

    config: Candidates
    model: str

    async def __call__(self, row: Row, ask: Ask) -> End:
        question = question_text(row)
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
    """Whether a text seems to stop within a sentence; a lone word needs no mark. A guess from the text alone, so that it is the
    same for a cached reply."""
    return len(text.split()) > 1 and is_cut(text)


def gather_candidates(
    rows: Iterable[Row], answers: Mapping[str, Iterable[Row]], counts: Counter[str]
) -> Iterator[Row]:
    """Records with `candidates`, in the order of `rows`; the candidates in the order of `answers`.

    Args:
        rows: what the models were asked.
        answers: by model, what `CandidateStep` made of these rows, in their order. A record may lack in any, and
            needs two answers. All are read side by side, a row at a time.
        counts: gains records (that any model has answered), gathered, too_few, and missing_MODEL of each model.

    Raises:
        ValueError: an answer to a record that isn't in `rows`, or is at another place.
    """
    counts.update(records=0, gathered=0, too_few=0, **{f"missing_{model}": 0 for model in answers})
    sources = {model: iter(own) for model, own in answers.items()}
    upcoming = {model: next(source, None) for model, source in sources.items()}
    for row in rows:
        try:
            name = name_of(row)
        except Misfit:  # no model was asked about it
            continue
        own = {model: one for model, one in upcoming.items() if one is not None and _name(one) == name}
        upcoming |= {model: next(sources[model], None) for model in own}
        if own:
            counts.update(records=1, **{f"missing_{model}": model not in own for model in answers})
            counts["too_few" if len(own) < LEAST else "gathered"] += 1
        if len(own) >= LEAST:
            record = {
                column: value for column, value in next(iter(own.values())).items() if column != "candidate"
            }
            yield {
                **record,
                "candidates": [{**one["candidate"], "model": model} for model, one in own.items()],
            }
    for model, left in upcoming.items():
        if left is not None:
            raise ValueError(
                f"model {model!r}: answers record {_name(left)!r:.60}, which the input has not, or at another place; "
                "run it again on this input"
            )
        if missing := counts[f"missing_{model}"]:
            logger.warning("model %s has no answer to %d of %d records", model, missing, counts["records"])


def _name(row: Row) -> str:
    return name_of({column: value for column, value in row.items() if column != "candidate"})
