"""Votes against counts by hand and a plain tally."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.evaluation.voting import (
    ABSTAINS,
    elect,
    encode,
    majority,
    softmax_weights,
)

VOTES = st.lists(st.sampled_from(["A", "B", "C", None]), max_size=12)
WEIGHTED = st.lists(st.tuples(st.sampled_from(["A", "B", "C", None]), st.integers(0, 4)), max_size=12)
REWARDED = st.lists(
    st.tuples(st.sampled_from(["A", "B", "C", None]), st.floats(-50, 50)), min_size=1, max_size=12
)


def by_weight(votes: list[str | None], weights: list[float]) -> str | None:
    """One ballot."""
    codes, choices = encode(votes)
    code = elect(codes, np.array([weights]) * (codes != ABSTAINS))[0] if choices else ABSTAINS
    return None if code == ABSTAINS else choices[code]


def by_reward(votes: list[str | None], rewards: list[float], temperature: float = 1.0) -> str | None:
    """One ballot whose weights are powers of e; whoever abstains sets no scale."""
    cast = [math.nan if vote is None else reward for vote, reward in zip(votes, rewards, strict=True)]
    return by_weight(votes, softmax_weights([reward / temperature for reward in cast]).tolist())


def tally(votes: list[str | None], weights: list[int]) -> str | None:
    """The rule once more in whole numbers: the highest sum, and of those the earliest first vote that counts."""
    cast = [(vote, weight) for vote, weight in zip(votes, weights, strict=True) if vote and weight]
    sums = {choice: sum(weight for vote, weight in cast if vote == choice) for choice, _ in cast}
    return next((choice for choice, _ in cast if sums[choice] == max(sums.values())), None)


def test_the_most_votes_win() -> None:
    assert majority(["A", "B", "B"]) == "B"
    assert majority(["D"]) == "D"


def test_unread_answers_do_not_vote() -> None:
    assert majority([None, None, None, "C", "A", "C"]) == "C"
    assert majority([None, None]) is None
    assert majority([]) is None


def test_a_tie_goes_to_the_earlier_first_vote_and_not_to_the_earlier_letter() -> None:
    assert majority(["C", "A", "A", "C"]) == "C"
    assert majority([None, "B", "A"]) == "B"
    assert majority(["D", "B", "A", "A", "B"]) == "B"  # D came first, but isn't tied


def test_weights_can_overrule_counts() -> None:
    """A: 2.5; B: 1 + 1."""
    assert by_weight(["B", "B", "A"], [1.0, 1.0, 2.5]) == "A"


def test_a_weight_of_0_is_no_vote() -> None:
    assert by_weight(["A", "B"], [0.0, 0.0]) is None
    assert by_weight(["A", "B", "C", "A"], [0.0, 1.0, 1.0, 1.0]) == "B"  # A's first vote is its last


def test_rounding_does_not_decide_a_tie() -> None:
    """0.1/1.4 + 1.3/1.4 is a little more than 1 in binary."""
    assert 0.1 / 1.4 + 1.3 / 1.4 > 1
    assert by_weight(["B", "A", "A"], [1.4, 0.1, 1.3]) == "B"
    assert by_weight(["A", "A", "B"], [0.1, 1.3, 1.4]) == "A"


@given(WEIGHTED)
def test_weighted_votes_agree_with_a_tally_in_whole_numbers(pairs: list[tuple[str | None, int]]) -> None:
    votes, weights = [v for v, _ in pairs], [w for _, w in pairs]
    assert by_weight(votes, [float(w) for w in weights]) == tally(votes, weights)
    assert majority(votes) == tally(votes, [1] * len(votes))


@given(VOTES)
def test_other_letters_for_the_same_options_change_nothing_else(votes: list[str | None]) -> None:
    other = {"A": "C", "B": "A", "C": "B", None: None}
    assert majority([other[vote] for vote in votes]) == other[majority(votes)]


def test_weights_are_powers_of_e() -> None:
    assert softmax_weights([1.0, 3.0, 2.0]) == pytest.approx([math.exp(-2), 1.0, math.exp(-1)])
    assert softmax_weights([0.25, 0.75]) == pytest.approx([math.exp(-0.5), 1.0])


def test_two_samples_weigh_as_bradley_terry_says() -> None:
    one, other = softmax_weights([0.7, -0.4])
    assert one / (one + other) == pytest.approx(1 / (1 + math.exp(-1.1)))


def test_rewards_that_are_not_finite_weigh_nothing() -> None:
    assert softmax_weights([math.nan, 2.0, math.inf, -math.inf]).tolist() == [0.0, 1.0, 0.0, 0.0]
    assert softmax_weights([math.nan, math.inf]).tolist() == [0.0, 0.0]
    assert softmax_weights([]).tolist() == []


def test_extreme_rewards_neither_overflow_nor_warn(recwarn: pytest.WarningsRecorder) -> None:
    assert softmax_weights([1e308, -1e308]).tolist() == [1.0, 0.0]
    assert softmax_weights([5000.0, 5000.0, 4999.0]) == pytest.approx([1.0, 1.0, math.exp(-1)])
    assert not recwarn.list


def test_every_row_has_its_own_scale() -> None:
    rows = softmax_weights([[0.0, 1.0], [-2000.0, -2001.0]])
    assert rows == pytest.approx(np.array([[math.exp(-1), 1.0], [1.0, math.exp(-1)]]))


def test_a_good_answer_beats_two_bad_ones_by_reward() -> None:
    """e^1 = 2.72 against 1 + 1, and against 1 + 1 + 1."""
    assert by_reward(["B", "B", "A"], [0.0, 0.0, 1.0]) == "A"
    assert by_reward(["B", "B", "B", "A"], [0.0, 0.0, 0.0, 1.0]) == "B"


def test_an_unread_answer_with_a_high_reward_does_not_silence_the_others() -> None:
    assert by_reward([None, "A", "B", "B"], [1000.0, 0.5, 0.0, 0.0]) == "B"


def test_samples_without_a_finite_reward_abstain() -> None:
    assert by_reward(["A", "A", "B"], [math.nan, math.inf, -3.0]) == "B"
    assert by_reward(["A", "A"], [math.nan, -math.inf]) is None


@given(REWARDED, st.integers(-100, 100))
def test_equal_rewards_give_the_majority_and_a_cold_vote_the_best(
    pairs: list[tuple[str | None, float]], level: int
) -> None:
    votes = [vote for vote, _ in pairs]
    assert by_reward(votes, [float(level)] * len(votes)) == majority(votes)
    ranked = sorted({reward for vote, reward in pairs if vote is not None})
    top = [vote for vote, reward in pairs if vote is not None and reward == ranked[-1]]
    if len(top) == 1 and (len(ranked) < 2 or ranked[-1] - ranked[-2] > 1e-3):
        assert by_reward(votes, [reward for _, reward in pairs], temperature=1e-5) == top[0]


@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=8))
def test_many_ballots_at_once_are_the_single_ones(ballots: list[list[int]]) -> None:
    votes = ["B", None, "A", "B", "C"]
    codes, choices = encode(votes)
    assert (codes.tolist(), choices) == ([0, ABSTAINS, 1, 0, 2], ("B", "A", "C"))
    together = elect(codes, np.array(ballots, dtype=np.float64) * (codes != ABSTAINS))
    alone = [tally(votes, ballot) for ballot in ballots]
    assert [None if code == ABSTAINS else choices[code] for code in together] == alone
