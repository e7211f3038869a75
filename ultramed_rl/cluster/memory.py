"""Bytes of each role on one device. Pure arithmetic; every formula is stated where it is used."""

from __future__ import annotations

from dataclasses import dataclass

from ultramed_rl.cluster.architecture import count_parameters
from ultramed_rl.config.models import Architecture
from ultramed_rl.learning.costs import chunk_tokens

GIB = 2**30
# A process that has imported torch, transformers and DeepSpeed or vLLM, before any weight: measured on CPU.
PROCESS_BYTES = int(0.9 * GIB)


@dataclass(frozen=True)
class TrainingShape:
    """What decides a training rank's bytes besides the model."""

    ranks: int
    zero_stage: int
    precision: str
    offload_optimizer: bool
    gradient_checkpointing: bool
    micro_tokens: int
    device: str = "cuda"
    lora_rank: int | None = None
    quantized: bool = False


def bytes_per_weight(precision: str) -> int:
    """2 for bfloat16, 4 for float32."""
    return {"bfloat16": 2, "float32": 4}[precision]


def training_bytes(model: Architecture, shape: TrainingShape) -> dict[str, int]:
    """Bytes of one rank by kind, with ZeRO's partitioning (arXiv 1910.02054, section 3).

    bfloat16: weights 2, gradients 2, and fp32 master, momentum and variance 12 bytes a parameter;
    float32: 4, 4 and 8. Stage 1 divides the optimizer by the ranks, 2 the gradients too, 3 the weights too.
    """
    count, size = count_parameters(model), bytes_per_weight(shape.precision)
    if shape.lora_rank is not None:
        return _lora_bytes(model, shape)
    split = [shape.ranks if shape.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    optimizer = count * (12 if shape.precision == "bfloat16" else 8) // split[2]
    return {
        "weights": count * size // split[0],
        "gradients": count * size // split[1],
        "optimizer": 0 if shape.offload_optimizer else optimizer,
        "activations": activation_bytes(model, shape),
    }


def _lora_bytes(model: Architecture, shape: TrainingShape) -> dict[str, int]:
    """Frozen weights, 4-bit ones at 0.57 bytes with their scales (embeddings and head stay whole); all else is
    of the adapters alone.

    An adapter of rank r on a matrix of [m, n] has r (m + n) parameters.
    """
    width, size = model.hidden_size, bytes_per_weight(shape.precision)
    head_dim = model.head_dim or width // model.num_attention_heads
    queries, keys = model.num_attention_heads * head_dim, model.num_key_value_heads * head_dim
    sides = 2 * (width + queries) + 2 * (width + keys) + 3 * (width + model.intermediate_size)
    assert shape.lora_rank is not None
    adapters = shape.lora_rank * sides * model.num_hidden_layers
    split = [shape.ranks if shape.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    outside = model.vocab_size * width * (1 if model.tie_word_embeddings else 2)
    inside = count_parameters(model) - outside
    weights = int(inside * (0.57 if shape.quantized else size)) + (outside + adapters) * size
    optimizer = adapters * (12 if shape.precision == "bfloat16" else 8) // split[2]
    return {
        "weights": weights // split[0],
        "gradients": adapters * size // split[1],
        "optimizer": 0 if shape.offload_optimizer else optimizer,
        "activations": activation_bytes(model, shape),
    }


def activation_bytes(model: Architecture, shape: TrainingShape) -> int:
    """Activations of one micro-batch, a little generously.

    With checkpointing one [tokens, width] input a layer is kept and one layer is live at a time; a live
    layer holds about 10 widths and 4 MLP widths a token. Logits exist for one chunk of tokens in fp32, with
    their gradient.
    """
    tokens, size = shape.micro_tokens, bytes_per_weight(shape.precision)
    layer = tokens * (10 * model.hidden_size + 4 * model.intermediate_size) * size
    layers = model.num_hidden_layers
    kept = (
        tokens * model.hidden_size * size * layers + layer if shape.gradient_checkpointing else layer * layers
    )
    return kept + logit_bytes(model, tokens, shape.device)


def logit_bytes(model: Architecture, tokens: int, device: str) -> int:
    """Two fp32 copies of one chunk's logits."""
    return 2 * min(tokens, chunk_tokens(model.vocab_size, device)) * model.vocab_size * 4


def forward_bytes(
    model: Architecture, precision: str, batch_tokens: int, *, head: bool, device: str, shards: int = 1
) -> dict[str, int]:
    """A forward-only replica: weights, one live layer of a batch, and a chunk of logits if it has a head.

    Sharded, a rank holds its part of the weights and, for a moment, one whole layer.
    """
    size = bytes_per_weight(precision)
    live = batch_tokens * (6 * model.hidden_size + 2 * model.intermediate_size) * size
    if shards > 1:
        live += 2 * count_parameters(model) * size // model.num_hidden_layers
    return {
        "weights": count_parameters(model) * size // shards,
        "activations": live + (logit_bytes(model, batch_tokens, device) if head else 0),
    }


def cache_bytes_per_token(model: Architecture, precision: str) -> int:
    """Keys and values of one token over all layers."""
    head_dim = model.head_dim or model.hidden_size // model.num_attention_heads
    return 2 * model.num_hidden_layers * model.num_key_value_heads * head_dim * bytes_per_weight(precision)
