"""Paired comparisons and summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


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
    differences = new - old
    picks = np.random.default_rng(seed).integers(len(differences), size=(resamples, len(differences)))
    low, high = np.percentile(differences[picks].mean(axis=1), [2.5, 97.5])
    return Interval(float(differences.mean()), float(low), float(high))


def win_rate(before: Sequence[float], after: Sequence[float]) -> float:
    """Share of items where `after` is higher; a tie counts a half. Raises like `paired_bootstrap`."""
    old, new = _paired(before, after)
    return float(((new > old) + 0.5 * (new == old)).mean())


def summarize(values: Sequence[float]) -> Summary:
    """Summary of finite numbers. Raises ValueError on none, or on one that isn't finite."""
    array = _finite(values)
    if not len(array):
        raise ValueError("no numbers to summarise")
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
