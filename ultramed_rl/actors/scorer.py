"""A number for each answer: passes over answer groups, and the replicas of the frozen reference and of reward models."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ultramed_rl.actors.deepspeed_setup import (
    inference_config,
    join_ranks,
    loading_context,
    most_of_ranks,
    open_store,
    shard_for_inference,
    sharing_ranks,
)
from ultramed_rl.actors.host_memory import HostMemory
from ultramed_rl.actors.work import WorkBatch, Worker, WorkResult
from ultramed_rl.config.cluster import ReplicaGroup
from ultramed_rl.learning.batching import token_budget_batches
from ultramed_rl.learning.packing import AnswerGroup, PackedBatch, pack_groups, sum_by_answer
from ultramed_rl.models.files import decoder_config
from ultramed_rl.models.load import PolicyModel, RewardModel, is_packed, load_policy, load_reward

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
    passes = most_of_ranks(len(batches), device) if in_step else len(batches)
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


class Scorer(Worker):
    """One replica that gives a number to each answer of a prompt."""

    model: Any

    ranks: torch.distributed.ProcessGroup | None = None  # that share each pass

    def __init__(
        self,
        rank: int,
        device: str,
        precision: str,
        batch_tokens: int,
        group: ReplicaGroup = ReplicaGroup(),  # noqa: B008 - frozen
    ) -> None:
        self.rank, self.device, self.precision, self.batch_tokens = rank, device, precision, batch_tokens
        self.group, self.shards = group, group.replicas if group.shard else 1
        self._host, self._stored = HostMemory(), False

    def rendezvous(self) -> tuple[str, int]:
        """This replica's address, at which it listens from now on, for replicas in lockstep to meet."""
        self.store = open_store(self.group.replicas)
        return self.store.host, self.store.port

    def join(self, address: tuple[str, int]) -> None:
        """Join the other replicas, before a model is loaded. Collective."""
        join_ranks(self.rank, self.group.replicas, *address, self.device)
        self.ranks = sharing_ranks(self.group.sequence_parallel)
        if self.shards > 1:
            self._zero3 = loading_context(inference_config(self.precision))

    @torch.no_grad()
    def score(self, groups: Sequence[AnswerGroup]) -> Iterator[list[AnswerNumber]]:
        """Score all answers; yields (group, answer, number) of each pass as it is done."""
        how = {"in_step": self.shards > 1, "packed": self.packed}
        yield from score_groups(groups, self.forward, self.batch_tokens, self.device, **how)

    def work(self, work: WorkBatch) -> WorkResult:
        """The numbers of each request's answers, an `AnswerGroup`'s, all within the turn."""
        return number_batch(work, self.score)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """One packed batch: [A] numbers."""
        raise NotImplementedError

    def _adopt(self, model: PolicyModel | RewardModel) -> None:
        model.eval().requires_grad_(False)
        model.share_rows(self.ranks)
        self.packed, self.vocab_size = is_packed(model.lm), decoder_config(model.lm.config).vocab_size
        if hasattr(self, "model"):  # the device needn't hold both
            del self.model
            if self.device != "cpu":
                torch.cuda.empty_cache()
        self._stored = False
        self.model = model.to(self.device) if self.shards == 1 else shard_for_inference(model, self.precision)

    def offload(self) -> None:
        if self.device != "cpu" and self.shards == 1:
            self._host.store(self._tensors, changed=not self._stored)
            self._stored = True
            torch.cuda.empty_cache()

    def reload(self) -> None:
        if self.device != "cpu" and self.shards == 1:  # sharded weights stream from host memory
            self._host.restore(self._tensors, self.device)

    @property
    def _tensors(self) -> list[torch.Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]


class ReferenceWorker(Scorer):
    """A frozen policy: summed completion logprobs, in nats."""

    def load(self, path: str, trust_remote_code: bool = False) -> None:
        """Become the policy of this checkpoint."""
        self._adopt(load_policy(path, self.precision, trust_remote_code=trust_remote_code))

    def average(
        self, older: str, newer: str, decay: float, directory: str, trust_remote_code: bool = False
    ) -> None:
        """Write decay * older + (1 - decay) * newer of two checkpoints, in float32: a round moves weights by less than
        bfloat16 can tell apart. What this replica computes with stays as it is."""
        both = [load_policy(p, "float32", trust_remote_code=trust_remote_code).lm for p in (older, newer)]
        towards = dict(both[1].named_parameters())
        with torch.no_grad():
            # By parameter, not by state dict: there a tied weight stands twice and would move twice.
            for name, weight in both[0].named_parameters():
                weight.lerp_(towards[name], 1.0 - decay)
        both[0].save_pretrained(directory, safe_serialization=True)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """[A] summed logprobs."""
        return sum_by_answer(self.model(batch), batch)


class RewardWorker(Scorer):
    """A reward model: one number per answer, higher is better."""

    def load(self, path: str, trust_remote_code: bool = False) -> None:
        """Load a `num_labels=1` classifier."""
        self._adopt(load_reward(path, self.precision, trust_remote_code=trust_remote_code))

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """[A] rewards."""
        rewards: torch.Tensor = self.model(batch)
        return rewards
