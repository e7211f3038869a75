"""Does the place at which a judge sees an answer decide its rank? Pure numbers from judged rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from ultramed_rl.data.factory.judgements import read_judged
from ultramed_rl.data.factory.step import Row


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
