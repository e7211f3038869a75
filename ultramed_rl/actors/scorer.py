"""Forward-only replicas: the frozen reference's logprobs, and the reward model's scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ultramed_rl.actors.deepspeed_setup import inference_context, join_ranks, open_store, shard_for_inference
from ultramed_rl.actors.passes import AnswerNumber, agreed_chunks, number_batch, score_groups
from ultramed_rl.actors.trainer import peak_memory
from ultramed_rl.actors.work import WorkBatch, WorkResult
from ultramed_rl.learning.packing import AnswerGroup, PackedBatch, sum_by_answer
from ultramed_rl.models.configs import decoder_config
from ultramed_rl.models.load import PolicyModel, RewardModel, is_packed, load_policy, load_reward


class Scorer:
    """One replica that gives a number to each answer of a prompt."""

    model: Any

    def __init__(self, rank: int, device: str, precision: str, batch_tokens: int, shards: int = 1) -> None:
        self.rank, self.device, self.precision, self.batch_tokens = rank, device, precision, batch_tokens
        self.shards = shards

    def rendezvous(self) -> tuple[str, int]:
        """This replica's node, and a port at which it listens there from now on, for sharded replicas to meet."""
        self.store = open_store(self.shards)
        return self.store.host, self.store.port

    def join(self, address: tuple[str, int]) -> None:
        """Join the other replicas, before a sharded model is loaded. Collective."""
        join_ranks(self.rank, self.shards, *address, self.device)
        self._zero3 = inference_context(self.precision)

    @torch.no_grad()
    def score(self, groups: Sequence[AnswerGroup]) -> Iterator[list[AnswerNumber]]:
        """Score all answers; yields (group, answer, number) of each pass as it is done."""
        yield from score_groups(
            groups,
            self.forward,
            self.batch_tokens,
            self.device,
            in_step=self.shards > 1,
            packed=self.packed,
        )

    def work(self, work: WorkBatch) -> WorkResult:
        """The numbers of each request's answers, an `AnswerGroup`'s, all within the turn."""
        return number_batch(work, self.score)

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """One packed batch: [A] numbers."""
        raise NotImplementedError

    def _adopt(self, model: PolicyModel | RewardModel) -> None:
        model.eval().requires_grad_(False)
        self.packed, self.vocab_size = is_packed(model.lm), decoder_config(model.lm.config).vocab_size
        if hasattr(self, "model"):  # the device needn't hold both
            del self.model
            if self.device != "cpu":
                torch.cuda.empty_cache()
        self.model = model.to(self.device) if self.shards == 1 else shard_for_inference(model, self.precision)

    def offload(self) -> None:
        """Leave the GPU to other roles."""
        if self.device != "cpu" and self.shards == 1:
            self.model.to("cpu")
            torch.cuda.empty_cache()

    def reload(self) -> None:
        """Come back to the GPU. Sharded weights stream from host memory and never lived there."""
        if self.shards == 1:
            self.model.to(self.device)

    def peak_memory(self) -> int:
        """Bytes at the peak of this process."""
        return peak_memory(self.device)


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
        chunks = None
        if self.shards > 1:
            (chunks,) = agreed_chunks([len(batch.targets)], self.vocab_size, batch.targets.device)
        return sum_by_answer(self.model(batch, chunks), batch)


class RewardWorker(Scorer):
    """A reward model: one number per answer, higher is better."""

    def load(self, path: str, trust_remote_code: bool = False) -> None:
        """Load a `num_labels=1` classifier."""
        self._adopt(load_reward(path, self.precision, trust_remote_code=trust_remote_code))

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """[A] rewards."""
        rewards: torch.Tensor = self.model(batch)
        return rewards
