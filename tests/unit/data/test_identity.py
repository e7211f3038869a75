"""Weights and held-out prompts: decided by each key's own hash, whatever the order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.data.identity import choose_held_out, mixture_copies

keys = st.lists(st.text(max_size=8), min_size=1, max_size=30)


def test_whole_weights_are_exact() -> None:
    for weight in (1, 2, 3):
        assert {mixture_copies(float(weight), f"k{i}", 0) for i in range(50)} == {weight}


@pytest.mark.parametrize("weight", [0.01, 0.25, 0.5, 1.75, 2.9])
def test_the_mean_of_many_rows_is_the_weight(weight: float) -> None:
    copies = [mixture_copies(weight, f"key {i}", seed=3) for i in range(20_000)]
    assert set(copies) == {int(weight), int(weight) + 1}
    assert sum(copies) / len(copies) == pytest.approx(weight, abs=0.015)  # four standard errors


@given(st.floats(0.001, 4), st.floats(0.001, 4), st.text(), st.integers())
def test_a_higher_weight_uses_all_that_a_lower_one_does(a: float, b: float, key: str, seed: int) -> None:
    low, high = sorted((a, b))
    assert mixture_copies(low, key, seed) <= mixture_copies(high, key, seed)
    assert int(low) <= mixture_copies(low, key, seed) <= int(low) + 1


def test_seeds_choose_different_rows() -> None:
    def used(seed: int) -> list[int]:
        return [i for i in range(200) if mixture_copies(0.5, str(i), seed)]

    assert used(0) == used(0) != used(1)


@given(keys, st.data())
def test_held_out_keys_are_so_many_and_order_and_repetition_dont_matter(
    found: list[str], data: st.DataObject
) -> None:
    different = set(found)
    count = data.draw(st.integers(0, len(different) - 1))
    chosen = choose_held_out(found, count, seed=1)
    assert len(chosen) == count and chosen < different
    shuffled = [*found, *data.draw(st.lists(st.sampled_from(found)))]
    random.Random(0).shuffle(shuffled)
    assert choose_held_out(shuffled, count, seed=1) == chosen


@given(keys, st.data())
def test_fewer_held_out_keys_are_among_more(found: list[str], data: st.DataObject) -> None:
    more = data.draw(st.integers(0, len(set(found)) - 1))
    fewer = data.draw(st.integers(0, more))
    assert choose_held_out(found, fewer, 5) <= choose_held_out(found, more, 5)


def test_something_is_left_to_train_on() -> None:
    with pytest.raises(ValueError, match=r"data\.held_out=2 .*\b2 "):
        choose_held_out(["a", "b", "a"], 2, 0)
    with pytest.raises(ValueError, match=r"data\.held_out=9 .*\b1 "):
        choose_held_out(["a"], 9, 0)
    with pytest.raises(ValueError, match=r"data\.held_out=0 .*\b0 "):
        choose_held_out([], 0, 0)


def test_memory_holds_the_chosen_ones_only() -> None:
    import tracemalloc

    tracemalloc.start()
    assert len(choose_held_out((str(i) for i in range(50_000)), 10, 0)) == 10
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000
