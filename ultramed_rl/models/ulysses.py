"""Sequence parallelism: k ranks share each packed row (DeepSpeed-Ulysses, arXiv 2309.14509).

    rank r       the r-th of k equal parts of the row's T tokens: embeddings, norms, MLPs, and what the head predicts there
    attention    [T/k tokens, H heads] -- all-to-all --> [T tokens, H/k heads] -- segments -- all-to-all --> [T/k tokens, H]
    outputs      the ranks' logprobs or rewards put together, on each of them

What is computed of the outputs, the loss included, is computed on all k ranks alike. Backward from there, a rank follows its
own outputs alone, and the all-to-alls bring what others' outputs owe to its tokens: the k gradients add up to the row's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ultramed_rl.learning.packing import PackedBatch, Segment


@dataclass(frozen=True)
class RowShare:
    """A rank's part of a row of which `ranks` have one each: tokens [start, start + t).

    The row is filled up to whole parts with a segment that nobody reads.
    """

    ranks: dist.ProcessGroup
    start: int
    input_ids: torch.Tensor  # [1, t]
    position_ids: torch.Tensor  # [1, t]
    segments: tuple[Segment, ...]  # of the whole row

    @classmethod
    def of(cls, batch: PackedBatch, ranks: dist.ProcessGroup) -> RowShare:
        """This rank's."""
        size = -(-batch.tokens // ranks.size())
        start, end = ranks.rank() * size, batch.tokens
        padding = ranks.size() * size - end
        ids, positions = (
            F.pad(x, (0, padding))[:, start : start + size] for x in (batch.input_ids, batch.position_ids)
        )
        unread = (Segment(end, end + padding, end, end),) if padding else ()
        return cls(ranks, start, ids, positions, batch.segments + unread)

    def owned(self, places: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of these places in the row are in this part, and where in it: [n] each, on the tokens' device.

        From numbers of the host: how many there are is a shape, for which the device would be waited for.
        """
        stop = self.start + self.input_ids.shape[1]
        own = [index for index, place in enumerate(places) if self.start <= place < stop]
        found = torch.tensor([own, [places[index] - self.start for index in own]], dtype=torch.long)
        which, where = found.to(self.input_ids.device, non_blocking=True)
        return which, where

    def join(self, values: torch.Tensor, own: torch.Tensor, count: int) -> torch.Tensor:
        """All `count` values of the row, of which this rank has `values` [..., n] at `own`; the gradient of these alone goes on."""
        every = values.new_zeros(*values.shape[:-1], count).index_copy(-1, own, values.detach())
        dist.all_reduce(every, group=self.ranks)
        return every.index_copy(-1, own, values)


def share_heads(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ranks: dist.ProcessGroup
) -> tuple[torch.Tensor, ...]:
    """All tokens of this rank's share of the heads: query [1, H, T/k, D] -> [1, H/k, T, D], key and value likewise.

    Key heads that don't divide into k shares are repeated until they do: of fewer than k, several ranks have the same.
    """
    parts, groups = ranks.size(), query.shape[1] // key.shape[1]
    assert query.shape[1] % parts == 0, f"{query.shape[1]} heads for {parts} ranks"
    repeats = next(r for r in range(1, groups + 1) if groups % r == 0 and key.shape[1] * r % parts == 0)
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    width = value.shape[-1]  # which DeepSeek-V3 has smaller than the keys'
    wide = F.pad(value, (0, query.shape[-1] - width))
    shares = [x[0].unflatten(0, (parts, -1)).transpose(1, 2) for x in (query, key, wide)]  # [k, T/k, h, D]
    heads = _Exchange.apply(torch.cat(shares, 2), ranks).flatten(0, 1).transpose(0, 1).unsqueeze(0)
    query, key, wide = heads.split([x.shape[2] for x in shares], 1)
    return query, key, wide[..., :width]


def gather_heads(output: torch.Tensor, ranks: dist.ProcessGroup) -> torch.Tensor:
    """The way back, of what attention gives: [1, T, H/k, D] -> [1, T/k, H, D]."""
    tokens = _Exchange.apply(output[0].unflatten(0, (ranks.size(), -1)), ranks)  # [k, T/k, H/k, D]
    gathered: torch.Tensor = tokens.transpose(0, 1).flatten(1, 2).unsqueeze(0)
    return gathered


class _Exchange(torch.autograd.Function):
    """[k, ...]: the j-th block goes to rank j, which puts it where this rank is among the k; gradients go back likewise."""

    @staticmethod
    def forward(ctx: Any, blocks: torch.Tensor, ranks: dist.ProcessGroup) -> torch.Tensor:
        ctx.ranks = ranks
        received = torch.empty_like(blocks, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, blocks.contiguous(), group=ranks)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        back: torch.Tensor = _Exchange.apply(gradients[0], ctx.ranks)
        return back, None
