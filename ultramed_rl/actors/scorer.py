"""Forward-only replicas: the frozen reference's logprobs, and the reward model's scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ultramed_rl.actors.trainer import peak_memory
from ultramed_rl.learning.batching import pad_batch, token_budget_batches
from ultramed_rl.learning.logprobs import sum_by_row
from ultramed_rl.models.load import load_policy, load_reward

TokenPair = tuple[Sequence[int], Sequence[int]]


class Scorer:
    """One replica that gives a number to each (prompt tokens, completion tokens)."""

    model: Any

    def __init__(self, rank: int, device: str, precision: str, batch_tokens: int) -> None:
        self.rank, self.device, self.precision, self.batch_tokens = rank, device, precision, batch_tokens

    def score(self, items: Sequence[TokenPair], pad_id: int) -> Iterator[list[tuple[int, float]]]:
        """Score in length-sorted batches; yields (index of the item, number) as they are done.

        The order of results depends on lengths; the numbers don't depend on who shares a batch beyond
        the rounding of the precision.
        """
        lengths = [len(prompt) + len(completion) for prompt, completion in items]
        for indices in token_budget_batches(lengths, self.batch_tokens):
            yield list(zip(indices, self.forward([items[i] for i in indices], pad_id), strict=True))

    def forward(self, items: Sequence[TokenPair], pad_id: int) -> list[float]:
        """One padded batch."""
        raise NotImplementedError

    def _adopt(self, model: torch.nn.Module) -> None:
        self.model = model.to(self.device).eval().requires_grad_(False)

    def offload(self) -> None:
        """Leave the GPU to other roles."""
        if self.device != "cpu":
            self.model.to("cpu")
            torch.cuda.empty_cache()

    def reload(self) -> None:
        """Come back to the GPU."""
        self.model.to(self.device)

    def peak_memory(self) -> int:
        """Bytes at the peak of this process."""
        return peak_memory(self.device)


class ReferenceWorker(Scorer):
    """A frozen policy: summed completion logprobs, in nats."""

    def load(self, path: str, trust_remote_code: bool = False) -> None:
        """Become the policy of this checkpoint."""
        self._adopt(load_policy(path, self.precision, "cpu", trust_remote_code=trust_remote_code))

    def blend(self, path: str, decay: float) -> None:
        """Move towards a checkpoint: weights = decay * weights + (1 - decay) * checkpoint's."""
        newer = dict(load_policy(path, self.precision, "cpu").lm.named_parameters())
        with torch.no_grad():
            # By parameter, not by state dict: there a tied weight stands twice and would move twice.
            for name, weight in self.model.lm.named_parameters():
                weight.lerp_(newer[name].to(weight.device), 1.0 - decay)

    def save(self, directory: str) -> None:
        """Write the reference as a checkpoint: an averaged one exists nowhere else."""
        self.model.lm.save_pretrained(directory, safe_serialization=True)

    @torch.no_grad()
    def forward(self, items: Sequence[TokenPair], pad_id: int) -> list[float]:
        batch = pad_batch(items, pad_id, self.device)
        flat = self.model(batch.input_ids, batch.attention_mask, batch.completion_mask)
        return [float(x) for x in sum_by_row(flat, batch.completion_mask)]


class RewardWorker(Scorer):
    """A reward model: one number per answer, higher is better."""

    def load(self, path: str, trust_remote_code: bool = False) -> None:
        """Load a `num_labels=1` classifier."""
        self._adopt(load_reward(path, self.precision, "cpu", trust_remote_code=trust_remote_code))

    @torch.no_grad()
    def forward(self, items: Sequence[TokenPair], pad_id: int) -> list[float]:
        batch = pad_batch(items, pad_id, self.device)
        return [float(x) for x in self.model(batch.input_ids, batch.attention_mask)]
