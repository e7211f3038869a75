"""Win rates with the part of length taken off, by AlpacaEval 2's logistic model (Dubois et al. 2024, arXiv 2404.04475).

    logit P(win of item i) = theta + phi tanh(gap_i / std(gap)) + psi difficulty_i

gap is how much longer the policy's answer is than the other's. The controlled rate is the mean of P with the gaps set to zero: what
share would be won if both sides wrote as much. psi is left out where the items' difficulties are not known.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_STRENGTHS = np.logspace(-4, 4, 10)  # of the data against the L1 penalty: those that cross-validation tries
_STRENGTH = 100.0  # without it
_SPARE = 1e-15  # a chance is no nearer to 0 and 1 than this where its logarithm is taken


@dataclass(frozen=True)
class Regularizer:
    """AlpacaEval's: verdicts on a baseline that was told to write more, or less, against itself: theta has no part in them."""

    wins: Sequence[float]  # 0 to 1
    gaps: Sequence[float]  # already divided by their deviation
    difficulties: Sequence[float]
    weight: float = 0.1  # of a verdict; the published lambda of 0.2 for two such baselines


def controlled_wins(
    wins: Sequence[float],
    gaps: Sequence[float],
    difficulties: Sequence[float] | None = None,
    regularizer: Regularizer | None = None,
    folds: int = 0,
) -> np.ndarray:
    """Each item's chance of a win at equal length, [N]; its mean is the length-controlled win rate.

    Args:
        wins: 1 for a win, 0 for a loss, one half for a tie, or the judge's chance of a win.
        gaps: length of the policy's answer less the other's, in characters or tokens.
        difficulties: of AlpacaEval's questions, as published.
        folds: choose the penalty's weight by cross-validation over so many parts, as AlpacaEval 2 does with five; 0: a weak one.
    """
    own, lengths = np.asarray(wins, float), np.asarray(gaps, float)
    deviation = lengths.std(ddof=1) if len(lengths) > 1 else 0.0
    columns = [np.tanh(lengths / deviation) if deviation else np.zeros(len(own)), np.ones(len(own))]
    columns += [] if difficulties is None else [np.asarray(difficulties, float)]
    features, weights = np.stack(columns, 1), np.ones(len(own))
    equal = features.copy()
    equal[:, 0] = 0.0
    if regularizer is not None:
        assert difficulties is not None, "the published model has both, or neither"
        gamed, hard = np.asarray(regularizer.gaps, float), np.asarray(regularizer.difficulties, float)
        more = np.stack([np.tanh(gamed), np.zeros(len(gamed)), hard], 1)
        # Before the policy's own, as there: what is in a part together follows from the order.
        features, own = np.concatenate([more, features]), np.concatenate([regularizer.wins, own])
        weights = np.concatenate([np.full(len(gamed), regularizer.weight), weights])
    strength = _best_strength(features, own, weights, folds) if folds else _STRENGTH
    return _chances(equal @ _fit(features, own, weights, strength))


def _fit(features: np.ndarray, wins: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """[features] coefficients; each item stands there once as won and once as lost, weighed by its chances."""
    from sklearn.exceptions import ConvergenceWarning  # half a second, which most commands don't need
    from sklearn.linear_model import LogisticRegression

    labels = np.repeat([1, 0], len(wins))
    chances = np.concatenate([wins, 1 - wins]) * np.tile(weights, 2)
    model = LogisticRegression(
        l1_ratio=1.0, solver="liblinear", fit_intercept=False, C=strength, random_state=123, max_iter=1000
    )
    with warnings.catch_warnings():
        # Of a few items that are all won the coefficients grow slowly, long after the chances stand still.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(np.tile(features, (2, 1)), labels, sample_weight=chances)
    return np.asarray(model.coef_[0])


def _best_strength(features: np.ndarray, wins: np.ndarray, weights: np.ndarray, folds: int) -> float:
    """The one with the lowest weighted log loss on items that it was not fitted on."""
    from sklearn.model_selection import GroupKFold

    rows = np.arange(len(wins))
    parts = list(GroupKFold(folds).split(rows, groups=rows))

    def loss(strength: float) -> float:
        found = []
        for kept, left in parts:
            chance = _chances(features[left] @ _fit(features[kept], wins[kept], weights[kept], strength))
            chance = chance.clip(_SPARE, 1 - _SPARE)
            own = wins[left] * np.log(chance) + (1 - wins[left]) * np.log1p(-chance)
            found.append(-(own * weights[left]).mean())
        return float(np.mean(found))

    return float(min(_STRENGTHS, key=loss))


def _chances(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -logits))
