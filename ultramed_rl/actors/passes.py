"""Forward-only passes over answer groups, shared by every role that gives answers a number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from ultramed_rl.actors.work import WorkBatch, WorkResult
from ultramed_rl.learning.batching import token_budget_batches
from ultramed_rl.learning.chunks import head_chunks
from ultramed_rl.learning.packing import AnswerGroup, PackedBatch, pack_groups

if TYPE_CHECKING:
    from ultramed_rl.actors.engine import Engine

# (index of the group, index of the answer within it, its number)
AnswerNumber = tuple[int, int, float]


def score_groups(
    groups: Sequence[AnswerGroup],
    forward: Callable[[PackedBatch], torch.Tensor],
    budget: int,
    device: torch.device | str,
    *,
    in_step: bool,
    packed: bool,
) -> Iterator[list[AnswerNumber]]:
    """Numbers of all answers, by packed passes of at most `budget` tokens; yields each pass's as it is done.

    A group larger than the budget is split, its prompt repeated. The numbers don't depend on who shares a
    pass beyond the rounding of the precision (but for models whose rotary frequencies follow the longest
    sequence of a pass: "dynamic" and "longrope").

    Args:
        forward: a packed batch to [A] numbers.
        in_step: ranks hold one model together, so all of them make the same number of passes.
        packed: whether the model shares prompts, or computes padded rows.
    """
    parts = list(split_groups(groups, budget))
    costs = [part.packed_tokens if packed else part.padded_tokens for _, _, part in parts]
    batches = token_budget_batches(costs, budget)
    passes = most_of_ranks([len(batches)], device)[0] if in_step else len(batches)
    for index in range(passes):
        members = [parts[i] for i in batches[index]] if index < len(batches) else []
        together = [part for _, _, part in members] or [AnswerGroup([0], [[0]])]
        numbers = iter(forward(pack_groups(together, device)).tolist())
        if members:
            yield [
                (group, first + place, float(next(numbers)))
                for group, first, part in members
                for place in range(len(part.answers))
            ]


def number_batch(
    work: WorkBatch, score: Callable[[Sequence[AnswerGroup]], Iterator[list[AnswerNumber]]]
) -> WorkResult:
    """A turn of a worker that numbers answers: each request is an `AnswerGroup`, its value a number an answer."""
    started = time.time()
    keys, groups = [key for key, _ in work.requests], [group for _, group in work.requests]
    values: list[list[float]] = [[math.nan] * len(group.answers) for group in groups]
    for numbers in score(groups):
        for group, answer, number in numbers:
            values[group][answer] = number
    return WorkResult(list(zip(keys, values, strict=True)), started=started, ended=time.time())


def split_groups(groups: Sequence[AnswerGroup], budget: int) -> Iterator[tuple[int, int, AnswerGroup]]:
    """(index of the group, index of its first answer, part): parts within `budget`, or of one answer."""
    for index, group in enumerate(groups):
        first, part = 0, AnswerGroup(group.prompt, [])
        for answer in group.answers:
            if part.answers and part.packed_tokens + len(answer) > budget:
                yield index, first, part
                first, part = first + len(part.answers), AnswerGroup(group.prompt, [])
            part = AnswerGroup(group.prompt, [*part.answers, answer])
        yield index, first, part


def most_of_ranks(counts: Sequence[int], device: torch.device | str) -> list[int]:
    """The largest of each count among ranks that must do things equally often. Collective."""
    most = torch.tensor(counts, device=device)
    torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
    largest: list[int] = most.tolist()
    return largest


def agreed_chunks(targets: Sequence[int], vocab_size: int, device: torch.device) -> list[int]:
    """In how many parts ranks that share a head's weights apply it in each of their next passes, whatever number of
    tokens they predict in it. Collective."""
    return most_of_ranks([head_chunks(count, vocab_size, device.type) for count in targets], device)


def policy_chunks(engine: Engine, targets: Sequence[int], vocab_size: int) -> Sequence[int | None]:
    """`agreed_chunks` of the model in training, once for many passes: each agreement waits for the device. None where
    every rank has a whole head."""
    shared = engine.spec.zero_stage == 3
    return agreed_chunks(targets, vocab_size, engine.device) if shared else [None] * len(targets)


def policy_logprobs(engine: Engine, batch: PackedBatch, chunks: int | None) -> torch.Tensor:
    """[N] logprobs of a packed batch's answer tokens by the model in training; `chunks` of `policy_chunks`. Collective
    under ZeRO-3."""
    logprobs: torch.Tensor = engine.backend(batch, chunks)
    return logprobs
