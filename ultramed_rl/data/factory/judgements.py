"""A judged record: the row that a judge writes, a model or rules, and that pairs, bench and tables read.

record --> + candidates: [{"model", "text", "unfinished"}]
       --> + feedback:   [{"evaluation", "scores": {aspect: n}, "overall", "rank"}], one for each candidate
           + judge:      {"name", "consistent", "second", "orders": [{"shown", "ranking"}]}

`shown` and `ranking` hold places in `candidates`: as the judge saw them, and best first. All orders of a record
are of the same candidates; the first one's feedback counts, a second one only measures the judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ultramed_rl.data.factory.instructions import question_text
from ultramed_rl.data.factory.step import Row
from ultramed_rl.data.identity import row_id


@dataclass(frozen=True)
class Candidate:
    """One model's answer to a record; `unfinished`: it stops within a sentence."""

    model: str
    text: str
    unfinished: bool = False


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one candidate: scores by aspect, one overall, and its rank, 1 the best."""

    evaluation: str
    scores: Mapping[str, float]
    overall: float
    rank: int


@dataclass(frozen=True)
class Order:
    """One time that a judge was asked: places of the candidates as shown, and as ranked, best first."""

    shown: tuple[int, ...]
    ranking: tuple[int, ...]


@dataclass(frozen=True)
class Judged:
    """A judged record. `verdicts[i]` is of `candidates[i]`; `ranking` holds the places, best first."""

    prompt_id: str
    prompt: str
    candidates: tuple[Candidate, ...]
    verdicts: tuple[Verdict, ...]
    judge: str
    consistent: bool
    orders: tuple[Order, ...]

    @property
    def ranking(self) -> tuple[int, ...]:
        return tuple(sorted(range(len(self.verdicts)), key=lambda place: self.verdicts[place].rank))


def read_candidates(row: Row) -> tuple[Candidate, ...]:
    """The row's candidates. Raises ValueError as `read_judged`."""
    try:
        candidates = tuple(Candidate(**item) for item in row["candidates"])
        assert all(isinstance(one.model, str) and isinstance(one.text, str) for one in candidates)
    except (AssertionError, KeyError, TypeError):
        raise ValueError(_unfit(row, "candidates")) from None
    return candidates


def read_judged(row: Row) -> Judged:
    """The row of a judge.

    Raises:
        ValueError: it isn't one, or its ranks aren't 1 to n.
        Misfit: no question in it.
    """
    candidates = read_candidates(row)
    try:
        judge = row["judge"]
        verdicts = tuple(Verdict(**item) for item in row["feedback"])
        orders = tuple(Order(tuple(o["shown"]), tuple(o["ranking"])) for o in judge["orders"])
        said = (judge["name"], judge["consistent"], orders)
    except (KeyError, TypeError):
        raise ValueError(_unfit(row, "feedback")) from None
    if sorted(verdict.rank for verdict in verdicts) != list(range(1, len(candidates) + 1)):
        raise ValueError(_unfit(row, "feedback"))
    name = row_id(dict(row), ("id",))
    return Judged(name, question_text(row), candidates, verdicts, *said)


def judged_row(
    row: Row, judge: str, verdicts: Sequence[Verdict], orders: Sequence[Order], second: str = "unasked"
) -> dict[str, Any]:
    """The record with what a judge says of its candidates. `second` is unasked, asked or failed."""
    return {
        **row,
        "feedback": [{**vars(verdict), "scores": dict(verdict.scores)} for verdict in verdicts],
        "judge": {
            "name": judge,
            "consistent": not contradictions(verdicts),
            "second": second,
            "orders": [{"shown": list(o.shown), "ranking": list(o.ranking)} for o in orders],
        },
    }


def contradictions(verdicts: Sequence[Verdict]) -> int:
    """Pairs whose better rank has the lower overall score. Equal scores contradict no ranking."""
    ranked = [verdict.overall for verdict in sorted(verdicts, key=lambda verdict: verdict.rank)]
    return sum(worse > better for place, better in enumerate(ranked) for worse in ranked[place + 1 :])


def _unfit(row: Row, column: str) -> str:
    return (
        f"record {row.get('id')!r:.60}: column {column!r} holds {row.get(column)!r:.40}, not what the stage before "
        "writes, one for each candidate and ranks 1 to n; run that stage again"
    )
