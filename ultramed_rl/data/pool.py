"""The pool of prompts: what is held out, and each round's share of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ultramed_rl.config.rounds import Prompts
from ultramed_rl.data.prompts import PromptPool, load_prompts
from ultramed_rl.data.tokenize import Tokenizer
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Prompt
from ultramed_rl.store.keys import key_number
from ultramed_rl.store.round_record import Asked
from ultramed_rl.store.sequences import LazySequence
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
    for stratum in _strata(pool.training, config):
        stratum.check_supply(rounds, stratum.per_round * (rounds - 1), config.reuse)


@dataclass
class PoolSlice(LazySequence[Prompt]):
    """Prompts of a pool by their places in it."""

    pool: Sequence[Prompt]
    places: list[int]

    def __len__(self) -> int:
        return len(self.places)

    def _at(self, place: int) -> Prompt:
        return self.pool[self.places[place]]


@dataclass(frozen=True)
class _Stratum:
    """What a round draws from, all prompts or those of one source, by their places in the pool; and how many of them.

    Attributes:
        spare: further ones that may be asked where prompts give no pair.
        source: None for all sources.
    """

    places: Sequence[int]
    per_round: int
    spare: int
    source: int | None
    name: str

    def used(self, asked: Asked) -> int:
        """Of the prompts that a round has asked."""
        counts = asked.by_source
        return sum(counts.values()) if self.source is None else counts.get(self.source, 0)

    def check_supply(self, rounds: int, used: int, reuse: bool) -> None:
        pool, per_round = len(self.places), self.per_round
        if per_round > pool:
            raise ValueError(
                f"{self.name}prompts.per_round={per_round} is more than the {pool} training prompts; lower it or add "
                "sources"
            )
        if not reuse and used + per_round > pool:
            raise ValueError(
                f"{self.name}{rounds} rounds x prompts.per_round={per_round} = {rounds * per_round} prompts, but there "
                f"are {pool} to train on; set run.rounds to {pool // per_round} or fewer, add sources, or set "
                "prompts.reuse=true"
            )


def prompts_for_round(
    training: Sequence[Prompt], config: Prompts, asked: Sequence[Asked], seed: int, later: int = 0
) -> PoolSlice:
    """A round's prompts, without replacement; where sources have shares, each source's part after the other. With `refill`
    those come after them that are asked in the place of prompts without a pair, in the same shares.

    It follows from what it is given alone, so that a resumed run asks the same.

    Args:
        asked: what each round before has asked; with `unpaired_every` with the results, as far as they are known.
        later: rounds that come after this one, for which prompts are left.

    Raises:
        ValueError: the pool, or a source with a share, is used up or smaller than a round.
    """
    first: list[int] = []
    spare: list[int] = []
    for stratum in _strata(training, config):
        pool, per_round = len(stratum.places), stratum.per_round
        used = [stratum.used(round_asked) for round_asked in asked]
        stratum.check_supply(len(asked) + 1, sum(used), config.reuse)
        most = per_round + min(stratum.spare, pool - per_round)
        size = most if config.reuse else max(per_round, min(most, pool - sum(used) - per_round * later))
        part = PoolSlice(training, list(stratum.places))
        if config.unpaired_every is None:
            drawn = _slice_of_passes(part, used, most, size, seed)
        else:
            drawn = _first_due(part, asked, config.unpaired_every, size, seed)
        first += drawn[:per_round]
        spare += drawn[per_round:]
    return PoolSlice(training, first + spare)


def _strata(training: Sequence[Prompt], config: Prompts) -> list[_Stratum]:
    total = 0 if config.refill is None else int(config.per_round * config.refill) - config.per_round
    if config.shares is None:
        return [_Stratum(range(len(training)), config.per_round, total, None, "")]
    sources = [p.source for p in training]
    parts = zip(split_count(config.per_round, config.shares), split_count(total, config.shares), strict=True)
    return [
        _Stratum(
            [i for i, s in enumerate(sources) if s == source],
            count,
            spare,
            source,
            f"source {config.sources[source].uri!r}: ",
        )
        for source, (count, spare) in enumerate(parts)
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


def _slice_of_passes(part: PoolSlice, used: Sequence[int], most: int, size: int, seed: int) -> list[int]:
    """The next `size` places of seeded permutations of a part of the pool, after those that rounds have used.

    A part that is used up is reshuffled for another pass. Every pass holds every prompt once, and a round that
    spans two passes holds no prompt twice.

    Args:
        used: how many each round before has used of the `most` that it was given.
    """
    start, number, order = 0, 0, _shuffled(part, seed, 0)
    for taken, given in (*((taken, most) for taken in used), (0, size)):
        found, following = order[start : start + given], list[int]()
        short = given - len(found)
        if short:  # the next pass begins with others than those that this round has already
            have, shuffled = set(found), _shuffled(part, seed, number + 1)
            head = [place for place in shuffled if place not in have][:short]
            heads = set(head)
            following = head + [place for place in shuffled if place not in heads]
            found = found + head
        start += taken
        if start >= len(part):
            start, number = start - len(part), number + 1
            order = following or _shuffled(part, seed, number)
    return found


def _first_due(part: PoolSlice, asked: Sequence[Asked], every: int, size: int, seed: int) -> list[int]:
    """The `size` places of a part of the pool that are due in the earliest passes, those of each pass in a seeded order.

    Nobody is passed over for ever: a prompt is asked when all that are due before it have been.
    """
    due, places, found = _next_passes(part, asked, every), np.array(part.places), list[int]()
    for number in np.unique(due).tolist():
        if len(found) < size:
            found += _shuffled(PoolSlice(part.pool, places[due == number].tolist()), seed, number)
    return found[:size]


def _next_passes(part: PoolSlice, asked: Sequence[Asked], every: int) -> np.ndarray:
    """[prompts] the pass, from 0, in which each is due: the one after that in which it was asked last, or `every` after it
    where it gave no pair. Who is asked before its pass, since a round has room, counts from the next pass."""
    names = (part.pool[place].prompt_id for place in part.places)
    numbers = np.fromiter(map(key_number, names), dtype=np.uint64, count=len(part))
    order = np.argsort(numbers)
    due = np.zeros(len(part), dtype=np.int64)
    for one in asked:
        found = order[np.searchsorted(numbers, one.numbers, sorter=order) % len(part)]
        own = numbers[found] == one.numbers  # others are of other sources
        found, unpaired = found[own], one.unpaired[own]
        due[found] = np.minimum(due[found], due.min() + 1) + np.where(unpaired, every, 1)
    return due


def _shuffled(part: PoolSlice, seed: int, occasion: object) -> list[int]:
    names = (part.pool[place].prompt_id for place in part.places)
    drawn = (seeded_number(seed, occasion, name) for name in names)
    numbers, places = np.fromiter(drawn, dtype=np.uint64, count=len(part)), np.array(part.places)
    shuffled: list[int] = places[np.lexsort((places, numbers))].tolist()
    return shuffled
