"""Supervised fine-tuning: the NLL of what the assistant wrote."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from ultramed_rl.actors.engine import Engine
from ultramed_rl.actors.passes import policy_chunks, policy_logprobs
from ultramed_rl.actors.tasks.base import Sums
from ultramed_rl.learning.batching import MicroBatch
from ultramed_rl.learning.flops import ModelShape, forward_flops, training_flops
from ultramed_rl.learning.packing import pack_sequences
from ultramed_rl.models.lora import has_adapters
from ultramed_rl.records import TokenizedChat


class ImitationTask:
    """Chats packed end to end, each blind to the others; the loss is a mean over the batch's learned tokens.

    Every learned token weighs the same, whichever chat, micro-batch or rank it is in.
    """

    sums = ("loss", "units", "tokens", "flops")

    def __init__(self, engine: Engine, shape: ModelShape, chats: Sequence[TokenizedChat]) -> None:
        self.engine, self.shape, self.chats = engine, shape, chats
        sizes = [(len(chat.token_ids), sum(chat.learned[1:])) for chat in chats]
        self.lengths = [tokens for tokens, _ in sizes]
        self.targets = [learned for _, learned in sizes]

    def sample_id(self, index: int) -> str:
        return self.chats[index].conversation_id

    def losses(
        self, batch: Sequence[int], micro_batches: Sequence[MicroBatch], sums: Sums, first: bool
    ) -> Iterator[torch.Tensor]:
        units = sum(self.targets[i] for i in batch)
        targets = [sum(self.targets[i] for i in micro.indices) for micro in micro_batches]
        chunks = policy_chunks(self.engine, targets, self.shape.vocab)
        for micro, parts in zip(micro_batches, chunks, strict=True):
            chats = [self.chats[i] for i in micro.indices]
            packed = pack_sequences([(c.token_ids, c.learned) for c in chats], self.engine.device)
            loss = -policy_logprobs(self.engine, packed, parts).sum()
            if micro.filler:
                yield loss * 0.0
                continue
            forward = forward_flops(self.shape, packed.segments, packed.tokens, len(packed.targets))
            sums.add(
                loss=loss,
                units=len(packed.targets),
                tokens=packed.tokens,
                flops=training_flops(forward, frozen_base=has_adapters(self.engine.module.lm)),
            )
            yield loss / units

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        loss = totals["loss"] / totals["units"]
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 50.0)),
            "learned_tokens": totals["units"],
        }
