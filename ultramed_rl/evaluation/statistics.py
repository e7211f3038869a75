"""Paired comparisons, intervals and summaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959964  # deviations of a normal number within which 95 % of them are
_DRAWS = 100_000  # of a bootstrap that are in memory at once


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval. In a number's format, as of +.2f: +1.49 (+0.97 to +2.02)."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """Of a change: 1 or -1 where the interval leaves no doubt of its sign, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    @property
    def mark(self) -> str:
        """A star where the sign is beyond doubt."""
        return " *" if self.sign else ""

    def __format__(self, form: str) -> str:
        return f"{self.mean:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True)
class McNemar:
    """Items that are right on one side only, and the two-sided p-value of "both sides are equally good"."""

    only_before: int
    only_after: int
    p_value: float


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (population) and quantiles."""

    mean: float
    std: float
    p10: float
    p50: float
    p90: float
    count: int


def paired_bootstrap(before: Sequence[float], after: Sequence[float], resamples: int, seed: int) -> Interval:
    """Mean of after - before with a percentile bootstrap interval over items (Efron 1979).

    Raises:
        ValueError: lengths differ, nothing to compare, or a number isn't finite.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1")
    old, new = _paired(before, after)
    means = _resampled_means(new - old, resamples, np.random.default_rng(seed))
    return _percentiles(float((new - old).mean()), means)


def mean_interval(values: Sequence[float], resamples: int, seed: int) -> Interval:
    """The mean with its interval, as `paired_bootstrap` gives it: a mean is its difference from zero."""
    return paired_bootstrap([0.0] * len(values), values, resamples, seed)


def seeds_bootstrap(
    runs: Sequence[Sequence[float]],
    resamples: int,
    seed: int,
    *,
    less: Sequence[Sequence[float]] | None = None,
) -> Interval:
    """The mean over runs of one config that differ in their seed, each run's own mean counting alike, with a percentile interval
    of the hierarchical bootstrap (Davison and Hinkley 1997, section 3.8): runs are drawn, then within each drawn one its items.

    One run's interval over items says how much these items tell of this run. It is blind to training's own chance, which this
    one holds too. Few runs make it too narrow: by a factor of about sqrt(1 - 1/n), 0.82 at three, 0.71 at two.

    Args:
        runs: of each its items, as the reward's change by prompt; their number may differ, and be one.
        less: other runs, whose mean is taken off: the difference of two configs.

    Raises:
        ValueError: fewer than two runs, one without items, or a number that isn't finite.
    """
    if resamples < 1:
        raise ValueError(f"resamples={resamples}: must be at least 1")
    dice, mean, draws = np.random.default_rng(seed), 0.0, np.zeros(resamples)
    for sign, of in ((1.0, runs), (-1.0, less or ())):
        if len(of) < 2 and (sign > 0 or less is not None):
            raise ValueError(
                f"{len(of)} runs: says nothing of what another seed would give; needs two at least"
            )
        drawn = dice.integers(max(1, len(of)), size=(resamples, len(of)))
        for place, values in enumerate(map(_finite, of)):
            if not len(values):
                raise ValueError(f"run {place}: 0 items, needs at least one")
            means = np.zeros(drawn.shape)
            means[drawn == place] = _resampled_means(values, int((drawn == place).sum()), dice)
            draws += sign * means.sum(axis=1) / len(of)
            mean += sign * float(values.mean()) / len(of)
    return _percentiles(mean, draws)


def _resampled_means(values: np.ndarray, resamples: int, dice: np.random.Generator) -> np.ndarray:
    """The means of so many samples of the values with replacement, each as large as they are."""
    items = len(values)
    together = max(1, _DRAWS // items)  # resamples: of many items, all draws would be gigabytes
    sizes = [min(together, resamples - done) for done in range(0, resamples, together)]
    means = [values[dice.integers(items, size=(size, items))].mean(axis=1) for size in sizes]
    return np.concatenate(means) if means else np.zeros(0)


def _percentiles(mean: float, draws: np.ndarray) -> Interval:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def wilson_interval(right: float, total: int) -> Interval:
    """The share of right answers with its score interval (Wilson 1927).

    Unlike the normal interval it stays in 0..1 and keeps a width where all or none are right.

    Raises:
        ValueError: total < 1, or right outside 0..total.
    """
    if total < 1 or not 0 <= right <= total:
        raise ValueError(f"{right} right of {total}: needs at least one item, and right in 0..total")
    share, spread = right / total, Z * Z / total
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # Rounding must not move an end past the share that it touches at 0 and 1.
    return Interval(share, centre - half if right else 0.0, centre + half if right < total else 1.0)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Exact test of two accuracies on the same items (McNemar 1947, with the binomial distribution).

    Raises:
        ValueError: lengths differ, or nothing to compare.
    """
    from scipy.stats import binomtest

    old, new = _paired(before, after)
    only_before, only_after = int((old > new).sum()), int((new > old).sum())
    differing = only_before + only_after
    p_value = float(binomtest(only_before, differing).pvalue) if differing else 1.0
    return McNemar(only_before, only_after, p_value)


def win_rate(before: Sequence[float], after: Sequence[float]) -> float:
    """Share of items where `after` is higher; a tie counts a half. Raises like `paired_bootstrap`."""
    old, new = _paired(before, after)
    return float(((new > old) + 0.5 * (new == old)).mean())


def summarize(values: Sequence[float]) -> Summary:
    """Summary of finite numbers. Raises ValueError on none, or on one that isn't finite."""
    array = _finite(values)
    if not len(array):
        raise ValueError("0 numbers: a summary needs at least one")
    p10, p50, p90 = np.percentile(array, [10, 50, 90])
    return Summary(float(array.mean()), float(array.std()), float(p10), float(p50), float(p90), len(array))


def _paired(before: Sequence[float], after: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    if len(before) != len(after) or not len(before):
        raise ValueError(
            f"paired comparison of {len(before)} and {len(after)} items: needs equal numbers, at least one"
        )
    return _finite(before), _finite(after)


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {len(array)} numbers are not finite")
    return array
