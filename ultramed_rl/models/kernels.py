"""What computes packed attention on a GPU in bfloat16: a varlen call of FlashAttention, or FlexAttention where scores are capped
or a sink takes part of the weight; and fused kernels of the other parts of a layer.

Which packages have them is said by `cluster.attention` and `cluster.kernels`. Workers find it in the environment:
transformers builds their models, and hands no argument of ours on. All attention gets the same segments.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ultramed_rl.config.cluster import ATTENTION, KERNELS

if TYPE_CHECKING:
    from ultramed_rl.models.attention import AttentionInputs

logger = logging.getLogger(__name__)
# The packages of FlashAttention 2 (2.8) and, for Hopper, 3: the modules that have `flash_attn_varlen_func`.
FLASH = {"flash_attn": "flash_attn", "flash_attn_3": "flash_attn_interface"}
# Families whose norms, rotations and MLPs Liger Kernel's are, by their config. Its experts are not: theirs differ.
LIGER = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3"})


def check_kernels() -> None:
    """Raise ValueError where a package that the config chose isn't there, before a model is loaded."""
    attention, kernels = os.environ.get(ATTENTION, "torch"), os.environ.get(KERNELS, "torch")
    chosen = [
        ("attention", attention, FLASH.get(attention)),
        ("kernels", kernels, {"liger": "liger_kernel"}.get(kernels)),
    ]
    for key, value, module in chosen:
        try:
            import_module(module or "torch")
        except ImportError as error:
            raise ValueError(
                f"cluster.{key}={value}: Python finds no {module} ({error}); install it beside torch (docs/performance.md "
                f"says how), or use cluster.{key}=torch"
            ) from None


def fuse_layers(lm: Any) -> None:
    """Where the config says so, Liger Kernel's RMSNorm, RoPE and gated MLP in the place of a model's own, with its weights.

    Not its fused linear cross-entropy: ours has no [tokens, vocabulary] either, costs 1 % of a step, and calls the head's
    module, in which ZeRO-3 and adapters have their hooks.
    """
    if os.environ.get(KERNELS) != "liger":
        return
    decoder = lm.get_decoder()
    config = decoder.config
    if config.model_type not in LIGER:
        logger.warning("%s: layers are not fused: none of %s", config.model_type, ", ".join(sorted(LIGER)))
        return
    apply: Any = import_module("liger_kernel.transformers")._apply_liger_kernel_to_instance

    named = {getattr(config, name, None) for name in ("hidden_act", "hidden_activation")} - {None}
    apply(
        model=decoder,
        rope=True,
        rms_norm=True,
        swiglu=named <= {"silu", "swish"},
        geglu=named <= {"gelu_pytorch_tanh"},
        cross_entropy=False,
        fused_linear_cross_entropy=False,
    )


def kernel_attention(inputs: AttentionInputs) -> torch.Tensor:
    """-> [1, T, H, V]."""
    query, key, value, layout = inputs.query, inputs.key, inputs.value, inputs.layout
    kernel, width = os.environ.get(ATTENTION, "torch"), value.shape[-1]
    if width < query.shape[-1]:  # DeepSeek's; zeros add nothing to what is cut off again
        value = F.pad(value, (0, query.shape[-1] - width))
    if inputs.sinks is not None or (inputs.softcap and kernel == "torch"):
        output = _flex(replace(inputs, value=value))
    else:
        queries, keys, values = (x[0].transpose(0, 1) for x in (query, key, value))
        if layout.repeats:
            # Not keys[places]: its backward sorts the places, some ten kernels, to add up each place's gradients by itself;
            # that of index_select is a memset and one kernel that adds them where they belong.
            places = layout.key_places(query.device)
            keys, values = keys.index_select(0, places), values.index_select(0, places)
        output = _varlen(kernel, queries, keys, values, inputs).unsqueeze(0)
    return output[..., :width]


def _varlen(
    kernel: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    inputs: AttentionInputs,
) -> torch.Tensor:
    """[T, H, D] and, segment after segment, [R, K, D] -> [T, H, D]; causal from the bottom right."""
    limits, scale = inputs.layout.offsets(query.device), inputs.scale
    seen = (-1 if inputs.window is None else inputs.window - 1, 0)
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
            softcap=inputs.softcap or 0.0,
        )
    output: torch.Tensor = (
        found[0] if isinstance(found, tuple) else found
    )  # early wheels of 3: and normalizers
    return output


def _flex(inputs: AttentionInputs) -> torch.Tensor:
    """On the row as it is, no key repeated: the mask says who sees whom, and blocks that nobody sees are passed over."""
    from torch.nn.attention.flex_attention import AuxRequest
    from transformers.integrations.flex_attention import compile_friendly_flex_attention

    query, key, softcap = inputs.query, inputs.key, inputs.softcap

    def capped(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap) if softcap else score

    output, aux = compile_friendly_flex_attention(
        query,
        key,
        inputs.value,
        training=torch.is_grad_enabled(),
        score_mod=capped if softcap else None,
        block_mask=inputs.layout.block_mask(inputs.window, query.device),
        scale=inputs.scale,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if inputs.sinks is not None:
        # With l the log of the sum of all exp(score): exp(l) / (exp(l) + exp(sink)) of the weight is the keys'.
        kept = torch.sigmoid(aux.lse - inputs.sinks.float()[None, :, None])
        output = output * kept.unsqueeze(-1).to(output.dtype)
    return output.transpose(1, 2).contiguous()
