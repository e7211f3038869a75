"""Paired comparisons and summaries against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.evaluation.statistics import (
    Interval,
    McNemar,
    Summary,
    mcnemar,
    paired_bootstrap,
    seeds_bootstrap,
    summarize,
    wilson_interval,
    win_rate,
)

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


def test_two_runs_by_hand() -> None:
    """Runs of mean 1 and 3, items all alike: two drawn runs have a mean of 1, 2 or 3, the tails with chance 1/4."""
    assert seeds_bootstrap([[1.0, 1.0], [3.0, 3.0, 3.0]], 4000, seed=3) == Interval(2.0, 1.0, 3.0)
    # One number a run: the bootstrap over runs alone. All alike: no width.
    assert seeds_bootstrap([[0.0], [1.0]], 4000, seed=3) == Interval(0.5, 0.0, 1.0)
    assert seeds_bootstrap([[0.5, 0.5]] * 3, 100, seed=0) == Interval(0.5, 0.5, 0.5)


def test_runs_that_differ_in_nothing_have_their_items_interval() -> None:
    """Four runs of 100 items, half 1 and half -1: 1.96 / sqrt(400), and what drawing runs adds: of equal runs, nothing."""
    interval = seeds_bootstrap([[1.0, -1.0] * 50] * 4, 4000, seed=1)
    assert interval.mean == 0.0
    assert (interval.low, interval.high) == pytest.approx((-0.098, 0.098), abs=0.008)


def test_runs_that_differ_widen_the_interval_of_their_items() -> None:
    """Run means 0.2 to 0.8 in nine runs, each of 1,000 items that hardly vary: what is left is the deviation of a mean of nine,
    sqrt(0.0375 / 9) = 0.0645, however many items there are."""
    runs = [[0.2 + 0.075 * run + (0.01 if item % 2 else -0.01) for item in range(1000)] for run in range(9)]
    interval = seeds_bootstrap(runs, 4000, seed=2)
    assert interval.mean == pytest.approx(0.5)
    assert (interval.low, interval.high) == pytest.approx((0.5 - 0.1265, 0.5 + 0.1265), abs=0.015)
    pooled = [value for run in runs for value in run]
    assert paired_bootstrap([0.0] * len(pooled), pooled, 1000, 0).high < 0.51, "as if the runs were one"


def test_two_configs_differ_by_what_their_runs_do() -> None:
    """Means 1 and 3 against 0: 2 on average, the tails as those of the first."""
    found = seeds_bootstrap([[1.0], [3.0]], 4000, 3, less=[[0.0, 0.0], [0.0]])
    assert found == Interval(2.0, 1.0, 3.0)
    same = [[1.0, 2.0], [4.0]]
    assert seeds_bootstrap(same, 500, 3, less=same).mean == 0.0


@pytest.mark.parametrize("runs", [[], [[1.0, 2.0]], [[1.0], []], [[1.0], [math.nan]]])
def test_one_run_cannot_tell(runs: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="^1 |^0 |run 1: 0"):
        seeds_bootstrap(runs, 100, 0)
    if len(runs) < 2:
        with pytest.raises(ValueError, match=f"^{len(runs)} "):
            seeds_bootstrap([[1.0], [2.0]], 100, 0, less=runs)


RUNS = st.lists(st.lists(st.integers(-1000, 1000).map(float), min_size=1, max_size=9), min_size=2, max_size=5)


@given(RUNS, st.integers(-1000, 1000))
def test_intervals_over_seeds_move_with_their_values(runs: list[list[float]], shift: int) -> None:
    found = seeds_bootstrap(runs, 50, 0)
    means = [sum(run) / len(run) for run in runs]
    assert found.mean == pytest.approx(sum(means) / len(means), abs=1e-9)
    every = [value for run in runs for value in run]
    assert min(every) - 1e-9 <= found.low <= found.high <= max(every) + 1e-9
    moved = seeds_bootstrap([[value + shift for value in run] for run in runs], 50, 0)
    assert (moved.low - shift, moved.high - shift) == pytest.approx((found.low, found.high), abs=1e-6)


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
    with pytest.raises(ValueError, match="^1 of 2 "):
        summarize([1.0, value])
    with pytest.raises(ValueError, match="^1 of 2 "):
        win_rate([1.0, 1.0], [1.0, value])
    with pytest.raises(ValueError, match="^1 of 2 "):
        paired_bootstrap([value, 1.0], [1.0, 1.0], 10, 0)


def test_what_cannot_be_compared_is_refused() -> None:
    for before, after in (([1.0], [1.0, 2.0]), ([], [])):
        numbers = rf"\b{len(before)} .*\b{len(after)} "
        with pytest.raises(ValueError, match=numbers):
            paired_bootstrap(before, after, 10, 0)
        with pytest.raises(ValueError, match=numbers):
            win_rate(before, after)
    with pytest.raises(ValueError, match="^0 "):
        summarize([])
    with pytest.raises(ValueError, match="resamples=0"):
        paired_bootstrap([1.0], [1.0], 0, 0)


def test_wilson_by_hand() -> None:
    """At the ends one root of the score equation is the share itself, the other z^2 / (n + z^2) from it."""
    z = 1.959964
    none, every, half = wilson_interval(0, 4), wilson_interval(4, 4), wilson_interval(8, 16)
    assert (none.mean, none.low, none.high) == (0.0, 0.0, pytest.approx(z * z / (4 + z * z)))
    assert (every.mean, every.low, every.high) == (1.0, pytest.approx(4 / (4 + z * z)), 1.0)
    width = z / 2 / math.sqrt(16 + z * z)  # z sqrt(1/4 n + z^2/4 n^2) / (1 + z^2/n), n = 16
    assert (half.mean, half.low, half.high) == (0.5, pytest.approx(0.5 - width), pytest.approx(0.5 + width))


def test_wilson_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for right, total in ((0, 1), (1, 1), (3, 7), (412, 500), (1272, 1273)):
        theirs = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
        ours = wilson_interval(right, total)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-7)


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_wilson_holds_the_share_within_0_and_1_and_mirrors(total: int, fraction: float) -> None:
    right = round(fraction * total)
    ours, mirrored = wilson_interval(right, total), wilson_interval(total - right, total)
    assert 0.0 <= ours.low <= ours.mean <= ours.high <= 1.0
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((ours.low, ours.high), abs=1e-12)


@pytest.mark.parametrize(("right", "total"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_of_impossible_counts_is_refused(right: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"^{right} .* {total}: "):
        wilson_interval(right, total)


def outcomes(only_before: int, only_after: int, same: int) -> tuple[list[bool], list[bool]]:
    before = [True] * only_before + [False] * only_after + [i % 2 == 0 for i in range(same)]
    after = [False] * only_before + [True] * only_after + [i % 2 == 0 for i in range(same)]
    return before, after


def test_mcnemar_by_hand() -> None:
    """One against five: 2 (C(6,0) + C(6,1)) / 2^6; items on which both agree say nothing."""
    assert mcnemar(*outcomes(1, 5, 0)) == McNemar(1, 5, 14 / 64)
    assert mcnemar(*outcomes(1, 5, 100)) == McNemar(1, 5, 14 / 64)
    assert mcnemar(*outcomes(5, 1, 3)) == McNemar(5, 1, 14 / 64)
    assert mcnemar(*outcomes(0, 3, 0)).p_value == 2 / 8


def test_mcnemar_of_equal_or_no_discordant_counts_is_1() -> None:
    assert mcnemar(*outcomes(0, 0, 4)) == McNemar(0, 0, 1.0)
    assert mcnemar(*outcomes(7, 7, 4)).p_value == 1.0
    assert mcnemar(*outcomes(1, 0, 0)).p_value == 1.0


def test_mcnemar_of_thousands_of_discordant_pairs_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for one, other in ((2, 9), (1900, 2100), (2450, 2550), (300, 900)):
        theirs = stats.binomtest(one, one + other, 0.5).pvalue
        assert mcnemar(*outcomes(one, other, 10)).p_value == pytest.approx(theirs, rel=1e-9)
    assert mcnemar(*outcomes(0, 3000, 0)).p_value == 0.0


def test_mcnemar_of_unpaired_outcomes_is_refused() -> None:
    for before, after in (([True], [True, False]), ([], [])):
        with pytest.raises(ValueError, match=rf"\b{len(before)} .*\b{len(after)} "):
            mcnemar(before, after)
