"""Length-controlled win rates by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ultramed_rl.evaluation.length_control import Regularizer, controlled_wins


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def test_equal_lengths_leave_the_win_rate_as_it_is() -> None:
    wins = [1.0] * 700 + [0.0] * 250 + [0.5] * 50
    # 0.725 of the wins; the penalty costs next to nothing of a thousand.
    assert controlled_wins(wins, [3.0] * 1000) == pytest.approx(0.725, abs=1e-3)


def test_two_lengths_by_hand() -> None:
    """As many longer as shorter answers of the same difference: 0.9 of the former won and 0.6 of the latter. Two coefficients fit
    both shares exactly, so that at equal length the logit is their middle."""
    wins = [1.0] * 900 + [0.0] * 100 + [1.0] * 600 + [0.0] * 400
    gaps = [5.0] * 1000 + [-5.0] * 1000
    expected = 1 / (1 + math.exp(-(logit(0.9) + logit(0.6)) / 2))
    assert controlled_wins(wins, gaps).mean() == pytest.approx(expected, abs=1e-3)
    # Neither the unit of length nor a shared preference changes it; the other side's rate makes one with it.
    assert controlled_wins(wins, [1000 * gap for gap in gaps]).mean() == pytest.approx(expected, abs=1e-3)
    turned = controlled_wins([1 - won for won in wins], [-gap for gap in gaps]).mean()
    assert turned == pytest.approx(1 - expected, abs=1e-3)


def test_a_chance_of_a_win_counts_as_so_many_wins() -> None:
    gaps = [1.0, -1.0] * 500
    sure = controlled_wins([1.0, 1.0] * 400 + [0.0, 0.0] * 100, gaps)
    assert controlled_wins([0.8] * 1000, gaps) == pytest.approx(sure, abs=1e-6)


def test_difficulty_moves_items_and_not_the_rate_of_all() -> None:
    """Easy questions (-1) are won in 0.8, hard ones (1) in 0.4: the model with an item's difficulty says each."""
    wins = ([1.0] * 8 + [0.0] * 2) * 50 + ([1.0] * 4 + [0.0] * 6) * 50
    gaps, difficulties = [2.0, -2.0] * 500, [-1.0] * 500 + [1.0] * 500
    found = controlled_wins(wins, gaps, difficulties)
    assert found[:500] == pytest.approx(0.8, abs=2e-3) and found[500:] == pytest.approx(0.4, abs=2e-3)


def test_gamed_baselines_move_what_length_is_worth() -> None:
    """The policy's own wins are at one length each way, so that only what a gamed baseline shows, that the longer text wins,
    tells its length from its quality."""
    wins, gaps = [0.9] * 50 + [0.5] * 50, [4.0] * 50 + [1.0] * 50
    gamed = Regularizer(
        wins=[0.95] * 400 + [0.05] * 400, gaps=[3.0] * 400 + [-3.0] * 400, difficulties=[0.0] * 800
    )
    alone = controlled_wins(wins, gaps, [0.0] * 100).mean()
    held = controlled_wins(wins, gaps, [0.0] * 100, gamed).mean()
    assert abs(held - alone) > 0.01


def test_cross_validation_shrinks_what_lengths_do_not_explain() -> None:
    """The penalty is chosen among ten: of wins by chance a strong one, which leaves 0.5 of everything."""
    random = np.random.default_rng(0)
    gaps = random.normal(size=60)
    chance = controlled_wins(random.integers(0, 2, 60).astype(float), gaps, folds=5).mean()
    assert abs(chance - 0.5) < 0.1
    clear = controlled_wins((gaps + 0.3 * random.normal(size=60) > 0).astype(float), gaps, folds=5)
    assert clear.mean() == pytest.approx(0.5, abs=0.2)


def test_one_item_has_no_deviation() -> None:
    assert 0.5 < controlled_wins([1.0], [7.0]).mean() <= 1.0


@pytest.mark.parametrize(("with_gamed", "theirs"), [(False, 0.6148878770581412), (True, 0.6143534059195602)])
def test_it_is_alpaca_evals_own_number(with_gamed: bool, theirs: float) -> None:
    """What `fit_LogisticRegressionCV` of tatsu-lab/alpaca_eval, with its `length_controlled_noreg` and `length_controlled_v1`, gave
    for these rows, on scikit-learn 1.9."""
    random = np.random.default_rng(0)
    difficulties, gaps = random.normal(size=200), random.normal(100, 400, size=200)
    logits = 0.6 + 0.9 * np.tanh(gaps / gaps.std(ddof=1)) - 0.5 * difficulties
    wins = 1 / (1 + np.exp(-logits + random.normal(size=200)))
    hard, longer = random.normal(size=300), random.normal(size=300)
    gamed = Regularizer(1 / (1 + np.exp(-1.2 * np.tanh(longer) - 0.2 * hard)), longer, hard)
    found = controlled_wins(wins, gaps, difficulties, gamed if with_gamed else None, folds=5)
    assert found.mean() == pytest.approx(theirs, abs=1e-6)
