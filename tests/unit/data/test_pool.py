"""The pool: splitting, rounds that partition it, and sources with a share of every round."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.config.rounds import Prompts
from ultramed_rl.data.prompts import (
    PoolSlice,
    PromptPool,
    check_rounds,
    prompts_for_round,
    split_count,
    split_pool,
)
from ultramed_rl.records import Message, Prompt
from ultramed_rl.store.digests import key_number
from ultramed_rl.store.work_directory import Asked


def rule(per_round: int, reuse: bool, *shares: float) -> Prompts:
    """The config of a pool; without shares it has one source."""
    found = [{"type": "question", "uri": f"s{k}", "share": share} for k, share in enumerate(shares)]
    sources = found or [{"type": "question", "uri": "s0"}]
    return Prompts.model_validate({"sources": sources, "per_round": per_round, "reuse": reuse})


def round_of(asked: Sequence[Prompt], unpaired: Collection[str] = ()) -> Asked:
    """A round that asked these prompts, of which some gave no pair."""
    names = [p.prompt_id for p in asked]
    numbers = np.array([key_number(name) for name in names], dtype=np.uint64)
    return Asked(Counter(p.source for p in asked), numbers, np.array([name in unpaired for name in names]))


def draw(prompts: Sequence[Prompt], config: Prompts, index: int, seed: int) -> list[Prompt]:
    """Round `index`, where each before has asked its prompts once."""
    asked = list[Asked]()
    while True:
        found: PoolSlice = prompts_for_round(prompts, config, asked, seed)
        if len(asked) == index:
            return list(found)
        asked.append(round_of(found[: config.per_round]))


def make_pool(size: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"p{i}", (Message(role="user", content=str(i)),)) for i in range(size))


@given(st.integers(2, 60), st.data())
def test_split_is_a_partition_that_ignores_order(size: int, data: st.DataObject) -> None:
    prompts = make_pool(size)
    held_out, seed = data.draw(st.integers(1, size - 1)), data.draw(st.integers(0, 9))
    pool = split_pool(PromptPool(prompts, counts={"rows": size}), held_out, seed)
    assert len(pool.held_out) == held_out and pool.counts == {"rows": size}
    assert sorted(p.prompt_id for p in (*pool.training, *pool.held_out)) == sorted(
        p.prompt_id for p in prompts
    )
    shuffled = PromptPool(tuple(data.draw(st.permutations(prompts))))
    again = split_pool(shuffled, held_out, seed)
    assert {p.prompt_id for p in again.held_out} == {p.prompt_id for p in pool.held_out}


def test_split_needs_something_left() -> None:
    with pytest.raises(ValueError, match=r"prompts\.held_out=3 .*\b3\b"):
        split_pool(PromptPool(make_pool(3)), 3, 0)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_rounds_partition_the_pool(size: int, per_round: int, seed: int) -> None:
    prompts = make_pool(size)
    rounds = size // per_round
    drawn = [p.prompt_id for i in range(rounds) for p in draw(prompts, rule(per_round, False), i, seed)]
    assert len(drawn) == rounds * per_round == len(set(drawn))
    with pytest.raises(ValueError):
        draw(prompts, rule(per_round, False), rounds, seed)


@settings(max_examples=60)
@given(st.integers(1, 14), st.data())
def test_reuse_holds_every_prompt_once_per_pass_and_never_twice_per_round(
    size: int, data: st.DataObject
) -> None:
    prompts = make_pool(size)
    per_round, seed = data.draw(st.integers(1, size)), data.draw(st.integers(0, 9))
    rounds = [draw(prompts, rule(per_round, True), i, seed) for i in range(4 * size // per_round)]
    for chosen in rounds:
        assert len({p.prompt_id for p in chosen}) == per_round
    drawn = [p.prompt_id for chosen in rounds for p in chosen]
    for start in range(0, len(drawn) - size + 1, size):
        assert len(set(drawn[start : start + size])) == size


@settings(max_examples=80)
@given(st.integers(2, 30), st.booleans(), st.floats(1.1, 3.0), st.data())
def test_rounds_that_ask_further_prompts_leave_the_others_for_later(
    size: int, reuse: bool, refill: float, data: st.DataObject
) -> None:
    """Whatever each round has asked: none twice in a pass, none twice in a round, and enough for every round to come."""
    prompts = make_pool(size)
    per_round = data.draw(st.integers(1, size))
    rounds = data.draw(st.integers(1, 6)) if reuse else data.draw(st.integers(1, size // per_round))
    config = rule(per_round, reuse).model_copy(update={"refill": refill})
    asked, drawn = list[Asked](), list[str]()
    for index in range(rounds):
        given = prompts_for_round(prompts, config, asked, 0, later=rounds - index - 1)
        ids = [p.prompt_id for p in given]
        assert per_round <= len(ids) == len(set(ids)) <= max(per_round, per_round * refill)
        count = data.draw(st.integers(per_round, len(ids)))
        asked.append(round_of(given[:count]))
        drawn += ids[:count]
    for start in range(0, len(drawn), size):
        one_pass = drawn[start : start + size]
        assert len(set(one_pass)) == len(one_pass)
    assert reuse or len(drawn) <= size


def test_further_prompts_come_in_the_shares_of_their_sources() -> None:
    config = rule(8, False, 0.75, 0.25).model_copy(update={"refill": 1.5})
    pool = mixed_pool(40, 12)
    before = round_of([*pool[:9], *pool[40:42]])
    given = prompts_for_round(pool, config, [before], 0, later=1)
    # 6 and 2, then 3 and 1; of the second source 10 are left, and 2 of them are the next round's.
    assert [p.source for p in given] == [0] * 6 + [1] * 2 + [0] * 3 + [1]


def curriculum(per_round: int, every: int, *shares: float, refill: float | None = None) -> Prompts:
    changes = {"unpaired_every": every, "refill": refill}
    return rule(per_round, True, *shares).model_copy(update=changes)


def test_what_gave_no_pair_comes_back_some_passes_later() -> None:
    """Four prompts, two a round, none of the first two with a pair: due in passes 0, then 3; the others in 0, 1, 2, 3."""
    prompts, config, asked = make_pool(4), curriculum(2, 3), list[Asked]()
    seen = list[set[str]]()
    for _ in range(6):
        given = list(prompts_for_round(prompts, config, asked, 0))
        seen.append({p.prompt_id for p in given})
        asked.append(round_of(given, seen[0] if len(seen) == 1 else ()))
    easy, hard = seen[:2]
    assert easy | hard == {"p0", "p1", "p2", "p3"}
    assert seen[2:4] == [hard, hard], "passes 1 and 2 are theirs alone"
    assert seen[4] | seen[5] == easy | hard, "pass 3 is everybody's"
    before = [p.prompt_id for i in range(2) for p in draw(prompts, rule(2, True), i, 0)]
    assert before == [p.prompt_id for i in range(2) for p in prompts_for_round(prompts, config, asked[:i], 0)]


@settings(max_examples=80)
@given(st.integers(2, 16), st.integers(2, 4), st.none() | st.floats(1.1, 3.0), st.integers(0, 9), st.data())
def test_no_prompt_is_asked_twice_before_all_are_once_and_none_is_lost(
    size: int, every: int, refill: float | None, seed: int, data: st.DataObject
) -> None:
    """Whatever gave no pair, and however many of a round's prompts were asked."""
    prompts = make_pool(size)
    config = curriculum(data.draw(st.integers(1, size)), every, refill=refill)
    asked, times = list[Asked](), Counter[str]({p.prompt_id: 0 for p in prompts})
    due = dict.fromkeys(times, 0)
    for _ in range(10):
        given = list(prompts_for_round(prompts, config, asked, seed))
        assert given == list(prompts_for_round(prompts[::-1], config, asked, seed))
        names = [p.prompt_id for p in given]
        assert config.per_round <= len(names) == len(set(names)) <= config.per_round * (refill or 1.0)
        others = due.keys() - set(names)
        assert [due[name] for name in names] == sorted(due[name] for name in names)
        assert not others or due[names[-1]] <= min(due[name] for name in others)
        count = data.draw(st.integers(config.per_round, len(names)))
        unpaired = data.draw(st.sets(st.sampled_from(names)))
        asked.append(round_of(given[:count], unpaired))
        times.update(names[:count])
        earliest = min(due.values())
        for name in names[:count]:
            due[name] = min(due[name], earliest + 1) + (every if name in unpaired else 1)
        assert max(times.values()) < 2 or min(times.values()) > 0, "a prompt twice, and another not at all"
    assert max(due.values()) - min(due.values()) <= every + 1, "a prompt is left behind"


def test_sources_keep_their_shares_whatever_gave_no_pair() -> None:
    prompts, config = mixed_pool(6, 4), curriculum(4, 3, 0.75, 0.25)
    asked = list[Asked]()
    for _ in range(8):
        given = list(prompts_for_round(prompts, config, asked, 0))
        assert [p.source for p in given] == [0, 0, 0, 1]
        asked.append(round_of(given, {p.prompt_id for p in given if p.source == 0}))


def test_without_passes_there_is_no_curriculum() -> None:
    sources = [{"type": "question", "uri": "s0"}]
    with pytest.raises(ValueError, match=r"unpaired_every=4: .*prompts\.reuse=false"):
        Prompts.model_validate({"sources": sources, "unpaired_every": 4})


def test_another_seed_or_pass_is_another_order() -> None:
    prompts = make_pool(30)
    first, second = (list(draw(prompts, rule(30, True), i, 0)) for i in range(2))
    assert first != second and first != list(draw(prompts, rule(30, True), 0, 1))
    assert first == list(draw(prompts[::-1], rule(30, True), 0, 0))


def test_supply_is_checked_early_with_the_arithmetic() -> None:
    pool = PromptPool(make_pool(10))
    check_rounds(pool, rule(5, False), 2)
    check_rounds(pool, rule(5, True), 9)
    with pytest.raises(ValueError, match=r"3 .* x prompts\.per_round=4 = 12 .*\b10\b.*\b2\b"):
        check_rounds(pool, rule(4, False), 3)
    with pytest.raises(ValueError, match=r"prompts\.per_round=11 .*\b10\b"):
        check_rounds(pool, rule(11, True), 1)


def mixed_pool(*sizes: int) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(f"{source}-{i}", (Message(role="user", content="q"),), (1,), source=source)
        for source, size in enumerate(sizes)
        for i in range(size)
    )


def test_each_source_has_its_share_of_every_round() -> None:
    prompts = mixed_pool(40, 9)
    rounds = [draw(prompts, rule(10, False, 0.75, 0.25), i, 0) for i in range(3)]
    # 7.5 and 2.5: equal remainders, so the first source is rounded up
    assert all(Counter(p.source for p in drawn) == {0: 8, 1: 2} for drawn in rounds)
    drawn = [p.prompt_id for chosen in rounds for p in chosen]
    assert len(set(drawn)) == len(drawn)


def test_a_share_that_does_not_last_names_its_source() -> None:
    pool = PromptPool(mixed_pool(40, 5))
    with pytest.raises(ValueError, match=r"'s1': 3 .* x prompts\.per_round=2 = 6 .*\b5\b"):
        check_rounds(pool, rule(10, False, 0.8, 0.2), 3)
    check_rounds(pool, rule(10, True, 0.8, 0.2), 3)


def test_shares_are_given_to_all_sources_and_make_a_whole() -> None:
    for shares in ([0.5, None], [0.5, 0.4]):
        sources = [{"type": "question", "uri": "x", "share": share} for share in shares]
        with pytest.raises(ValueError, match=rf"sources: .*{re.escape(str(shares))}"):
            Prompts.model_validate({"sources": sources})


@given(st.integers(0, 500), st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_split_count_loses_nothing_and_stays_near(total: int, weights: list[int]) -> None:
    shares = [w / sum(weights) for w in weights]
    counts = split_count(total, shares)
    assert sum(counts) == total
    assert all(abs(count - total * share) < 1.0 + 1e-9 for count, share in zip(counts, shares, strict=True))
