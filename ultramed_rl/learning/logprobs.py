"""Logprobs of given tokens, without ever holding [tokens, vocabulary] for a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ultramed_rl.learning.costs import head_chunks

Head = Callable[[torch.Tensor], torch.Tensor]


def token_logprobs(
    hidden: torch.Tensor,
    targets: torch.Tensor,
    head: Head,
    vocab_size: int,
    chunks: int | None = None,
    *,
    collisions: bool = False,
) -> torch.Tensor:
    """[N] logprobs of the target tokens in nats, fp32; with `collisions` [2, N], below them log sum_v pi(v)^2 of each
    prediction, without gradient.

    Args:
        hidden: [N, D] hidden states at the positions that predict the targets.
        targets: [N] token ids.
        head: maps [n, D] to logits [n, V], V being `vocab_size`.
        chunks: in how many parts, of which one's logits exist at a time. In backward they are computed again, but for the
            last part's: backward begins with it. A part may be empty.
    """
    assert hidden.shape[0] == targets.shape[0]
    chunks = chunks or head_chunks(len(targets), vocab_size, hidden.device.type)
    again = torch.is_grad_enabled() and hidden.requires_grad
    *others, last = zip(hidden.tensor_split(chunks), targets.tensor_split(chunks), strict=True)
    parts = [
        checkpoint(_chunk_logprobs, *part, head, collisions, use_reentrant=False)
        if again
        else _chunk_logprobs(*part, head, collisions)
        for part in others
    ]
    return torch.cat([*parts, _chunk_logprobs(*last, head, collisions)], dim=-1)


def _chunk_logprobs(states: torch.Tensor, ids: torch.Tensor, head: Head, collisions: bool) -> torch.Tensor:
    logits = head(states)
    logprobs: torch.Tensor = _SelectedLogSoftmax.apply(logits, ids)
    if not collisions:
        return logprobs
    wide = logits.detach().float()
    return torch.stack([logprobs, (2 * wide).logsumexp(-1) - 2 * wide.logsumexp(-1)])


class _SelectedLogSoftmax(torch.autograd.Function):
    """log_softmax at one index a row. In its backward the logits live and their gradient, which is made in place."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        wide = logits.float()
        normalizer = wide.logsumexp(-1)
        ctx.save_for_backward(logits, ids, normalizer)
        return wide.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - normalizer

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, ids, normalizer = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(-1)
        # d logp / d logits = onehot - softmax
        wide = torch.sub(logits, normalizer.unsqueeze(-1)).exp_().mul_(-gradient)
        wide.scatter_add_(-1, ids.unsqueeze(-1), gradient.float())
        return wide.to(logits.dtype), None
