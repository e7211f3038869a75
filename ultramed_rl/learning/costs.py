"""What a pass costs: floating-point operations, for model FLOP utilisation (MFU), and logits at once; and what a GPU can. No
torch, so that plans can count.

Operations are the multiply-adds that the model needs: its matrices once per token, its head once per predicted token,
attention once per visible (query, key) pair. Recomputation is not counted (arXiv 2204.02311, app. B).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ultramed_rl.learning.packing import PackedBatch

# fp32 logits that exist at once: large enough for full GEMM speed, small beside a model.
LOGITS_AT_ONCE = {"cpu": 2**25, "cuda": 2**27}

# TFLOP/s of dense bfloat16 products with float32 sums, by the makers' data sheets (halved where these count sparsity). The
# first entry counts whose words are all in the name that the driver gives.
_PUBLISHED = {
    "GB300": 2500, "GB200": 2500, "B300": 2250, "B200": 2250, "GH200": 989, "H200 NVL": 835, "H200": 989, "H100 NVL": 835,
    "H100 PCIe": 756, "H100": 989, "H800": 989, "H20": 148, "A100": 312, "A800": 312, "L40S": 362, "L40": 181, "L4": 121,
    "A40": 150, "A30": 165, "A10G": 70, "A10": 125, "RTX 6000 Ada": 364, "RTX A6000": 155, "RTX 5090": 210,
    "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip

# GPUs for which `plan` counts hours: their memory's rate in TB/s, by the same data sheets.
Gpu = Literal["A10", "A100", "B200", "H100", "H200", "L4", "L40S", "RTX 3090", "RTX 4090"]
MEMORY_TB_S: dict[Gpu, float] = {
    "A10": 0.6, "A100": 2.04, "B200": 8.0, "H100": 3.35, "H200": 4.8, "L4": 0.3, "L40S": 0.864, "RTX 3090": 0.936,
    "RTX 4090": 1.008,
}  # fmt: skip


def published_peak(device_name: str) -> float | None:
    """FLOP/s of a GPU in bfloat16 as its maker says, by which others' MFU is counted; None where it isn't known."""
    words = set(re.findall(r"\w+", device_name))
    if words & {"Laptop", "MIG"}:
        return None
    return next((1e12 * rate for name, rate in _PUBLISHED.items() if words >= set(name.split())), None)


def zero3_limits(layer: int, largest: int, width: int) -> dict[str, int]:
    """DeepSpeed's limits of stage 3 for a model of this width, by the parameters of a layer and of the largest other module
    (embedding or head). DeepSpeed's own are the same for all models.

    Prefetched: one layer, so that the next one's weights are on the way while this one computes. A rank computes 2 T
    operations a parameter of T tokens, in 2 T / 5e14 s on an H100 (65 ps at 16k tokens), and takes in 2 bytes of it, in 2 / 3e11
    s over NVLink (7 ps) and 2 / 5e10 s over a network of 400 Gb/s (40 ps): even there gathers hide, where none waits for
    its turn. 5e7, the default, is less than a matrix of an 8B model.

    Kept for reuse: what is needed again within two layers. A layer that is computed again in the backward pass uses its first
    matrix once more after the rest of it, forwards and backwards. With 1e9, the default, a layer of a 70B model (8.6e8) would be
    gathered three times for each micro-batch, and not twice. Whole at once therefore: two layers and the largest module.

    Never split: what is smaller than ten widths, biases and norms, whose gathers would take longer than their work.
    """
    return {
        "stage3_prefetch_bucket_size": layer,
        "stage3_max_reuse_distance": 2 * layer,
        "stage3_max_live_parameters": 2 * layer + largest,
        "stage3_param_persistence_threshold": 10 * width,
    }


def reduced_at_once(parameters: int) -> int:
    """Gradients that ranks reduce at once: DeepSpeed's default, and no more than a model has. Each rank lays out room for so many."""
    return min(500_000_000, parameters)


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
