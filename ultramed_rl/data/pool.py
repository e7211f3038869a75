"""The pool of prompts: what is held out, and each round's share of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from ultramed_rl.config.data import Prompts
from ultramed_rl.data.prompts import PromptPool, load_prompts
from ultramed_rl.data.tokenize import Tokenizer
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Prompt
from ultramed_rl.tracking import Progress


def prepare_pool(config: Prompts, tokenizer: Tokenizer, seed: int, progress: Progress) -> PromptPool:
    """Load, split, and say what became of the rows."""
    loaded = load_prompts(config, tokenizer.encode_chat, tokenizer.markers)
    pool = split_pool(loaded, config.held_out, seed)
    counts = ", ".join(f"{name} {count}" for name, count in pool.counts.items() if count)
    progress.say(f"prompts: {len(pool.training)} to train on, {len(pool.held_out)} held out ({counts})")
    return pool


def split_pool(pool: PromptPool, held_out: int, seed: int) -> PromptPool:
    """The pool with `held_out` of its prompts set aside. Each id's own hash decides, so file order doesn't.

    Raises:
        ValueError: no training prompt would be left.
    """
    prompts = (*pool.training, *pool.held_out)
    if held_out >= len(prompts):
        raise ValueError(
            f"prompts.held_out={held_out} leaves none of {len(prompts)} prompts; lower it or add sources"
        )
    chosen = set(_shuffled(PoolSlice(prompts, list(range(len(prompts)))), seed, "held out")[:held_out])
    training = tuple(p for i, p in enumerate(prompts) if i not in chosen)
    return PromptPool(training, tuple(prompts[i] for i in sorted(chosen)), dict(pool.counts))


def check_rounds(pool: PromptPool, config: Prompts, rounds: int) -> None:
    """Make sure, before anything is started, that the training prompts last for all rounds.

    Raises:
        ValueError: they don't, with the arithmetic.
    """
    for places, per_round, name in _strata(pool.training, config):
        _check_supply(len(places), per_round, rounds, config.reuse, name)


@dataclass
class PoolSlice(Sequence[Prompt]):
    """Prompts of a pool by their places in it."""

    pool: Sequence[Prompt]
    places: list[int]

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self.pool[place] for place in self.places[index]]
        return self.pool[self.places[index]]


def prompts_for_round(training: Sequence[Prompt], config: Prompts, round_index: int, seed: int) -> PoolSlice:
    """A round's prompts, without replacement; where sources have shares, each source's part after the other.

    Raises:
        ValueError: the pool, or a source with a share, is used up or smaller than a round.
    """
    drawn: list[int] = []
    for places, per_round, name in _strata(training, config):
        _check_supply(len(places), per_round, round_index + 1, config.reuse, name)
        drawn += _slice_of_passes(PoolSlice(training, list(places)), per_round, round_index, seed)
    return PoolSlice(training, drawn)


def _strata(training: Sequence[Prompt], config: Prompts) -> list[tuple[Sequence[int], int, str]]:
    """What a round draws from, how many of each, and its name: all prompts, or each source with its share."""
    if config.shares is None:
        return [(range(len(training)), config.per_round, "")]
    counts, sources = split_count(config.per_round, config.shares), [p.source for p in training]
    return [
        ([i for i, s in enumerate(sources) if s == place], count, f"source {config.sources[place].uri!r}: ")
        for place, count in enumerate(counts)
        if count
    ]


def split_count(total: int, shares: Sequence[float]) -> list[int]:
    """`total` in whole parts as near to the shares as can be: the largest remainders are rounded up."""
    exact = [total * share for share in shares]
    counts = [int(part) for part in exact]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts


def _slice_of_passes(part: PoolSlice, per_round: int, round_index: int, seed: int) -> list[int]:
    """Consecutive slices of a seeded permutation of a part of the pool, as places in the pool.

    A part that is used up is reshuffled for another pass. Every pass holds every prompt once, and a round that
    spans two passes holds no prompt twice.
    """
    first, offset = divmod(round_index * per_round, len(part))
    order = _pass_order(part, per_round, first, seed)
    if offset + per_round > len(part):
        order += _pass_order(part, per_round, first + 1, seed)
    return order[offset : offset + per_round]


def _pass_order(part: PoolSlice, per_round: int, number: int, seed: int) -> list[int]:
    """Pass `number`'s permutation; its start avoids the prompts already in the round that it completes."""
    order: list[int] = []
    for current in range(number + 1):
        used = -(current * len(part)) % per_round  # slots of the spanning round that this pass fills
        tail = set(order[-(per_round - used) :]) if used else set()
        shuffled = _shuffled(part, seed, current)
        head = [place for place in shuffled if place not in tail][:used]
        heads = set(head)
        order = head + [place for place in shuffled if place not in heads]
    return order


def _shuffled(part: PoolSlice, seed: int, occasion: object) -> list[int]:
    numbers = [seeded_number(seed, occasion, prompt.prompt_id) for prompt in part]
    return [place for _, place in sorted(zip(numbers, part.places, strict=True))]


def _check_supply(pool: int, per_round: int, rounds: int, reuse: bool, name: str) -> None:
    if per_round > pool:
        raise ValueError(
            f"{name}prompts.per_round={per_round} is more than the {pool} training prompts; lower it or add "
            "sources"
        )
    if not reuse and rounds * per_round > pool:
        raise ValueError(
            f"{name}{rounds} rounds x prompts.per_round={per_round} = {rounds * per_round} prompts, but there "
            f"are {pool} to train on; set run.rounds to {pool // per_round} or fewer, add sources, or set "
            "prompts.reuse=true"
        )
