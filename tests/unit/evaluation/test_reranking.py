"""Accuracy over subsets of samples, against every subset one by one."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import combinations, pairwise
from math import comb
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.evaluation.test_voting import by_reward
from ultramed_rl.evaluation.voting import (
    CurvePoint,
    SampledItem,
    best_of_n,
    majority,
    oracle,
    rerank_curve,
    sample_sizes,
)

VOTE = st.sampled_from(["A", "B", "C", None])
REWARD = st.one_of(st.integers(-3, 3).map(float), st.sampled_from([math.nan, math.inf, -math.inf]))
SAMPLES = st.integers(1, 7).flatmap(
    lambda n: st.tuples(st.lists(VOTE, min_size=n, max_size=n), st.lists(REWARD, min_size=n, max_size=n))
)


def sampled(
    votes: list[str | None], rewards: list[float], item_id: str = "q", answer: str = "A"
) -> SampledItem:
    return SampledItem(item_id, tuple(votes), tuple(rewards), answer)


def pick_best(item: SampledItem, members: tuple[int, ...]) -> float:
    """The share of right samples among the members with the highest reward."""
    known = [i for i in members if math.isfinite(item.rewards[i])]
    top = [i for i in known if item.rewards[i] == max(item.rewards[j] for j in known)] or list(members)
    return fmean(item.votes[i] == item.answer for i in top)


def pick_vote(item: SampledItem, members: tuple[int, ...], weighted: bool) -> float:
    """Whether the key has the largest exact sum among the members, with ties to the first vote."""
    cast = [i for i in members if item.votes[i] and (not weighted or math.isfinite(item.rewards[i]))]
    weights = {i: math.exp(item.rewards[i]) if weighted else 1.0 for i in cast}
    sums = {
        v: math.fsum(weights[i] for i in cast if item.votes[i] == v) for v in {item.votes[i] for i in cast}
    }
    return float(
        next((item.votes[i] for i in cast if sums[item.votes[i]] == max(sums.values())), None) == "A"
    )


def over_subsets(item: SampledItem, n: int, rule: str) -> float:
    """The mean over all subsets of size n."""
    decide = {
        "best_of_n": lambda members: pick_best(item, members),
        "majority": lambda members: pick_vote(item, members, weighted=False),
        "weighted": lambda members: pick_vote(item, members, weighted=True),
        "oracle": lambda members: float(any(item.votes[i] == item.answer for i in members)),
    }[rule]
    return fmean(decide(members) for members in combinations(range(len(item.votes)), n))


def of_rule(curve: list[CurvePoint], rule: str) -> dict[int, float]:
    return {point.n: point.accuracy.mean for point in curve if point.rule == rule}


def test_sizes_are_powers_of_two_and_all_samples() -> None:
    assert sample_sizes(1) == (1,)
    assert sample_sizes(8) == (1, 2, 4, 8)
    assert sample_sizes(10) == (1, 2, 4, 8, 10)
    assert sample_sizes(64) == (1, 2, 4, 8, 16, 32, 64)
    assert sample_sizes(200) == (1, 2, 4, 8, 16, 32, 64, 200)


def test_best_of_two_by_hand() -> None:
    """The second lowest of four is the better of one pair of six; the highest of three."""
    rewards = [0.1, 0.2, 0.3, 0.4]
    assert best_of_n(rewards, [False, True, False, False], 2) == pytest.approx(1 / 6)
    assert best_of_n(rewards, [False, False, False, True], 2) == pytest.approx(3 / 6)
    assert best_of_n(rewards, [True, False, False, False], 2) == 0.0


def test_equal_rewards_are_chosen_evenly() -> None:
    """Pairs of (1, right), (1, wrong), (0, right): a half, 1 and 0."""
    assert best_of_n([1.0, 1.0, 0.0], [True, False, True], 2) == pytest.approx((0.5 + 1 + 0) / 3)
    assert best_of_n([2.0] * 4, [True, False, False, False], 3) == pytest.approx(1 / 4)


def test_a_reward_that_is_not_finite_is_never_the_best_of_two() -> None:
    for value in (math.nan, math.inf, -math.inf):
        assert best_of_n([value, -9.0], [True, False], 2) == 0.0
        assert best_of_n([value, value], [True, False], 2) == 0.5


def test_the_closed_forms_stay_exact_for_64_samples() -> None:
    rng = random.Random(4)
    rewards = [float(i) for i in range(64)]
    rng.shuffle(rewards)
    right = [rng.random() < 0.3 for _ in range(64)]
    for n in (1, 2, 31, 32, 33, 63, 64):
        exact = sum(
            Fraction(comb(int(reward), n - 1), comb(64, n))
            for reward, is_right in zip(rewards, right, strict=True)
            if is_right
        )
        assert best_of_n(rewards, right, n) == pytest.approx(float(exact), abs=1e-14)
        missed = math.prod(Fraction(64 - sum(right) - i, 64 - i) for i in range(n))
        assert oracle(right, n) == pytest.approx(float(1 - missed), abs=1e-14)


def test_coverage_by_hand() -> None:
    """One right of four: a pair misses it in C(3, 2) of 6 cases."""
    assert oracle([False, True, False, False], 2) == pytest.approx(1 - 3 / 6)
    assert oracle([False, True, False, False], 4) == 1.0
    assert oracle([False] * 4, 4) == 0.0


@given(st.lists(st.booleans(), min_size=1, max_size=64))
def test_coverage_never_falls_with_more_samples(right: list[bool]) -> None:
    covered = [oracle(right, n) for n in range(1, len(right) + 1)]
    assert all(less <= more for less, more in pairwise(covered))
    assert covered[0] == pytest.approx(sum(right) / len(right), abs=1e-12)
    assert covered[-1] == float(any(right))


@settings(max_examples=150)
@given(SAMPLES)
def test_every_rule_is_the_mean_over_all_subsets(samples: tuple[list[str | None], list[float]]) -> None:
    item = sampled(*samples)
    curve = rerank_curve([item], seed=0)
    for rule in ("majority", "best_of_n", "weighted", "oracle"):
        for n, accuracy in of_rule(curve, rule).items():
            assert accuracy == pytest.approx(over_subsets(item, n, rule), abs=1e-12), (rule, n)


@settings(max_examples=50)
@given(SAMPLES)
def test_all_samples_give_the_plain_decision(samples: tuple[list[str | None], list[float]]) -> None:
    votes, rewards = samples
    curve = rerank_curve([sampled(votes, rewards)], seed=0, draws=1)
    assert of_rule(curve, "majority")[len(votes)] == (majority(votes) == "A")
    assert of_rule(curve, "weighted")[len(votes)] == (by_reward(votes, rewards) == "A")
    assert of_rule(curve, "oracle")[len(votes)] == ("A" in votes)


def test_one_sample_is_the_mean_under_every_rule() -> None:
    item = sampled(["A", "B", None, "A", "C"], [0.3, 0.1, 0.7, -0.2, 0.0])
    points = [point for point in rerank_curve([item], seed=0) if point.n == 1]
    assert {point.rule: point.accuracy.mean for point in points} == pytest.approx(
        {"mean": 0.4, "majority": 0.4, "best_of_n": 0.4, "weighted": 0.4, "oracle": 0.4}
    )


def test_a_vote_weighs_as_much_as_e_to_its_reward() -> None:
    """e^1 > 1 + 1, e^0.1 = 1.1 < 2."""
    for reward, right in ((1.0, 1.0), (0.1, 0.0)):
        item = sampled(["B", "B", "A"], [0.0, 0.0, reward])
        assert of_rule(rerank_curve([item], seed=0), "weighted")[3] == right


def test_far_apart_rewards_still_vote_in_subsets_of_the_low_ones() -> None:
    """Of three pairs only the one without the 5000 lets A win, though e^-5000 is no number of the machine."""
    item = sampled(["B", "A", "A"], [5000.0, 0.0, 0.0])
    assert of_rule(rerank_curve([item], seed=0), "weighted")[2] == pytest.approx(1 / 3)


def test_an_unread_sample_with_a_high_reward_does_not_silence_a_subset() -> None:
    item = sampled([None, "A"], [5000.0, 0.0])
    assert of_rule(rerank_curve([item], seed=0), "weighted") == {1: 0.5, 2: 1.0}


def drawn_items(count: int, samples: int) -> list[SampledItem]:
    rng = random.Random(7)
    return [
        sampled(
            rng.choices(["A", "B", "C", None], [4, 3, 2, 1], k=samples),
            [rng.gauss(0, 1) for _ in range(samples)],
            item_id=f"q{i}",
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("rule", ["majority", "weighted"])
def test_drawn_subsets_estimate_the_exact_mean_without_bias(rule: str) -> None:
    """C(12, 4) = 495 and C(12, 8) = 495 subsets against 200 draws, within 4 standard errors of the draws."""
    items, draws = drawn_items(30, 12), 200
    curve = of_rule(rerank_curve(items, seed=1, draws=draws), rule)
    for n in (4, 8):
        exact = [over_subsets(item, n, rule) for item in items]
        error = math.sqrt(sum(p * (1 - p) / draws for p in exact)) / len(items)
        assert 0 < abs(curve[n] - fmean(exact)) < 4 * error
    assert curve[12] == fmean(over_subsets(item, 12, rule) for item in items)


def test_a_drawn_subset_holds_n_samples() -> None:
    """The only vote of 16 samples is in a subset of n with chance n / 16; 40 items x 200 draws."""
    votes: list[str | None] = [*[None] * 9, "A", *[None] * 6]
    items = [sampled(votes, [0.0] * 16, item_id=f"q{i}") for i in range(40)]
    curve = rerank_curve(items, seed=3, draws=200)
    for n in (4, 8):
        error = math.sqrt(n / 16 * (1 - n / 16) / (200 * 40))
        assert of_rule(curve, "majority")[n] == pytest.approx(n / 16, abs=4 * error)
        assert of_rule(curve, "weighted")[n] == of_rule(curve, "majority")[n]


def test_the_seed_decides_and_the_order_of_items_does_not() -> None:
    items = drawn_items(8, 16)
    assert rerank_curve(items, seed=1, draws=20) == rerank_curve(items, seed=1, draws=20)
    assert rerank_curve(items, seed=1, draws=20) != rerank_curve(items, seed=2, draws=20)
    alone = [of_rule(rerank_curve([item], seed=1, draws=20), "majority")[8] for item in items]
    together = of_rule(rerank_curve(items[::-1], seed=1, draws=20), "majority")[8]
    assert together == pytest.approx(fmean(alone), abs=1e-12)


def test_the_interval_is_the_normal_one_over_items() -> None:
    """Means 1, 1/2, 1/2, 0: a half, deviation sqrt(1/6), and a standard error of half of that."""
    votes: list[list[str | None]] = [["A", "A"], ["A", "B"], [None, "A"], ["B", "C"]]
    curve = rerank_curve([sampled(v, [], item_id=str(i)) for i, v in enumerate(votes)], seed=0)
    width = 1.96 * math.sqrt(1 / 6) / 2
    mean = next(point for point in curve if point.rule == "mean")
    assert (mean.accuracy.mean, mean.accuracy.low) == pytest.approx((0.5, 0.5 - width))
    assert mean.accuracy.high == pytest.approx(0.5 + width)
    assert (mean.n, mean.samples) == (1, 2)


def test_one_item_alone_gives_no_interval() -> None:
    (point, *_) = rerank_curve([sampled(["A"], [])], seed=0)
    assert (point.accuracy.mean, point.accuracy.low, point.accuracy.high) == (1.0, 0.0, 1.0)


def test_without_rewards_only_the_rules_without_them_remain() -> None:
    curve = rerank_curve([sampled(["A", "B", "A"], [])], seed=0)
    assert [(point.rule, point.n) for point in curve] == [
        ("mean", 1),
        *(("majority", n) for n in (1, 2, 3)),
        *(("oracle", n) for n in (1, 2, 3)),
    ]
