"""Judged records: the row that a judge writes, a model or rules; which model answers best by many of them, and whether
the place of an answer decides its rank.

record --> + candidates: [{"model", "text", "unfinished"}]
       --> + feedback:   [{"evaluation", "scores": {aspect: n}, "overall", "rank"}], one for each candidate
           + judge:      {"name", "consistent", "second", "orders": [{"shown", "ranking"}]}

`shown` and `ranking` hold places in `candidates`: as the judge saw them, and best first. All orders of a record
are of the same candidates; the first one's feedback counts, a second one only measures the judge.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

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


# -- many of them -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelTable:
    """Candidate models, best mean rank first. All lists are in the order of `models`."""

    models: tuple[str, ...]
    answers: tuple[int, ...]  # judged, of each
    # 1 is best. Comparable where all models answered the same records: with fewer candidates ranks are lower.
    mean_rank: tuple[float, ...]
    mean_score: tuple[float, ...]  # of the overall scores
    # [i][j] how often i's answer was better than j's, a tie counting a half; None where the two never met, and on the
    # diagonal. [i][j] + [j][i] = 1.
    win_rates: tuple[tuple[float | None, ...], ...]
    meetings: tuple[tuple[int, ...], ...]  # [i][j] records in which both answered


def model_table(rows: Iterable[Row]) -> ModelTable:
    """The table over judged rows, in one pass; memory holds a few numbers for every two models. The higher overall score
    wins, and equal ones tie; a rank is given also where the judge sees no difference. Raises ValueError: no rows, a row
    that no judge wrote, or a model twice in one record."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])  # answers, ranks, scores
    wins: dict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        judged = read_judged(row)
        models = [candidate.model for candidate in judged.candidates]
        if len(set(models)) < len(models):
            raise ValueError(f"record {judged.prompt_id!r:.60}: models are {models}; give each its own name")
        for model, verdict in zip(models, judged.verdicts, strict=True):
            answers, ranks, scores = sums[model]
            sums[model] = [answers + 1, ranks + verdict.rank, scores + verdict.overall]
        for i, j in combinations(range(len(models)), 2):
            lead = judged.verdicts[i].overall - judged.verdicts[j].overall
            won = 0.5 + 0.5 * (lead > 0) - 0.5 * (lead < 0)
            wins[models[i], models[j]] += won
            wins[models[j], models[i]] += 1 - won
    if not sums:
        raise ValueError("0 judged rows: a table of models needs at least one; run the feedback stage first")
    ranked = sorted(sums, key=lambda model: (sums[model][1] / sums[model][0], model))
    met = {(i, j): round(wins[i, j] + wins[j, i]) for i in ranked for j in ranked}
    return ModelTable(
        models=tuple(ranked),
        answers=tuple(int(sums[model][0]) for model in ranked),
        mean_rank=tuple(sums[model][1] / sums[model][0] for model in ranked),
        mean_score=tuple(sums[model][2] / sums[model][0] for model in ranked),
        win_rates=tuple(tuple(wins[i, j] / met[i, j] if met[i, j] else None for j in ranked) for i in ranked),
        meetings=tuple(tuple(met[i, j] for j in ranked) for i in ranked),
    )


@dataclass(frozen=True)
class PositionReport:
    """What changes with the order in which candidates are shown. None where no row tells."""

    records: int  # judged rows
    twice: int  # of these, in two orders
    inconsistent: int  # of these, with ranks against scores
    # The mean over records in two orders of Kendall's rank correlation: 1 alike, 0 unrelated, -1 reversed.
    tau: float | None
    top_agreement: float | None  # share of records in two orders with the same best candidate
    first_share: float | None  # share of records (first order) whose best candidate was shown first
    # What it is if places don't matter: the mean of 1 / n. The first order is drawn at random, so that this holds
    # whatever the candidates are worth.
    first_expected: float | None
    # The difference in standard errors of a judge to whom places don't matter; over 2: a bias.
    first_z: float | None


def position_report(rows: Iterable[Row]) -> PositionReport:
    """The report on judged rows, in one pass; memory holds some numbers a row. Raises ValueError as `read_judged`."""
    from scipy.stats import kendalltau

    taus: list[float] = []
    same: list[bool] = []
    firsts: list[bool] = []
    chances: list[float] = []
    inconsistent = 0
    for row in rows:
        judged = read_judged(row)
        if not judged.orders:  # a judge by rules sees no order
            continue
        first, *others = judged.orders
        inconsistent += not judged.consistent
        firsts.append(first.ranking[0] == first.shown[0])
        chances.append(1 / len(first.shown))
        for other in others:
            taus.append(float(kendalltau(np.argsort(first.ranking), np.argsort(other.ranking)).statistic))
        same += [first.ranking[0] == other.ranking[0] for other in others]
    # How far the count is from its expectation, each record with its own chance (never 0 or 1 here).
    spread = math.sqrt(sum(chance * (1 - chance) for chance in chances))
    return PositionReport(
        records=len(firsts),
        twice=len(taus),
        inconsistent=inconsistent,
        tau=fmean(taus) if taus else None,
        top_agreement=fmean(same) if same else None,
        first_share=fmean(firsts) if firsts else None,
        first_expected=fmean(chances) if chances else None,
        first_z=(sum(firsts) - sum(chances)) / spread if firsts else None,
    )
