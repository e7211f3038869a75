"""Packing loses, doubles and misplaces no token; scoring in passes loses no answer."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.actors.scorer import score_groups, split_groups
from ultramed_rl.learning.packing import (
    AnswerGroup,
    PackedBatch,
    Segment,
    pack_groups,
    pack_sequences,
    sum_by_answer,
    unpack_rows,
)

# place:     0  1  2    3  4    5    6  7    8    9 10 11   12 13
# token:    10 11 12 | 20 21 | 22 | 13 14 | 23 | 24 25 26 | 27 28
EXAMPLE = [
    AnswerGroup([10, 11, 12], [[20, 21], [22]]),
    AnswerGroup((13, 14), [(23,), (24, 25, 26), (27, 28)]),
]

token_lists = st.lists(st.integers(0, 99), min_size=1, max_size=6)
group_lists = st.lists(
    st.builds(AnswerGroup, token_lists, st.lists(token_lists, min_size=1, max_size=5)), min_size=1, max_size=6
)


def sequences(groups: list[AnswerGroup]) -> list[list[int]]:
    """Every prompt + answer, in the order of the groups."""
    return [[*g.prompt, *a] for g in groups for a in g.answers]


@given(group_lists)
def test_groups_come_out_of_a_pickle_as_they_went_in(groups: list[AnswerGroup]) -> None:
    copies = pickle.loads(pickle.dumps(groups))
    assert [list(g.prompt) for g in copies] == [list(g.prompt) for g in groups]
    assert sequences(copies) == sequences(groups)
    assert [len(g.answers) for g in copies] == [len(g.answers) for g in groups]


def test_layout_of_two_groups_by_hand() -> None:
    batch = pack_groups(EXAMPLE)
    assert batch.input_ids.tolist() == [[10, 11, 12, 20, 21, 22, 13, 14, 23, 24, 25, 26, 27, 28]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1, 2, 2, 3, 4, 2, 3]]
    assert batch.segments == (
        Segment(0, 3, 0, 0),
        Segment(3, 5, 0, 3),
        Segment(5, 6, 0, 3),
        Segment(6, 8, 6, 6),
        Segment(8, 9, 6, 8),
        Segment(9, 12, 6, 8),
        Segment(12, 14, 6, 8),
    )
    assert batch.predictors.tolist() == [2, 3, 2, 7, 7, 9, 10, 7, 12]
    assert batch.targets.tolist() == [20, 21, 22, 23, 24, 25, 26, 27, 28]
    assert batch.answer.tolist() == [0, 0, 1, 2, 3, 3, 3, 4, 4]
    assert batch.last.tolist() == [4, 5, 8, 11, 13]
    assert batch.lengths.tolist() == [2, 1, 1, 3, 2]
    assert batch.tokens == 14 == sum(g.packed_tokens for g in EXAMPLE)


# place:       0  1  2  3    4  5    6  7  8
# token:      10 11 12 13 | 14 15 | 16 17 18
SEQUENCES = [
    ([10, 11, 12, 13], [False, True, False, True]),
    ((14, 15), (True, True)),  # nothing predicts the first token
    ([16, 17, 18], [False, False, False]),
]
masked_lists = st.lists(
    st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=8).map(
        lambda pairs: ([token for token, _ in pairs], [learned for _, learned in pairs])
    ),
    min_size=1,
    max_size=6,
)


def test_layout_of_whole_sequences_by_hand() -> None:
    batch = pack_sequences(SEQUENCES)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14, 15, 16, 17, 18]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2]]
    assert batch.segments == (Segment(0, 4, 0, 0), Segment(4, 6, 4, 4), Segment(6, 9, 6, 6))
    assert batch.predictors.tolist() == [0, 2, 4]
    assert batch.targets.tolist() == [11, 13, 15]
    assert batch.answer.tolist() == [0, 0, 1]
    assert batch.last.tolist() == [3, 5, 8]
    assert batch.lengths.tolist() == [2, 1, 0]
    assert sum_by_answer(torch.tensor([1.0, 2.0, 4.0]), batch).tolist() == [3.0, 4.0, 0.0]

    rows = unpack_rows(batch)
    assert rows.input_ids.tolist() == [[10, 11, 12, 13], [14, 15, 0, 0], [16, 17, 18, 0]]
    assert rows.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]
    assert rows.predictors.tolist() == [0, 2, 4]
    assert rows.last.tolist() == [3, 5, 10]


def test_sequences_without_tokens_or_with_another_mask_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"\b1\b"):
        pack_sequences([([1], [True]), ([], [])])
    with pytest.raises(AssertionError, match=r"\b2\b.*\b1\b"):
        pack_sequences([([1, 2], [True])])


def test_a_row_with_nothing_to_learn_is_still_a_batch() -> None:
    batch = pack_sequences([([7], [True])])
    assert batch.predictors.shape == batch.targets.shape == batch.answer.shape == (0,)
    assert batch.targets.dtype == batch.predictors.dtype == torch.long
    assert unpack_rows(batch).predictors.tolist() == []
    assert unpack_rows(batch).last.tolist() == [0]


@given(masked_lists)
@settings(deadline=None)
def test_sequences_keep_their_targets_packed_and_as_rows(
    sequences: list[tuple[list[int], list[bool]]],
) -> None:
    batch = pack_sequences(sequences)
    rows = unpack_rows(batch)
    expected = [
        (index, tokens[i - 1], tokens[i])
        for index, (tokens, mask) in enumerate(sequences)
        for i in range(1, len(tokens))
        if mask[i]
    ]
    flat, width = rows.input_ids.flatten(), rows.input_ids.shape[1]
    packed = (batch.answer, batch.input_ids[0, batch.predictors], batch.targets)
    padded = (rows.predictors // width, flat[rows.predictors], flat[rows.predictors + 1])
    for found in (packed, padded):
        assert list(zip(*(part.tolist() for part in found), strict=True)) == expected
    assert [
        flat_row[: len(tokens)].tolist()
        for flat_row, (tokens, _) in zip(rows.input_ids, sequences, strict=True)
    ] == [tokens for tokens, _ in sequences]
    assert rows.attention_mask.sum(1).tolist() == [len(tokens) for tokens, _ in sequences]
    assert (
        flat[rows.last].tolist() == batch.input_ids[0, batch.last].tolist() == [t[-1] for t, _ in sequences]
    )
    assert batch.position_ids[0].tolist() == [i for tokens, _ in sequences for i in range(len(tokens))]


@given(group_lists)
@settings(deadline=None)
def test_whole_sequences_have_the_targets_of_prompts_with_answers(groups: list[AnswerGroup]) -> None:
    grouped = pack_groups(groups)
    masked = [([*g.prompt, *a], [False] * len(g.prompt) + [True] * len(a)) for g in groups for a in g.answers]
    single = pack_sequences(masked)
    assert single.targets.tolist() == grouped.targets.tolist()
    assert single.answer.tolist() == grouped.answer.tolist()
    assert single.lengths.tolist() == grouped.lengths.tolist()
    first, second = unpack_rows(single), unpack_rows(grouped)
    assert first.input_ids.tolist() == second.input_ids.tolist()
    assert first.attention_mask.tolist() == second.attention_mask.tolist()
    assert first.predictors.tolist() == second.predictors.tolist()
    assert first.last.tolist() == second.last.tolist()


def test_segments_count_their_queries_and_keys() -> None:
    prompt, answer = pack_groups(EXAMPLE).segments[:2]
    assert (prompt.queries, prompt.keys) == (3, 3)
    assert (answer.queries, answer.keys) == (2, 5)


def test_rows_of_the_padded_batch_by_hand() -> None:
    rows = unpack_rows(pack_groups(EXAMPLE))
    assert rows.input_ids.tolist() == [
        [10, 11, 12, 20, 21],
        [10, 11, 12, 22, 0],
        [13, 14, 23, 0, 0],
        [13, 14, 24, 25, 26],
        [13, 14, 27, 28, 0],
    ]
    assert rows.attention_mask.tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0],
    ]
    assert rows.predictors.tolist() == [2, 3, 7, 11, 16, 17, 18, 21, 22]
    assert rows.last.tolist() == [4, 8, 12, 19, 23]


def test_sums_by_answer_by_hand() -> None:
    logprobs = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0], requires_grad=True)
    sums = sum_by_answer(logprobs, pack_groups(EXAMPLE))
    assert sums.tolist() == [3.0, 4.0, 8.0, 112.0, 384.0]
    (gradient,) = torch.autograd.grad(sums @ torch.arange(1.0, 6.0), logprobs)
    assert gradient.tolist() == [1.0, 1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("group", "lengths"),
    [(AnswerGroup([], [[1]]), r"\b0\b.*\[1\]"), (AnswerGroup([1], [[2], []]), r"\b1\b.*\[1, 0\]")],
)
def test_empty_prompts_and_answers_are_refused(group: AnswerGroup, lengths: str) -> None:
    with pytest.raises(AssertionError, match=lengths):
        pack_groups([group])


@given(group_lists)
@settings(deadline=None)
def test_every_sequence_can_be_rebuilt_from_the_row(groups: list[AnswerGroup]) -> None:
    batch = pack_groups(groups)
    tokens, positions = batch.input_ids[0].tolist(), batch.position_ids[0].tolist()

    starts = [s.start for s in batch.segments]
    stops = [s.stop for s in batch.segments]
    assert starts == [0, *stops[:-1]] and stops[-1] == batch.tokens  # the row exactly once

    answers = [s for s in batch.segments if s.prefix_stop > s.prefix_start]
    places = [[*range(s.prefix_start, s.prefix_stop), *range(s.start, s.stop)] for s in answers]
    assert [[tokens[i] for i in sequence] for sequence in places] == sequences(groups)
    assert all([positions[i] for i in sequence] == list(range(len(sequence))) for sequence in places)

    predictors, targets, owners = batch.predictors.tolist(), batch.targets.tolist(), batch.answer.tolist()
    expected = [
        (sequence[i - 1], tokens[sequence[i]], index)
        for index, (sequence, s) in enumerate(zip(places, answers, strict=True))
        for i in range(s.prefix_stop - s.prefix_start, len(sequence))
    ]
    assert list(zip(predictors, targets, owners, strict=True)) == expected
    assert batch.last.tolist() == [sequence[-1] for sequence in places]
    assert batch.lengths.tolist() == [len(a) for g in groups for a in g.answers]


@given(group_lists)
@settings(deadline=None)
def test_rows_hold_the_sequences_and_predict_the_same_targets(groups: list[AnswerGroup]) -> None:
    batch = pack_groups(groups)
    rows = unpack_rows(batch)
    found = [ids[mask.bool()].tolist() for ids, mask in zip(rows.input_ids, rows.attention_mask, strict=True)]
    assert found == sequences(groups)
    flat = rows.input_ids.flatten()
    assert flat[rows.predictors + 1].tolist() == batch.targets.tolist()
    assert flat[rows.predictors].tolist() == batch.input_ids[0, batch.predictors].tolist()
    assert flat[rows.last].tolist() == [sequence[-1] for sequence in sequences(groups)]
    # A row's first mask zero, if any, comes right after its last token.
    assert (rows.last % rows.input_ids.shape[1] + 1).tolist() == rows.attention_mask.sum(1).tolist()


@given(group_lists, st.integers(1, 40))
def test_splitting_keeps_every_answer_and_the_budget(groups: list[AnswerGroup], budget: int) -> None:
    parts = list(split_groups(groups, budget))
    assert all(part.prompt == groups[index].prompt for index, _, part in parts)
    found = [
        (index, first + place, list(answer))
        for index, first, part in parts
        for place, answer in enumerate(part.answers)
    ]
    assert found == [(i, k, list(a)) for i, g in enumerate(groups) for k, a in enumerate(g.answers)]
    assert all(len(part.answers) == 1 or part.packed_tokens <= budget for _, _, part in parts)
    # A group is split only where it must be: no part has room for the next one's first answer.
    for (index, _, part), (other, _, following) in pairwise(parts):
        assert index != other or part.packed_tokens + len(following.answers[0]) > budget


class Fingerprint:
    """A forward pass that gives each answer a number of its whole sequence, and keeps its batches' sizes."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, int]] = []  # tokens, answers

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        self.passes.append((batch.tokens, len(batch.lengths)))
        rows = unpack_rows(batch)
        return torch.tensor(
            [
                self.of(ids[mask.bool()].tolist())
                for ids, mask in zip(rows.input_ids, rows.attention_mask, strict=True)
            ]
        )

    @staticmethod
    def of(sequence: list[int]) -> float:
        return float(sum((place + 1) * (token + 1) for place, token in enumerate(sequence)))


@given(group_lists, st.integers(1, 60))
@settings(deadline=None)
def test_every_answer_is_scored_once_whatever_the_budget(groups: list[AnswerGroup], budget: int) -> None:
    forward = Fingerprint()
    passes = list(score_groups(groups, forward, budget, "cpu", in_step=False, packed=True))
    expected = {
        (i, k): Fingerprint.of([*g.prompt, *a]) for i, g in enumerate(groups) for k, a in enumerate(g.answers)
    }
    found = [number for numbers in passes for number in numbers]
    assert len(found) == len(expected)
    assert {(group, place): value for group, place, value in found} == expected
    assert len(forward.passes) == len(passes)
    assert all(tokens <= budget or answers == 1 for tokens, answers in forward.passes)


def test_ranks_in_step_make_the_passes_of_the_longest_and_yield_only_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def others_have_seven(count: torch.Tensor, op: Any) -> None:
        assert op == torch.distributed.ReduceOp.MAX
        count.fill_(max(int(count), 7))

    monkeypatch.setattr(torch.distributed, "all_reduce", others_have_seven)
    forward = Fingerprint()
    passes = list(score_groups(EXAMPLE, forward, 8, "cpu", in_step=True, packed=True))
    assert len(forward.passes) == 7
    assert sorted((group, place) for numbers in passes for group, place, _ in numbers) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (1, 2),
    ]


def test_a_rank_without_groups_still_keeps_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count, op: count.fill_(2))
    forward = Fingerprint()
    assert list(score_groups([], forward, 8, "cpu", in_step=True, packed=True)) == []
    assert len(forward.passes) == 2
