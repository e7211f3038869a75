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
    """log_softmax at one index a row. In its backward the gradient takes the logits' place, so that there is one."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        normalizer = torch.cat([rows.float().logsumexp(-1) for rows in _blocks(logits)])
        ctx.save_for_backward(logits, ids, normalizer)
        return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1).float() - normalizer

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, *others = ctx.saved_tensors
        columns = [column.unsqueeze(-1) for column in (*others, gradients[0].float())]
        blocks = _blocks(logits)
        sizes = [len(rows) for rows in blocks]
        for rows, ids, normalizer, gradient in zip(blocks, *(c.split(sizes) for c in columns), strict=True):
            # d logp / d logits = onehot - softmax
            wide = rows.float().sub_(normalizer)  # float32 logits are changed themselves
            wide.exp_().mul_(-gradient)
            rows.copy_(wide.scatter_add_(-1, ids, gradient))
        return logits, None


def _blocks(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rows that are worked on at once: on a CPU as many as its cache has room for in float32."""
    rows = len(logits) if logits.is_cuda else 2**20 // logits.shape[-1]
    return logits.split(max(1, rows))
