"""Sharding loses and doubles nothing, whatever the sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.learning.batching import epoch_batches, pad_batch, shard_batch, token_budget_batches
from ultramed_rl.learning.schedule import learning_rate, step_progress

lengths_lists = st.lists(st.integers(1, 500), min_size=1, max_size=40)


@given(lengths_lists, st.integers(1, 8), st.integers(1, 5))
def test_shards_hold_every_sample_once_and_equal_counts(lengths: list[int], micro: int, ranks: int) -> None:
    shards = shard_batch(range(len(lengths)), lengths, micro, ranks)
    real = [i for shard in shards for m in shard if not m.filler for i in m.indices]
    assert sorted(real) == list(range(len(lengths)))
    assert len({len(shard) for shard in shards}) == 1
    assert all(len(m.indices) <= micro for shard in shards for m in shard)


@given(lengths_lists, st.integers(1, 2000))
def test_token_budget_holds_unless_a_sample_is_alone(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget


@given(st.integers(1, 60), st.integers(1, 16), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_visits_every_sample_once(count: int, size: int, epochs: int, seed: int) -> None:
    batches = epoch_batches(count, size, epochs, seed)
    per_epoch = -(-count // size)
    for epoch in range(epochs):
        seen = [i for b in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for i in b]
        assert sorted(seen) == list(range(count))


def test_padding_marks_the_answers_tokens() -> None:
    batch = pad_batch([([5, 6], [7]), ([8], [9, 10, 11])], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.completion_mask.tolist() == [[False, False, True, False], [False, True, True, True]]


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
