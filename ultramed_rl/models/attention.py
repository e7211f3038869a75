"""Attention over packed segments: each group of queries sees its prefix and itself, causally, and no more.

Registered with transformers under the name `SEGMENTS`, so that a model that takes its attention from
transformers' interface can be packed; the layout travels as the keyword `segments`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ultramed_rl.learning.packing import Segment
from ultramed_rl.models.ulysses import gather_heads, share_heads

SEGMENTS = "ultramed_segments"

# Keys of a segment below which the fused CPU kernel's backward is slower in bfloat16 than in float32.
SHORT = 256


@dataclass(frozen=True)
class SegmentLayout:
    """A packed row's segments, and what kernels derive from them once for all layers.

    `ranks`: those of which each has a part of the row's tokens; None: one has them all.
    """

    segments: tuple[Segment, ...]
    ranks: dist.ProcessGroup | None = None
    _cache: dict[Any, Any] = field(default_factory=dict)

    def mask(self, queries: int, keys: int, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """Additive [queries, keys] mask, causal from the bottom right; None where plain causality does."""
        if queries == keys and (window is None or window >= keys):
            return None
        key = (queries, keys, window, like.dtype, like.device)
        if key not in self._cache:
            distance = torch.arange(keys - queries, keys).unsqueeze(1) - torch.arange(keys)
            hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
            empty = torch.zeros(queries, keys).masked_fill_(hidden, -torch.inf)
            self._cache[key] = empty.to(like.device, like.dtype, non_blocking=True)
        return self._cache[key]

    def key_places(self, device: torch.device) -> torch.Tensor:
        """Places in the row of every segment's keys, segment after segment (prompts repeat)."""
        if device not in self._cache:
            parts = [
                torch.cat([torch.arange(s.prefix_start, s.prefix_stop), torch.arange(s.start, s.stop)])
                for s in self.segments
            ]
            self._cache[device] = torch.cat(parts).to(device, non_blocking=True)
        return self._cache[device]

    def offsets(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Cumulative queries and keys (int32, with a leading zero) and the longest of each."""
        key = ("offsets", device)
        if key not in self._cache:
            queries = torch.tensor([0] + [s.queries for s in self.segments])
            keys = torch.tensor([0] + [s.keys for s in self.segments])
            ends = [x.cumsum(0, dtype=torch.int32).to(device, non_blocking=True) for x in (queries, keys)]
            self._cache[key] = (*ends, int(queries.max()), int(keys.max()))
        return self._cache[key]


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    segments: SegmentLayout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].

    Of ranks that share a row, T are a rank's own tokens. It attends with its share of the heads, from and to all tokens.
    """
    assert segments is not None, "segments=None: a model with segment attention needs a packed batch"
    assert dropout == 0.0, f"dropout={dropout}: it is switched off when a model is loaded"
    if segments.ranks is not None:
        query, key, value = share_heads(query, key, value, segments.ranks)
    fused = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    attend = _varlen if fused else _by_segment
    output = attend(query, key, value, scaling, sliding_window, segments)
    return output if segments.ranks is None else gather_heads(output, segments.ranks), None


def _by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    layout: SegmentLayout,
) -> torch.Tensor:
    """One fused call a segment: work is that of the visible blocks only."""
    precision = query.dtype
    if query.requires_grad and max(s.keys for s in layout.segments) < SHORT:
        query, key, value = query.float(), key.float(), value.float()
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    # Segments tile the row, so a split does: its backward is one concatenation, where that of a slice would be
    # a gradient of the whole row for each segment.
    sizes = [s.queries for s in layout.segments]
    queries, keys, values = (x.split(sizes, 2) for x in (query, key, value))
    place = {s.start: i for i, s in enumerate(layout.segments)}
    outputs = []
    for i, s in enumerate(layout.segments):
        seen = [place[s.prefix_start], i] if s.prefix_stop > s.prefix_start else [i]
        own_keys, own_values = (
            torch.cat([parts[j] for j in seen], 2) if len(seen) > 1 else parts[i] for parts in (keys, values)
        )
        mask = layout.mask(s.queries, s.keys, window, query)
        outputs.append(
            F.scaled_dot_product_attention(
                queries[i], own_keys, own_values, attn_mask=mask, is_causal=mask is None, scale=scaling
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2).to(precision).contiguous()


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    layout: SegmentLayout,
) -> torch.Tensor:
    """One FlashAttention call for all segments; keys of a prompt are repeated for each of its answers."""
    from torch.nn.attention.varlen import varlen_attn

    places = layout.key_places(query.device)
    query_ends, key_ends, longest_query, longest_key = layout.offsets(query.device)
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1)[places],
        value[0].transpose(0, 1)[places],
        query_ends,
        key_ends,
        longest_query,
        longest_key,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, torch.Tensor)
    return output.unsqueeze(0)


# Tested against plain transformers, logprobs and gradients: tests/unit/models/test_attention.py. An attention that
# carries a state, soft-caps its logits, has sinks or drops keywords would be wrong without a word.
PACKABLE = frozenset(
    {"gemma", "gemma3_text", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe"}
)


def why_not_packed(config: Any) -> str | None:
    """Why this model's sequences don't share a row, or None if they do."""
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "reorder_and_upcast_attn"):
        if getattr(config, key, None):
            return f"{config.model_type} has {key}"
    if config.model_type in PACKABLE:
        return None
    return f"{config.model_type} is not among the tested architectures ({', '.join(sorted(PACKABLE))})"


def check_sharing(config: Any, ranks: int, name: str, *, packed: bool = True) -> None:
    """Raise ValueError where so many ranks cannot share the rows of the model `name`, of this text decoder's config; it may
    not be `packed` for other reasons than its config's."""
    ropes = (scaling := getattr(config, "rope_parameters", None) or {}, *scaling.values())
    kinds = {str(rope.get("rope_type")) for rope in ropes if isinstance(rope, dict)}
    heads = config.num_attention_heads
    if (reason := why_not_packed(config)) or not packed:
        broken = f"{reason or 'its code is its own'}, so its answers are padded rows, which ranks don't share; use 1"
    elif moving := {"dynamic", "longrope"} & kinds:
        broken = f"its rotary frequencies ({', '.join(sorted(moving))}) follow the longest sequence, of which a rank sees a part; use 1"
    elif heads % ranks:
        broken = f"each rank attends with as many heads, and there are {heads}; use a divisor of {heads}"
    else:
        return
    raise ValueError(f"sequence_parallel={ranks}: {name}: {broken}")


def register_segment_attention() -> None:
    """Make `attn_implementation=SEGMENTS` known to transformers; idempotent.

    It has no mask: for a kind of attention that has one transformers looks at the positions of every pass, and waits
    for the device.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(SEGMENTS, segment_attention)
