"""What computes packed attention on a GPU in bfloat16: a varlen call of FlashAttention, or FlexAttention where scores are capped
or a sink takes part of the weight.

Which package has the varlen call is said by `cluster.attention`. Workers find it in the environment: transformers builds
their models, and hands no argument of ours on. All of them get the same segments.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from ultramed_rl.models.attention import SegmentLayout

ATTENTION = "ULTRAMED_RL_ATTENTION"  # of the environment
# The packages of FlashAttention 2 (2.8) and, for Hopper, 3: the modules that have `flash_attn_varlen_func`.
FLASH = {"flash_attn": "flash_attn", "flash_attn_3": "flash_attn_interface"}


def kernel_attention(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    layout: SegmentLayout,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Query [1, H, T, D], key [1, K, T, D] and value [1, K, T, V] -> [1, T, H, V]. `sinks` [H]: the score of a key
    without a value that every query sees."""
    query, key, value = inputs
    kernel, width = os.environ.get(ATTENTION, "torch"), value.shape[-1]
    if width < query.shape[-1]:  # DeepSeek's; zeros add nothing to what is cut off again
        value = F.pad(value, (0, query.shape[-1] - width))
    if sinks is not None or (softcap and kernel == "torch"):
        output = _flex((query, key, value), layout, scale, window, softcap, sinks)
    else:
        queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
        if layout.repeats:
            # Not keys[places]: its backward sorts the places, some ten kernels, to add up each place's gradients by itself;
            # that of index_select is a memset and one kernel that adds them where they belong.
            places = layout.key_places(query.device)
            keys, values = keys.index_select(0, places), values.index_select(0, places)
        limits = layout.offsets(query.device)
        output = _varlen(kernel, queries, keys, values, limits, scale, window, softcap or 0.0).unsqueeze(0)
    return output[..., :width]


def _varlen(
    kernel: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    limits: tuple[torch.Tensor, torch.Tensor, int, int],
    scale: float | None,
    window: int | None,
    softcap: float,
) -> torch.Tensor:
    """[T, H, D] and [R, K, D] -> [T, H, D], causal from the bottom right. `limits`: cumulative queries and keys, and the
    longest of each."""
    seen = (-1 if window is None else window - 1, 0)
    if kernel == "torch":  # with FlashAttention 2 inside
        from torch.nn.attention.varlen import varlen_attn

        gqa = query.shape[1] != key.shape[1]
        found: Any = varlen_attn(query, key, value, *limits, scale=scale, window_size=seen, enable_gqa=gqa)
    else:
        query_ends, key_ends, longest_query, longest_key = limits
        found = import_module(FLASH[kernel]).flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=query_ends,
            cu_seqlens_k=key_ends,
            max_seqlen_q=longest_query,
            max_seqlen_k=longest_key,
            softmax_scale=scale,
            causal=True,
            window_size=seen,
            softcap=softcap,
        )
    output: torch.Tensor = (
        found[0] if isinstance(found, tuple) else found
    )  # early wheels of 3: and normalizers
    return output


def _flex(
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    layout: SegmentLayout,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """On the row as it is, no key repeated: the mask says who sees whom, and blocks that nobody sees are passed over."""
    from torch.nn.attention.flex_attention import AuxRequest
    from transformers.integrations.flex_attention import compile_friendly_flex_attention

    def capped(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap) if softcap else score

    query, key, value = inputs
    output, aux = compile_friendly_flex_attention(
        query,
        key,
        value,
        training=torch.is_grad_enabled(),
        score_mod=capped if softcap else None,
        block_mask=layout.block_mask(window, query.device),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if sinks is not None:
        # With l the log of the sum of all exp(score): exp(l) / (exp(l) + exp(sink)) of the weight is the keys'.
        kept = torch.sigmoid(aux.lse - sinks.float()[None, :, None])
        output = output * kept.unsqueeze(-1).to(output.dtype)
    return output.transpose(1, 2).contiguous()
