"""Sharding loses and doubles nothing, whatever the sizes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.learning.batching import (
    MicroBatch,
    epoch_batches,
    learning_rate,
    shard_batch,
    step_progress,
    token_budget_batches,
)

lengths_lists = st.lists(st.integers(1, 500), min_size=1, max_size=40)


@st.composite
def global_batches(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Lengths of all samples, and the indices of some of them in any order."""
    lengths = draw(lengths_lists)
    order = draw(st.permutations(range(len(lengths))))
    return lengths, order[: draw(st.integers(1, len(order)))]


@given(global_batches(), st.integers(1, 2000), st.integers(1, 6))
def test_shards_hold_every_sample_once_in_equally_many_passes_within_the_budget(
    drawn: tuple[list[int], list[int]], budget: int, ranks: int
) -> None:
    lengths, batch = drawn
    shards = shard_batch(batch, lengths, budget, ranks)
    assert len(shards) == ranks
    real = [i for shard in shards for m in shard if not m.filler for i in m.indices]
    assert sorted(real) == sorted(batch)
    assert len({len(shard) for shard in shards}) == 1
    for m in (m for shard in shards for m in shard):
        assert m.indices
        assert len(m.indices) == 1 or sum(lengths[i] for i in m.indices) <= budget


@given(global_batches(), st.integers(1, 2000), st.integers(1, 6))
def test_fillers_come_only_where_nothing_can_be_split(
    drawn: tuple[list[int], list[int]], budget: int, ranks: int
) -> None:
    lengths, batch = drawn
    shards = shard_batch(batch, lengths, budget, ranks)
    for shard in shards:
        fillers = [m for m in shard if m.filler]
        if fillers:
            assert all(len(m.indices) == 1 for m in shard)
        # The cheapest sample of the batch does.
        assert all(lengths[m.indices[0]] == min(lengths[i] for i in batch) for m in fillers)
    assert any(not any(m.filler for m in shard) for shard in shards)  # the busiest rank needs none


@given(global_batches(), st.integers(1, 2000), st.integers(1, 6))
def test_loads_of_ranks_differ_by_at_most_the_longest_sample(
    drawn: tuple[list[int], list[int]], budget: int, ranks: int
) -> None:
    lengths, batch = drawn
    shards = shard_batch(batch, lengths, budget, ranks)
    loads = [sum(lengths[i] for m in shard if not m.filler for i in m.indices) for shard in shards]
    assert max(loads) - min(loads) <= max(lengths[i] for i in batch)


@given(global_batches(), st.integers(1, 2000), st.integers(1, 6))
def test_the_order_of_a_batch_does_not_matter(
    drawn: tuple[list[int], list[int]], budget: int, ranks: int
) -> None:
    lengths, batch = drawn
    assert shard_batch(sorted(batch), lengths, budget, ranks) == shard_batch(batch, lengths, budget, ranks)


def test_shards_by_hand() -> None:
    # Dealt: 5 | 4, then 3 to the four, 2 to the five, 1 to the first of equals (7 | 7).
    # Of 5, 2, 1 the one fits beside the five, the fullest bin with room.
    assert shard_batch(range(5), [5, 4, 3, 2, 1], budget=6, ranks=2) == [
        [MicroBatch((0, 4)), MicroBatch((3,))],
        [MicroBatch((1,)), MicroBatch((2,))],
    ]


def test_a_rank_with_fewer_passes_splits_before_it_repeats() -> None:
    # Dealt: 7 | 4 3, then 2 to the first of equals (7 | 7), 1 to the second: 7 2 | 4 3 1.
    # 7 and 2 are two passes of at most 8; 4 3 1 would be one, and is made two: every other sample.
    assert shard_batch(range(5), [7, 4, 3, 2, 1], budget=8, ranks=2) == [
        [MicroBatch((0,)), MicroBatch((3,))],
        [MicroBatch((1, 4)), MicroBatch((2,))],
    ]
    # With room for all of a rank's tokens nobody splits.
    assert shard_batch(range(5), [7, 4, 3, 2, 1], budget=9, ranks=2) == [
        [MicroBatch((0, 3))],
        [MicroBatch((1, 2, 4))],
    ]


def test_a_rank_without_samples_repeats_the_shortest_with_weight_zero() -> None:
    assert shard_batch([2, 0], [7, 1, 3], budget=10, ranks=3) == [
        [MicroBatch((0,))],
        [MicroBatch((2,))],
        [MicroBatch((2,), filler=True)],
    ]


@given(lengths_lists, st.integers(1, 2000))
def test_token_budget_holds_unless_a_sample_is_alone(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(batches)
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget
    for batch, following in pairwise(batches):  # of similar length, and no room wasted
        assert max(lengths[i] for i in batch) <= min(lengths[i] for i in following)
        assert sum(lengths[i] for i in batch) + lengths[following[0]] > budget


@given(st.integers(1, 60), st.integers(1, 16), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_visits_every_sample_once(count: int, size: int, epochs: int, seed: int) -> None:
    batches = epoch_batches(count, size, epochs, seed)
    per_epoch = -(-count // size)
    for epoch in range(epochs):
        seen = [i for b in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for i in b]
        assert sorted(seen) == list(range(count))


def test_learning_rate_by_hand() -> None:
    rate = lambda p, shape: learning_rate(p, peak=1.0, warmup=0.2, shape=shape)
    assert rate(0.1, "cosine") == pytest.approx(0.5)
    assert rate(0.2, "cosine") == pytest.approx(1.0)
    assert rate(0.6, "cosine") == pytest.approx(0.5)
    assert rate(0.6, "linear") == pytest.approx(0.5)
    assert rate(0.9, "constant") == 1.0


def test_progress_of_a_run_wide_schedule_continues_over_rounds() -> None:
    assert step_progress(0, 4) == pytest.approx(0.125)
    assert step_progress(0, 4, round_index=1, rounds=2) == pytest.approx(0.5625)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(60, 200), st.integers(1, 3))
def test_padded_rows_keep_the_budget_too(lengths: list[int], budget: int, ranks: int) -> None:
    shards = shard_batch(range(len(lengths)), lengths, budget, ranks, padded=True)
    micro = [m for shard in shards for m in shard]
    assert all(len(m.indices) * max(lengths[i] for i in m.indices) <= budget for m in micro)
    assert sorted(i for m in micro if not m.filler for i in m.indices) == list(range(len(lengths)))
