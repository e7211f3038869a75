"""What a pass costs: floating-point operations, for model FLOP utilisation (MFU), and logits at once. No torch, so that
plans can count.

Operations are the multiply-adds that the model needs: its matrices once per token, its head once per predicted token,
attention once per visible (query, key) pair. Recomputation is not counted (arXiv 2204.02311, app. B).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ultramed_rl.learning.packing import PackedBatch

# fp32 logits that exist at once: large enough for full GEMM speed, small beside a model.
LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}


@dataclass(frozen=True)
class ModelShape:
    """What the count needs: `body` parameters outside embeddings and head; widths; layers."""

    body: int
    hidden: int
    vocab: int
    attention_width: int
    layers: int


def forward_flops(shape: ModelShape, batch: PackedBatch, predicted: int) -> float:
    """FLOPs of one forward pass of a batch of which the head predicts so many tokens."""
    visible = sum(s.queries * (s.keys - s.queries) + s.queries * (s.queries + 1) / 2 for s in batch.segments)
    matrices = 2.0 * shape.body * batch.tokens
    head = 2.0 * shape.hidden * shape.vocab * predicted
    attention = 4.0 * shape.attention_width * visible * shape.layers
    return matrices + head + attention


def training_flops(forward: float, *, frozen_base: bool = False) -> float:
    """Forward and backward: three forwards, or two where the matrices are frozen (LoRA)."""
    return forward * (2.0 if frozen_base else 3.0)


def chunk_tokens(vocab_size: int, device: str) -> int:
    """Tokens whose logits exist at once."""
    return max(64, LOGITS_AT_ONCE[device] // vocab_size)


def head_chunks(tokens: int, vocab_size: int, device: str) -> int:
    """Parts in which the logits of `tokens` tokens are made; at least one."""
    return max(1, -(-tokens // chunk_tokens(vocab_size, device)))
