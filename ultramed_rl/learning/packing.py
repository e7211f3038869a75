"""Packing without padding: a prompt once, each of its answers after it, several groups in one row.

    tokens     [ prompt A | A1 | A2 | prompt B | B1 | B2 | B3 ]
    positions    0..p-1    p..  p..   0..q-1     q..  q..  q..

An answer attends to its prompt and to itself; to the rest of the row it is blind. So a token's hidden state,
and its gradient, are those of the plain sequence prompt + answer (prefix sharing: arXiv 2410.20305). Whole
sequences, of which some tokens are learned, are packed as answers without a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch

from ultramed_rl.records import PreferenceGroup
from ultramed_rl.token_ids import TokenIds, pack_ids


@dataclass(frozen=True)
class AnswerGroup:
    """Token ids of a prompt and of its answers."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]

    @classmethod
    def of(cls, group: PreferenceGroup) -> AnswerGroup:
        """Those of a preference group."""
        return cls(group.prompt.token_ids, [completion.token_ids for completion in group.completions])

    def __reduce__(self) -> tuple[Any, ...]:
        """One block of tokens between processes, not an object for each answer."""
        parts = list(map(pack_ids, (self.prompt, *self.answers)))
        return _cut_group, (b"".join(parts), [len(part) for part in parts])

    @property
    def packed_tokens(self) -> int:
        """Tokens with the prompt once."""
        return len(self.prompt) + sum(map(len, self.answers))

    @property
    def padded_tokens(self) -> int:
        """Tokens as padded rows, the prompt in each."""
        return len(self.answers) * (len(self.prompt) + max(map(len, self.answers)))

    def cost(self, packed: bool) -> int:
        """Tokens of a forward pass, packed or padded."""
        return self.packed_tokens if packed else self.padded_tokens


def _cut_group(packed: bytes, sizes: Sequence[int]) -> AnswerGroup:
    """What was pickled; `sizes` in bytes."""
    ends = [0, *accumulate(sizes)]
    prompt, *answers = (TokenIds.of_bytes(packed[a:b]) for a, b in pairwise(ends))
    return AnswerGroup(prompt, answers)


@dataclass(frozen=True)
class Segment:
    """Tokens [start, stop) of a row that attend, causally, to [prefix_start, prefix_stop) and themselves."""

    start: int
    stop: int
    prefix_start: int
    prefix_stop: int

    @property
    def queries(self) -> int:
        return self.stop - self.start

    @property
    def keys(self) -> int:
        return self.prefix_stop - self.prefix_start + self.queries


@dataclass(frozen=True)
class PackedBatch:
    """Groups of a micro-batch in one row of T tokens with A answers of N predicted tokens together.

    A prompt and a whole sequence are segments without a prefix. Segments are on the host.
    """

    input_ids: torch.Tensor  # [1, T]
    position_ids: torch.Tensor  # [1, T]
    segments: tuple[Segment, ...]  # who attends to whom
    predictors: torch.Tensor  # [N] place in the row whose hidden state predicts each answer token
    targets: torch.Tensor  # [N] the answer tokens (of a whole sequence: those to learn), answer after answer
    answer: torch.Tensor  # [N] the index of each token's answer, 0 .. A-1
    last: torch.Tensor  # [A] place of each answer's last token
    lengths: torch.Tensor  # [A] targets of each answer
    answers: tuple[Segment, ...]  # the segment of each answer
    places: Sequence[int]  # [N] `predictors` on the host
    collisions: bool = False  # whether the policy gives log sum_v pi(v)^2 of each prediction, too

    @property
    def tokens(self) -> int:
        """T."""
        return self.input_ids.shape[1]


def pack_groups(groups: Sequence[AnswerGroup], device: torch.device | str = "cpu") -> PackedBatch:
    """Lay groups end to end in one row. Prompts and answers must not be empty."""
    row = _Row()
    for group in groups:
        assert group.prompt and all(group.answers), (
            f"a prompt of {len(group.prompt)} tokens, answers of {[len(a) for a in group.answers]}: none may be empty"
        )
        prompt = row.append(group.prompt)
        for answer in group.answers:
            segment = row.append(answer, prompt)
            row.predict(segment, [prompt.stop - 1, *range(segment.start, segment.stop - 1)], answer)
    return row.batch(device)


def pack_sequences(
    sequences: Sequence[tuple[Sequence[int], Sequence[bool]]], device: torch.device | str = "cpu"
) -> PackedBatch:
    """Lay whole sequences (token ids, and the mask of those to predict) end to end in one row, each blind to the others.

    Every sequence is an answer without a prompt. Its first token follows nothing and is never predicted; without any token
    to predict its length is 0.
    """
    row = _Row()
    for index, (tokens, mask) in enumerate(sequences):
        assert tokens, f"sequence {index} has no token"
        assert len(tokens) == len(mask), f"{len(tokens)} tokens with a mask of {len(mask)}"
        segment = row.append(tokens)
        chosen = [place for place in range(1, len(tokens)) if mask[place]]
        row.predict(segment, [segment.start + i - 1 for i in chosen], [tokens[i] for i in chosen])
    return row.batch(device)


class _Row:
    """A row that grows by segments."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.predictors: list[int] = []
        self.targets: list[int] = []
        self.answers: list[tuple[Segment, int]] = []  # with the number of its targets

    def append(self, tokens: Sequence[int], prefix: Segment | None = None) -> Segment:
        """Tokens that see themselves and `prefix`, and count their positions on from it."""
        start, stop = len(self.tokens), len(self.tokens) + len(tokens)
        seen = (start, start) if prefix is None else (prefix.start, prefix.stop)
        segment = Segment(start, stop, *seen)
        self.tokens.extend(tokens)
        self.positions.extend(range(segment.keys - segment.queries, segment.keys))
        self.segments.append(segment)
        return segment

    def predict(self, segment: Segment, predictors: Sequence[int], targets: Sequence[int]) -> None:
        """Make the segment an answer, whose `targets` are predicted at `predictors`."""
        self.predictors.extend(predictors)
        self.targets.extend(targets)
        self.answers.append((segment, len(targets)))

    def batch(self, device: torch.device | str) -> PackedBatch:
        def sent(values: list[int] | torch.Tensor) -> torch.Tensor:
            # Without waiting for what the device still has to do.
            return torch.as_tensor(values, dtype=torch.long).to(device, non_blocking=True)

        lengths = torch.tensor([length for _, length in self.answers], dtype=torch.long)
        return PackedBatch(
            input_ids=sent(self.tokens)[None],
            position_ids=sent(self.positions)[None],
            segments=tuple(self.segments),
            predictors=sent(self.predictors),
            targets=sent(self.targets),
            answer=sent(torch.repeat_interleave(torch.arange(len(lengths)), lengths)),
            last=sent([segment.stop - 1 for segment, _ in self.answers]),
            lengths=sent(lengths),
            answers=tuple(segment for segment, _ in self.answers),
            places=self.predictors,
        )


@dataclass(frozen=True)
class PaddedBatch:
    """The same answers as right-padded rows prompt + answer, for models that cannot share a prompt."""

    input_ids: torch.Tensor  # [A, L]
    attention_mask: torch.Tensor  # [A, L]
    predictors: torch.Tensor  # [N] places in the flattened rows, in the order of `PackedBatch.predictors`
    last: torch.Tensor  # [A] likewise, of each row's last token


def unpack_rows(batch: PackedBatch) -> PaddedBatch:
    """Each answer of a packed batch as a row of its own. Padding is masked; its token id is 0."""
    answers = batch.answers
    width = max(s.keys for s in answers)
    ids = batch.input_ids.new_zeros((len(answers), width))
    mask = torch.zeros_like(ids)
    # Of each answer its start in the packed row, and the shifts from there to the flattened rows: of a place in its
    # prefix, of one in the answer.
    shifts = []
    for row, segment in enumerate(answers):
        prefix = segment.keys - segment.queries
        ids[row, :prefix] = batch.input_ids[0, segment.prefix_start : segment.prefix_stop]
        ids[row, prefix : segment.keys] = batch.input_ids[0, segment.start : segment.stop]
        mask[row, : segment.keys] = 1
        left, right = row * width - segment.prefix_start, row * width + prefix - segment.start
        shifts.append((segment.start, left, right))
    sent = torch.tensor(shifts).to(ids.device, non_blocking=True)
    starts, in_prefix, in_answer = sent.unbind(1)
    own = batch.answer
    shift = torch.where(batch.predictors >= starts[own], in_answer[own], in_prefix[own])
    return PaddedBatch(ids, mask, batch.predictors + shift, batch.last + in_answer)


def sum_first(logprobs: torch.Tensor, batch: PackedBatch, counts: Sequence[int]) -> torch.Tensor:
    """Sum the first of the [N] token logprobs of each answer, of each as many as `counts` says: [A]."""
    starts = batch.lengths.cumsum(0) - batch.lengths
    most = torch.tensor(counts).to(logprobs.device, non_blocking=True)
    place = torch.arange(len(logprobs), device=logprobs.device) - starts[batch.answer]
    return sum_by_answer(logprobs * (place < most[batch.answer]), batch)


def sum_by_answer(logprobs: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """Sum the [N] token logprobs of each answer: [A]."""
    return logprobs.new_zeros(len(batch.lengths)).index_add(0, batch.answer, logprobs)
