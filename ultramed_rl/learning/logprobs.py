"""Logprobs of completion tokens, without ever holding [tokens, vocabulary] for a whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

Head = Callable[[torch.Tensor], torch.Tensor]


def token_logprobs(
    hidden: torch.Tensor, targets: torch.Tensor, head: Head, chunk: int = 1024
) -> torch.Tensor:
    """Logprob of each target token.

    Args:
        hidden: [N, D] hidden states at the positions that predict the targets.
        targets: [N] token ids.
        head: maps [n, D] to logits [n, V].
        chunk: tokens whose logits exist at once; in backward each chunk's logits are computed again.

    Returns:
        [N] logprobs in nats, fp32.
    """
    assert hidden.shape[0] == targets.shape[0]
    parts = []
    for states, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled() and hidden.requires_grad:
            parts.append(checkpoint(_chunk_logprobs, states, ids, head, use_reentrant=False))
        else:
            parts.append(_chunk_logprobs(states, ids, head))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _chunk_logprobs(states: torch.Tensor, ids: torch.Tensor, head: Head) -> torch.Tensor:
    logits = head(states).float()
    return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)


def sum_by_row(logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum the flat logprobs of `mask`'s true positions by row: [N] and [B, L] -> [B]."""
    rows = mask.nonzero(as_tuple=True)[0]
    return logprobs.new_zeros(mask.shape[0]).index_add(0, rows, logprobs)
