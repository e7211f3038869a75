"""Attention over packed segments: each group of queries sees its prefix and itself, causally, and no more.

Registered with transformers under the name `SEGMENTS`, so that a model that takes its attention from
transformers' interface can be packed; the layout travels as the keyword `segments`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from ultramed_rl.learning.packing import Segment
from ultramed_rl.models.files import check_heads
from ultramed_rl.models.kernels import kernel_attention
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

    @property
    def repeats(self) -> bool:
        """Whether segments share keys, so that these are to be repeated."""
        return any(s.prefix_stop > s.prefix_start for s in self.segments)

    def block_mask(self, window: int | None, device: torch.device) -> Any:
        """FlexAttention's: which blocks of the row see which, and within them who sees whom."""
        from torch.nn.attention.flex_attention import create_block_mask

        key = ("blocks", window, device)
        if key not in self._cache:
            sizes = torch.tensor([s.queries for s in self.segments])
            columns = [
                [s.start, s.prefix_start, s.prefix_stop, s.keys - s.queries - s.start] for s in self.segments
            ]
            of_token = torch.tensor(columns).repeat_interleave(sizes, 0).to(device, non_blocking=True)
            starts, prefix_starts, prefix_stops, shifts = of_token.unbind(1)

            def sees(_b: Any, _h: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
                own = (key >= starts[query]) & (key <= query)
                prefix = (key >= prefix_starts[query]) & (key < prefix_stops[query])
                if window is None:
                    return own | prefix
                return (own | prefix) & (query + shifts[query] - key - shifts[key] < window)

            row = len(of_token)
            self._cache[key] = create_block_mask(
                sees, None, None, row, row, device=device, _compile=device.type == "cuda"
            )
        return self._cache[key]

    def offsets(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Cumulative queries and keys (int32, with a leading zero) and the longest of each."""
        key = ("offsets", device)
        if key not in self._cache:
            queries = torch.tensor([0] + [s.queries for s in self.segments])
            keys = torch.tensor([0] + [s.keys for s in self.segments])
            ends = [x.cumsum(0, dtype=torch.int32).to(device, non_blocking=True) for x in (queries, keys)]
            self._cache[key] = (*ends, int(queries.max()), int(keys.max()))
        return self._cache[key]


@dataclass(frozen=True)
class AttentionInputs:
    """What every way to compute packed attention is given.

    Of ranks that share a row these are all tokens, and the rank's own share of the heads.
    """

    query: torch.Tensor  # [1, H, T, D]
    key: torch.Tensor  # [1, K, T, D]
    value: torch.Tensor  # [1, K, T, V]
    layout: SegmentLayout
    scale: float | None = None  # of the scores; None: 1 / sqrt(D)
    window: int | None = None  # keys that a query sees at most
    softcap: float | None = None  # scores s become softcap tanh(s / softcap) (Gemma 2)
    sinks: torch.Tensor | None = None  # [H]: scores of a key without a value that every query sees (GPT-OSS)


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    segments: SegmentLayout | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, H, T, D], key [1, K, T, D], value [1, K, T, V] -> [1, T, H, V].

    Of ranks that share a row, T are a rank's own tokens. It attends with its share of the heads, from and to all tokens.
    `s_aux`: the sinks of `AttentionInputs`.
    """
    assert segments is not None, "segments=None: a model with segment attention needs a packed batch"
    assert dropout == 0.0, f"dropout={dropout}: it is switched off when a model is loaded"
    ranks = segments.ranks
    if ranks is not None:
        query, key, value = share_heads(query, key, value, ranks)
        s_aux = None if s_aux is None else s_aux.chunk(ranks.size())[ranks.rank()]
    fused = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    attend = kernel_attention if fused else _by_segment
    output = attend(AttentionInputs(query, key, value, segments, scaling, sliding_window, softcap, s_aux))
    return output if ranks is None else gather_heads(output, ranks), None


def _by_segment(inputs: AttentionInputs) -> torch.Tensor:
    """One call a segment: work is that of the visible blocks only."""
    query, key, value, layout = inputs.query, inputs.key, inputs.value, inputs.layout
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
    attend = _attend_plainly if inputs.softcap or inputs.sinks is not None else _attend_fused
    outputs = []
    for i, s in enumerate(layout.segments):
        seen = [place[s.prefix_start], i] if s.prefix_stop > s.prefix_start else [i]
        own_keys, own_values = (
            torch.cat([parts[j] for j in seen], 2) if len(seen) > 1 else parts[i] for parts in (keys, values)
        )
        mask = layout.mask(s.queries, s.keys, inputs.window, query)
        outputs.append(attend(replace(inputs, query=queries[i], key=own_keys, value=own_values), mask))
    return torch.cat(outputs, 2).transpose(1, 2).to(precision).contiguous()


def _attend_fused(inputs: AttentionInputs, mask: torch.Tensor | None) -> torch.Tensor:
    return F.scaled_dot_product_attention(
        inputs.query, inputs.key, inputs.value, attn_mask=mask, is_causal=mask is None, scale=inputs.scale
    )


def _attend_plainly(inputs: AttentionInputs, mask: torch.Tensor | None) -> torch.Tensor:
    """With what the fused call has not: capped scores, and sinks."""
    query, key, value = inputs.query, inputs.key, inputs.value
    scores = query @ key.mT * (inputs.scale or query.shape[-1] ** -0.5)
    if inputs.softcap:
        scores = inputs.softcap * torch.tanh(scores / inputs.softcap)
    if mask is None:
        mask = torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype, device=scores.device).triu(1)
    scores = scores + mask
    if inputs.sinks is not None:
        sink = inputs.sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return weights[..., : key.shape[2]] @ value


# Tested against plain transformers, logprobs and gradients: tests/unit/models/test_attention.py. An attention that
# carries a state or drops keywords would be wrong without a word.
PACKABLE = frozenset(
    {
        "deepseek_v3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_oss",
        "llama",
        "mistral",
        "mixtral",
        "phi3",
    }
    | {"qwen2", "qwen3", "qwen3_moe"}
)


def why_not_packed(config: Any) -> str | None:
    """Why this model's sequences don't share a row, or None if they do."""
    if getattr(config, "reorder_and_upcast_attn", None):  # of GPT-2: another attention
        return f"{config.model_type} has reorder_and_upcast_attn"
    if config.model_type in PACKABLE:
        return None
    return f"{config.model_type} is not among the tested architectures ({', '.join(sorted(PACKABLE))})"


def check_sharing(config: Any, ranks: int, name: str, *, packed: bool = True) -> None:
    """Raise ValueError where so many ranks cannot share the rows of the model `name`, of this text decoder's config; it may
    not be `packed` for other reasons than its config's."""
    ropes = (scaling := getattr(config, "rope_parameters", None) or {}, *scaling.values())
    kinds = {str(rope.get("rope_type")) for rope in ropes if isinstance(rope, dict)}
    if (reason := why_not_packed(config)) or not packed:
        broken = f"{reason or 'its code is its own'}, so its answers are padded rows, which ranks don't share; use 1"
    elif moving := {"dynamic", "longrope"} & kinds:
        broken = f"its rotary frequencies ({', '.join(sorted(moving))}) follow the longest sequence, of which a rank sees a part; use 1"
    else:
        check_heads(config.num_attention_heads, ranks, "sequence_parallel", name)
        return
    raise ValueError(f"sequence_parallel={ranks}: {name}: {broken}")


def register_segment_attention() -> None:
    """Make `attn_implementation=SEGMENTS` known to transformers; idempotent.

    It has no mask: for a kind of attention that has one transformers looks at the positions of every pass, and waits
    for the device.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(SEGMENTS, segment_attention)
