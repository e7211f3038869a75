"""Numbers out of judged rows: which model answers best, and whether the place of an answer decides its rank."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from ultramed_rl.data.factory.judgements import read_judged
from ultramed_rl.data.factory.step import Row


@dataclass(frozen=True)
class ModelTable:
    """Candidate models, best mean rank first. All lists are in the order of `models`.

    Args:
        answers: judged answers of each.
        mean_rank: 1 is best. Comparable where all models answered the same records: with fewer candidates in a
            record ranks are lower.
        mean_score: of the overall scores.
        win_rates: [i][j] how often i's answer was better than j's, a tie counting a half; None where the two never
            met, and on the diagonal. [i][j] + [j][i] = 1.
        meetings: [i][j] records in which both answered.
    """

    models: tuple[str, ...]
    answers: tuple[int, ...]
    mean_rank: tuple[float, ...]
    mean_score: tuple[float, ...]
    win_rates: tuple[tuple[float | None, ...], ...]
    meetings: tuple[tuple[int, ...], ...]


def model_table(rows: Iterable[Row]) -> ModelTable:
    """The table over judged rows, in one pass; memory holds a few numbers for every two models.

    The higher overall score wins, and equal ones tie; a rank is given also where the judge sees no difference.

    Raises:
        ValueError: no rows, a row that no judge wrote, or a model twice in one record.
    """
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
    return _table(sums, wins)


def _table(sums: Mapping[str, list[float]], wins: Mapping[tuple[str, str], float]) -> ModelTable:
    models = sorted(sums, key=lambda model: (sums[model][1] / sums[model][0], model))

    def met(i: str, j: str) -> int:
        return round(wins.get((i, j), 0.0) + wins.get((j, i), 0.0))

    return ModelTable(
        models=tuple(models),
        answers=tuple(int(sums[model][0]) for model in models),
        mean_rank=tuple(sums[model][1] / sums[model][0] for model in models),
        mean_score=tuple(sums[model][2] / sums[model][0] for model in models),
        win_rates=tuple(tuple(wins[i, j] / met(i, j) if met(i, j) else None for j in models) for i in models),
        meetings=tuple(tuple(met(i, j) for j in models) for i in models),
    )


@dataclass(frozen=True)
class PositionReport:
    """What changes with the order in which candidates are shown. None where no row tells.

    Args:
        records: judged rows; of these `twice` in two orders, and `inconsistent` with ranks against scores.
        tau: mean over records in two orders of Kendall's rank correlation of their rankings: 1 alike, 0 unrelated,
            -1 reversed.
        top_agreement: share of records in two orders with the same best candidate.
        first_share: share of records (first order) whose best candidate was shown first.
        first_expected: what it is if places don't matter: the mean of 1 / n. The first order is drawn at random,
            so that this holds whatever the candidates are worth.
        first_z: (share - expected) in standard errors of a judge to whom places don't matter; beyond 2 is a sign
            of bias.
    """

    records: int
    twice: int
    inconsistent: int
    tau: float | None
    top_agreement: float | None
    first_share: float | None
    first_expected: float | None
    first_z: float | None


def position_report(rows: Iterable[Row]) -> PositionReport:
    """The report on judged rows, in one pass; memory holds some numbers a row. Raises ValueError as `read_judged`."""
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
        taus += [kendall_tau(first.ranking, other.ranking) for other in others]
        same += [first.ranking[0] == other.ranking[0] for other in others]
    return PositionReport(
        records=len(firsts),
        twice=len(taus),
        inconsistent=inconsistent,
        tau=fmean(taus) if taus else None,
        top_agreement=fmean(same) if same else None,
        first_share=fmean(firsts) if firsts else None,
        first_expected=fmean(chances) if chances else None,
        first_z=_z(sum(firsts), chances) if firsts else None,
    )


def kendall_tau(one: Sequence[int], other: Sequence[int]) -> float:
    """Kendall's rank correlation of two strict rankings of the same items: (agreeing - differing) / all pairs.

    Raises:
        ValueError: fewer than two items, or not the same ones.
    """
    if len(one) < 2 or len(set(one)) < len(one) or sorted(one) != sorted(other):
        raise ValueError(
            f"rankings {list(one)} and {list(other)}: must hold the same two or more items, each once"
        )
    place = {item: index for index, item in enumerate(other)}
    agreeing = [place[better] < place[worse] for better, worse in combinations(one, 2)]
    return 2 * sum(agreeing) / len(agreeing) - 1


def _z(found: int, chances: Sequence[float]) -> float:
    """How far a count is from its expectation, where each case has its own chance (never 0 or 1 here)."""
    return (found - sum(chances)) / math.sqrt(sum(chance * (1 - chance) for chance in chances))
