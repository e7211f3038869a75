"""How accuracy grows with the number of samples, from one set of N samples per item.

The accuracy with n of the N samples is a mean over all subsets of size n, which is unbiased: in closed form for
the best of n and for coverage, by enumeration or seeded draws for votes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import comb, isfinite
from typing import Literal

import numpy as np

from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.evaluation.voting import elect, encode, softmax_weights
from ultramed_rl.learning.seeds import seeded_number

Rule = Literal["mean", "majority", "best_of_n", "weighted", "oracle"]
RULES: tuple[Rule, ...] = ("mean", "majority", "best_of_n", "weighted", "oracle")
LARGEST_POWER = 64


@dataclass(frozen=True)
class SampledItem:
    """N answers to one item: what each was read as (None: nothing), their rewards (N, or none), and the key.

    Raises:
        ValueError: no answers, or rewards for some of them only.
    """

    item_id: str
    votes: tuple[str | None, ...]
    rewards: tuple[float, ...]
    answer: str

    def __post_init__(self) -> None:
        if not self.votes or len(self.rewards) not in (0, len(self.votes)):
            raise ValueError(
                f"{self.item_id}: {len(self.rewards)} rewards for {len(self.votes)} samples: needs a sample, and "
                "a reward for every one or for none"
            )

    @property
    def right(self) -> tuple[bool, ...]:
        """Whether each sample is right."""
        return tuple(vote == self.answer for vote in self.votes)


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


def rerank_curve(
    items: Sequence[SampledItem], seed: int, draws: int = 256, temperature: float = 1.0
) -> list[CurvePoint]:
    """The curve of every rule for n = 1, 2, 4, ..., 64 and N, by rule and then by n.

    Rules: "mean" (one sample, n=1 only), "majority", "best_of_n" (the highest reward), "weighted" (votes by
    e^(reward / temperature)) and "oracle" (any sample is right). Without rewards there is no best_of_n and no
    weighted. Votes are exact where there are at most `draws` subsets, else the mean over `draws` of them; an
    item's draws depend on the seed and its id alone, and are the same for both voting rules.

    Raises:
        ValueError: no items, items that differ in the number of samples or of rewards, draws < 1, or a
            temperature that isn't above 0.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: must be at least 1")
    sizes = sample_sizes(_samples(items))
    estimates = [_estimate(item, sizes, _ranks(item, seed, draws), temperature) for item in items]
    return [
        CurvePoint(n, rule, _interval([estimate[rule, n] for estimate in estimates]), sizes[-1])
        for rule in RULES
        for n in sizes
        if (rule, n) in estimates[0]
    ]


def sample_sizes(samples: int) -> tuple[int, ...]:
    """The powers of two up to 64 that are below N, and N. Raises ValueError on N < 1."""
    if samples < 1:
        raise ValueError(f"samples={samples}: must be at least 1")
    powers = (1 << exponent for exponent in range(LARGEST_POWER.bit_length()))
    return (*(n for n in powers if n < samples), samples)


def best_of_n(rewards: Sequence[float], right: Sequence[bool], n: int) -> float:
    """The chance that the highest reward among n of the N samples is right, over all subsets and ties.

    The i-th lowest reward (from 1) is the highest of C(i-1, n-1) of C(N, n) subsets (WebGPT, arXiv
    2112.09332). Of equal rewards each is chosen with the same chance. A reward that isn't finite ranks last.

    Raises:
        ValueError: lengths differ, or n isn't in 1..N.
    """
    _check_size(n, len(right))
    if len(rewards) != len(right):
        raise ValueError(f"{len(rewards)} rewards for {len(right)} samples: give one reward per sample")
    ranked = [reward if isfinite(reward) else -np.inf for reward in rewards]
    _, places, counts = np.unique(ranked, return_inverse=True, return_counts=True)
    shares = np.bincount(places, weights=np.asarray(right, dtype=np.float64)) / counts
    return float(_chances_of_best(len(right), n) @ np.repeat(shares, counts))


def oracle(right: Sequence[bool], n: int) -> float:
    """pass@n: 1 - C(N - c, n) / C(N, n) for c right samples (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Raises:
        ValueError: n isn't in 1..N.
    """
    _check_size(n, len(right))
    return 1.0 - comb(len(right) - sum(right), n) / comb(len(right), n)


def majority_of_n(item: SampledItem, subsets: np.ndarray) -> float:
    """Share of the subsets [S, N] (bool) whose `majority` is the key; a subset without votes is wrong."""
    return _share_right(item, subsets.astype(np.float64))


def weighted_of_n(item: SampledItem, subsets: np.ndarray, temperature: float = 1.0) -> float:
    """Share of the subsets [S, N] (bool) whose `reward_weighted` vote is the key."""
    cast = np.array([vote is not None for vote in item.votes])
    rewards = np.where(subsets & cast, np.asarray(item.rewards, dtype=np.float64), -np.inf)
    return _share_right(item, softmax_weights(rewards, temperature))


def _share_right(item: SampledItem, weights: np.ndarray) -> float:
    codes, choices = encode(item.votes)
    if item.answer not in choices:
        return 0.0
    return float((elect(codes, weights) == choices.index(item.answer)).mean())


def _estimate(
    item: SampledItem, sizes: Sequence[int], ranks: np.ndarray, temperature: float
) -> dict[tuple[Rule, int], float]:
    """One item's expected accuracy by rule and n."""
    right = item.right
    found: dict[tuple[Rule, int], float] = {("mean", 1): sum(right) / len(right)}
    for n in sizes:
        subsets = _subsets(ranks, n)
        found["majority", n] = majority_of_n(item, subsets)
        found["oracle", n] = oracle(right, n)
        if item.rewards:
            found["best_of_n", n] = best_of_n(item.rewards, right, n)
            found["weighted", n] = weighted_of_n(item, subsets, temperature)
    return found


def _ranks(item: SampledItem, seed: int, draws: int) -> np.ndarray:
    """A random order of the samples per draw: [draws, N]. Ranks below n are a subset of size n, drawn evenly."""
    generator = np.random.default_rng(seeded_number(seed, item.item_id))
    return generator.permuted(np.tile(np.arange(len(item.votes)), (draws, 1)), axis=1)


def _subsets(ranks: np.ndarray, n: int) -> np.ndarray:
    """Subsets of size n as masks [S, N], so that a subset keeps the samples' order: all, or one per draw."""
    draws, samples = ranks.shape
    return _all_subsets(samples, n) if comb(samples, n) <= draws else ranks < n


@cache
def _all_subsets(samples: int, n: int) -> np.ndarray:
    masks = np.zeros((comb(samples, n), samples), dtype=np.bool_)
    for mask, members in zip(masks, combinations(range(samples), n), strict=True):
        mask[list(members)] = True
    return masks


@cache
def _chances_of_best(samples: int, n: int) -> np.ndarray:
    """The chance of each rank, lowest first, to be the highest of n: [N], of sum 1. Exact integers divide."""
    return np.array([comb(below, n - 1) / comb(samples, n) for below in range(samples)])


def _interval(values: Sequence[float]) -> Interval:
    """The normal interval of a mean of numbers in 0..1; one number alone says nothing: 0 to 1."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, 0.0, 1.0)
    width = 1.96 * float(array.std(ddof=1)) / len(array) ** 0.5
    return Interval(mean, max(0.0, mean - width), min(1.0, mean + width))


def _samples(items: Sequence[SampledItem]) -> int:
    """The number of samples that every item has."""
    if not items:
        raise ValueError("0 items: a curve needs at least one")
    samples, rewards = len(items[0].votes), len(items[0].rewards)
    for item in items:
        if (len(item.votes), len(item.rewards)) != (samples, rewards):
            raise ValueError(
                f"{item.item_id}: {len(item.votes)} samples, {len(item.rewards)} rewards, but {samples} and "
                f"{rewards} of {items[0].item_id}: every item needs the same numbers; sample or score the rest"
            )
    return samples


def _check_size(n: int, samples: int) -> None:
    if not 1 <= n <= samples:
        raise ValueError(f"n={n}: must be in 1..{samples}, the number of samples")
