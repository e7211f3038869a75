"""One answer out of several samples by vote: each vote counts the same, or by its reward.

Plain voting is self-consistency (Wang et al. 2022, arXiv 2203.11171). Votes weighted by a reward model follow
Li et al. 2023 (arXiv 2206.02336) and Uesato et al. 2022 (arXiv 2211.14275), who sum a verifier's
probabilities. A Bradley-Terry reward is no probability but a log-strength: P(a beats b) = e^a / (e^a + e^b),
so e^reward takes that place here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

# Sums of the same weights in another order differ by rounding: totals this close (relative) are a tie.
TIE = 1e-12
ABSTAINS = -1


def majority(votes: Sequence[str | None]) -> str | None:
    """The choice with most votes; None abstains, and None is the result where all do.

    Of tied choices the one whose first vote has the lowest index wins: the same every time, and no letter
    is preferred.
    """
    return weighted_majority(votes, [1.0] * len(votes))


def weighted_majority(votes: Sequence[str | None], weights: Sequence[float]) -> str | None:
    """The choice with the largest sum of weights; a weight of 0 abstains. Ties are broken like `majority`'s.

    Raises:
        ValueError: a weight per vote is missing, or one isn't finite and at least 0.
    """
    if len(votes) != len(weights):
        raise ValueError(f"{len(votes)} votes with {len(weights)} weights: give one weight per vote")
    for weight in weights:
        if not 0 <= weight < np.inf:
            raise ValueError(f"weight={weight}: must be finite and at least 0")
    codes, choices = encode(votes)
    counted = np.where(codes == ABSTAINS, 0.0, np.asarray(weights, dtype=np.float64))
    if not counted.any():
        return None
    # Scaled, the sum of large weights stays finite.
    return choices[elect(codes, counted[None] / counted.max())[0]]


def reward_weighted(
    votes: Sequence[str | None], rewards: Sequence[float], temperature: float = 1.0
) -> str | None:
    """The choice with the largest sum of e^(reward / temperature); a vote whose reward isn't finite abstains.

    Raises:
        ValueError: a reward per vote is missing, or the temperature isn't above 0.
    """
    if len(votes) != len(rewards):
        raise ValueError(f"{len(votes)} votes with {len(rewards)} rewards: give one reward per vote")
    # A sample without an answer must not set the scale: next to its high reward all others could vanish.
    cast = [np.nan if vote is None else reward for vote, reward in zip(votes, rewards, strict=True)]
    return weighted_majority(votes, softmax_weights(cast, temperature).tolist())


def softmax_weights(rewards: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Weights e^((reward - highest) / temperature) in 0..1 along the last axis: [..., N] -> [..., N].

    Their common factor is free, so they are not normalised. A reward that isn't finite weighs 0. Temperature 1
    is natural for a Bradley-Terry reward; towards 0 the best sample decides, towards infinity the majority.

    Raises:
        ValueError: the temperature isn't finite and above 0.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature={temperature}: must be finite and above 0")
    array = np.asarray(rewards, dtype=np.float64)
    known = np.where(np.isfinite(array), array, -np.inf)
    top = known.max(axis=-1, keepdims=True, initial=-np.inf)
    with np.errstate(over="ignore"):
        return np.exp((known - np.where(np.isfinite(top), top, 0.0)) / temperature)


def encode(votes: Sequence[str | None]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(codes [N] into the choices, `ABSTAINS` for None; the choices in the order of their first votes)."""
    choices = tuple(dict.fromkeys(vote for vote in votes if vote is not None))
    places = {choice: code for code, choice in enumerate(choices)}
    codes = [ABSTAINS if vote is None else places[vote] for vote in votes]
    return np.array(codes, dtype=np.int64), choices


def elect(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The winner of each of S ballots over the same N votes: codes [N], weights [S, N] -> codes [S].

    A weight of 0 keeps a vote out of a ballot; a ballot without votes has `ABSTAINS` as its winner.
    """
    one_hot = (codes[:, None] == np.arange(codes.max(initial=0) + 1)).astype(np.float64)
    totals = weights @ one_hot
    top = totals.max(axis=1)
    tied = totals >= top[:, None] * (1 - TIE)
    winners = tied.argmax(axis=1)
    open_ballots = np.flatnonzero(tied.sum(axis=1) > 1)
    first = ((weights[open_ballots] > 0) & tied[open_ballots][:, codes] & (codes != ABSTAINS)).argmax(axis=1)
    winners[open_ballots] = codes[first]
    return np.where(top > 0, winners, ABSTAINS)
