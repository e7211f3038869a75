"""One answer out of several samples, by vote or by reward, and how accuracy grows with the number of samples.

Plain voting is self-consistency (Wang et al. 2022, arXiv 2203.11171). Votes weighted by a reward model follow
Li et al. 2023 (arXiv 2206.02336) and Uesato et al. 2022 (arXiv 2211.14275), who sum a verifier's
probabilities. A Bradley-Terry reward is no probability but a log-strength: P(a beats b) = e^a / (e^a + e^b),
so e^reward takes that place here.

The accuracy with n of N samples is a mean over all subsets of size n, which is unbiased: in closed form for the
best of n and for coverage, by enumeration or seeded draws for votes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb, isfinite
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.learning.seeds import seeded_number

Rule = Literal["mean", "majority", "best_of_n", "weighted", "oracle"]
RULES: tuple[Rule, ...] = ("mean", "majority", "best_of_n", "weighted", "oracle")
# Sums of the same weights in another order differ by rounding: totals this close (relative) are a tie.
TIE = 1e-12
ABSTAINS = -1


@dataclass(frozen=True)
class SampledItem:
    """N answers to one item: what each was read as (None: nothing), their rewards (N, or none), and the key."""

    item_id: str
    votes: tuple[str | None, ...]
    rewards: tuple[float, ...]
    answer: str


@dataclass(frozen=True)
class CurvePoint:
    """The accuracy (0..1) of a rule that sees `n` samples per item, estimated from `samples` per item.

    The interval is the normal one over items: mean ± 1.96 standard errors, cut to 0..1. An item's value is a
    fraction, so the binomial intervals don't fit; with few items, or next to 0 and 1, this one is too narrow.
    """

    n: int
    rule: Rule
    accuracy: Interval
    samples: int


def majority(votes: Sequence[str | None]) -> str | None:
    """The choice with most votes; None abstains, and None is the result where all do.

    Of tied choices the one whose first vote has the lowest index wins: the same every time, and no letter
    is preferred.
    """
    codes, choices = encode(votes)
    return choices[elect(codes, (codes != ABSTAINS)[None] * 1.0)[0]] if choices else None


def softmax_weights(rewards: ArrayLike) -> np.ndarray:
    """Weights e^(reward - highest) in 0..1 along the last axis, [..., N] -> [..., N]: votes of Bradley-Terry rewards.

    Their common factor is free, so they are not normalised. A reward that isn't finite weighs 0.
    """
    array = np.asarray(rewards, dtype=np.float64)
    known = np.where(np.isfinite(array), array, -np.inf)
    top = known.max(axis=-1, keepdims=True, initial=-np.inf)
    with np.errstate(over="ignore"):
        return np.exp(known - np.where(np.isfinite(top), top, 0.0))


def encode(votes: Sequence[str | None]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(codes [N] into the choices, `ABSTAINS` for None; the choices in the order of their first votes)."""
    choices = tuple(dict.fromkeys(vote for vote in votes if vote is not None))
    codes = [ABSTAINS if vote is None else choices.index(vote) for vote in votes]
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


def rerank_curve(items: Sequence[SampledItem], seed: int, draws: int = 256) -> list[CurvePoint]:
    """The curve of every rule for n = 1, 2, 4, ..., 64 and N, by rule and then by n; all items have N samples.

    Rules: "mean" (one sample, n=1 only), "majority", "best_of_n" (the highest reward), "weighted" (votes by
    e^reward) and "oracle" (any sample is right). Without rewards there is no best_of_n and no weighted. Votes
    are exact where there are at most `draws` subsets, else the mean over `draws` of them; an item's draws
    depend on the seed and its id alone, and are the same for both voting rules.
    """
    samples = len(items[0].votes)
    numbers = {(len(item.votes), len(item.rewards)) for item in items}
    assert numbers <= {(samples, 0)} or numbers <= {(samples, samples)}, numbers
    estimates = [_estimate(item, seed, draws) for item in items]
    return [
        CurvePoint(n, rule, _interval([estimate[rule, n] for estimate in estimates]), samples)
        for rule in RULES
        for n in sample_sizes(samples)
        if (rule, n) in estimates[0]
    ]


def sample_sizes(samples: int) -> tuple[int, ...]:
    """The powers of two up to 64 that are below N, and N."""
    return (*(n for n in (1, 2, 4, 8, 16, 32, 64) if n < samples), samples)


def best_of_n(rewards: Sequence[float], right: Sequence[bool], n: int) -> float:
    """The chance that the highest reward among n of the N samples is right, over all subsets and ties.

    The i-th lowest reward (from 1) is the highest of C(i-1, n-1) of C(N, n) subsets (WebGPT, arXiv
    2112.09332). Of equal rewards each is chosen with the same chance. A reward that isn't finite ranks last.
    """
    ranked = [reward if isfinite(reward) else -np.inf for reward in rewards]
    _, places, counts = np.unique(ranked, return_inverse=True, return_counts=True)
    shares = np.bincount(places, weights=np.asarray(right, dtype=np.float64)) / counts
    return float(_chances_of_best(len(right), n) @ np.repeat(shares, counts))


def oracle(right: Sequence[bool], n: int) -> float:
    """pass@n: 1 - C(N - c, n) / C(N, n) for c right samples (Chen et al. 2021, arXiv 2107.03374, equation 1)."""
    return 1.0 - comb(len(right) - sum(right), n) / comb(len(right), n)


def _estimate(item: SampledItem, seed: int, draws: int) -> dict[tuple[Rule, int], float]:
    """One item's expected accuracy by rule and n."""
    right = [vote == item.answer for vote in item.votes]
    estimates: dict[tuple[Rule, int], float] = {("mean", 1): sum(right) / len(right)}
    # A random order of the samples per draw: [draws, N]. Ranks below n are a subset of size n, drawn evenly.
    generator = np.random.default_rng(seeded_number(seed, item.item_id))
    ranks = generator.permuted(np.tile(np.arange(len(right)), (draws, 1)), axis=1)
    cast = np.array([vote is not None for vote in item.votes])
    for n in sample_sizes(len(right)):
        # Masks [S, N], so that a subset keeps the samples' order: all, or one per draw.
        subsets = _all_subsets(len(right), n) if comb(len(right), n) <= draws else ranks < n
        estimates["majority", n] = _share_right(item, subsets.astype(np.float64))
        estimates["oracle", n] = oracle(right, n)
        if item.rewards:
            # A sample without an answer must not set the scale: next to its high reward all others could vanish.
            rewards = np.where(subsets & cast, np.asarray(item.rewards, dtype=np.float64), -np.inf)
            estimates["weighted", n] = _share_right(item, softmax_weights(rewards))
            estimates["best_of_n", n] = best_of_n(item.rewards, right, n)
    return estimates


def _share_right(item: SampledItem, weights: np.ndarray) -> float:
    """Share of the ballots [S, N] that the key wins; a ballot without votes is wrong."""
    codes, choices = encode(item.votes)
    if item.answer not in choices:
        return 0.0
    return float((elect(codes, weights) == choices.index(item.answer)).mean())


@cache
def _chances_of_best(samples: int, n: int) -> np.ndarray:
    """The chance of each rank, lowest first, to be the highest of n: [N], of sum 1. Exact integers divide."""
    return np.array([comb(below, n - 1) / comb(samples, n) for below in range(samples)])


@cache
def _all_subsets(samples: int, n: int) -> np.ndarray:
    members = np.array(list(combinations(range(samples), n)))
    return (members[:, :, None] == np.arange(samples)).any(axis=1)


def _interval(values: Sequence[float]) -> Interval:
    """The normal interval of a mean of numbers in 0..1; one number alone says nothing: 0 to 1."""
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, 0.0, 1.0)
    width = 1.96 * stdev(values) / len(values) ** 0.5
    return Interval(mean, max(0.0, mean - width), min(1.0, mean + width))
