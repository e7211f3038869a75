"""Paired comparisons and summaries against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.evaluation.statistics import Interval, Summary, paired_bootstrap, summarize, win_rate

NUMBERS = st.floats(-1e6, 1e6)
PAIRED = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=30)


def test_a_constant_difference_has_no_width() -> None:
    assert paired_bootstrap([1.0, 2.0, 5.0], [1.5, 2.5, 5.5], 200, seed=0) == Interval(0.5, 0.5, 0.5)


def test_two_items_by_hand() -> None:
    """Differences 0 and 1: a resample's mean is 0, 1/2 or 1, each tail with chance 1/4."""
    assert paired_bootstrap([0.0, 0.0], [0.0, 1.0], 4000, seed=3) == Interval(0.5, 0.0, 1.0)


def test_the_interval_is_the_textbook_one_for_many_items() -> None:
    """Half the differences are +1, half -1: the mean's deviation is 1/sqrt(n), 1.96 of them at each side."""
    after = [1.0, -1.0] * 200
    interval = paired_bootstrap([0.0] * 400, after, 4000, seed=1)
    assert interval.mean == 0.0
    assert interval.low == pytest.approx(-1.96 / 20, abs=0.01)
    assert interval.high == pytest.approx(1.96 / 20, abs=0.01)


def test_pairing_removes_what_items_share() -> None:
    before = [0.0, 100.0, -50.0, 7.0]
    interval = paired_bootstrap(before, [b + 1 for b in before], 500, seed=0)
    assert (interval.low, interval.high) == (1.0, 1.0)


def test_the_seed_decides() -> None:
    before = [float(i) for i in range(20)]
    after = before[::-1]
    assert paired_bootstrap(before, after, 300, 5) == paired_bootstrap(before, after, 300, 5)
    assert paired_bootstrap(before, after, 300, 5) != paired_bootstrap(before, after, 300, 6)


def test_wins_by_hand() -> None:
    """One win, one tie, two losses: (1 + 0.5) / 4."""
    assert win_rate([0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]) == 0.375


@given(PAIRED)
def test_wins_of_both_sides_make_one(pairs: list[tuple[float, float]]) -> None:
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    assert win_rate(before, after) + win_rate(after, before) == pytest.approx(1.0, abs=1e-12)


@given(PAIRED)
def test_the_interval_lies_between_the_extreme_differences(pairs: list[tuple[float, float]]) -> None:
    differences = [b - a for a, b in pairs]
    interval = paired_bootstrap([a for a, _ in pairs], [b for _, b in pairs], 100, seed=0)
    slack = 1e-6
    assert min(differences) - slack <= interval.low <= interval.high <= max(differences) + slack


def test_a_summary_by_hand() -> None:
    """0, 1, ..., 10: variance (n^2 - 1) / 12 = 10, and the quantiles fall on members."""
    assert summarize([float(i) for i in range(10, -1, -1)]) == Summary(5.0, math.sqrt(10), 1.0, 5.0, 9.0, 11)
    assert summarize([2.0]) == Summary(2.0, 0.0, 2.0, 2.0, 2.0, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="1 of 2 numbers are not finite"):
        summarize([1.0, value])
    with pytest.raises(ValueError, match="not finite"):
        win_rate([1.0, 1.0], [1.0, value])
    with pytest.raises(ValueError, match="not finite"):
        paired_bootstrap([value, 1.0], [1.0, 1.0], 10, 0)


def test_what_cannot_be_compared_is_refused() -> None:
    for before, after in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="equal numbers, at least one"):
            paired_bootstrap(before, after, 10, 0)
        with pytest.raises(ValueError, match="equal numbers, at least one"):
            win_rate(before, after)
    with pytest.raises(ValueError, match="no numbers"):
        summarize([])
    with pytest.raises(ValueError, match="resamples=0"):
        paired_bootstrap([1.0], [1.0], 0, 0)
