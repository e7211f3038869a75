"""The shape of a model, found without loading it, and the bytes that it takes on a device. Pure arithmetic; every formula is
stated where it is used."""

from __future__ import annotations

from math import prod
from pathlib import Path

from ultramed_rl.config.cluster import ReplicaGroup, TrainerGroup
from ultramed_rl.config.load import validate
from ultramed_rl.config.models import Architecture, Model, resolve_precision
from ultramed_rl.config.rounds import Optimization
from ultramed_rl.learning.costs import chunk_tokens, reduced_at_once, zero3_limits
from ultramed_rl.models.files import (
    decoder_config,
    find_weight_files,
    head_width,
    longest_sequence,
    read_config_file,
    stored_shapes,
)

GIB = 2**30
# A process that has imported torch, transformers and DeepSpeed or vLLM, before any weight: measured on CPU.
PROCESS_BYTES = int(0.9 * GIB)
# What a process holds on a GPU before any weight: CUDA's context and NCCL's buffers. An estimate.
CONTEXT_BYTES = GIB
WEIGHT_BYTES = {"bfloat16": 2, "float32": 4}
_QUANTIZED_BYTES = 0.57  # of a 4-bit weight with its scales

_LLAMA3_8B = Architecture(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
    max_position_embeddings=8192,
)
_LLAMA31_8B = _LLAMA3_8B.model_copy(update={"max_position_embeddings": 131072})
_LARGE = dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64)
_LLAMA3_70B = _LLAMA3_8B.model_copy(update=_LARGE)
_QWEN3_8B = _LLAMA3_8B.model_copy(
    update=dict(intermediate_size=12288, num_hidden_layers=36, head_dim=128, vocab_size=151936)
    | {"max_position_embeddings": 40960}
)


def _qwen(
    width: int, mlp: int, layers: int, heads: int, keys: int, vocabulary: int, *, tied: bool
) -> Architecture:
    """A shape of Qwen's, by its config.json; heads of 128 in Qwen3."""
    shape = dict(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads
    )
    more = dict(num_key_value_heads=keys, vocab_size=vocabulary, tie_word_embeddings=tied)
    return _LLAMA3_8B.model_copy(update=shape | more | {"max_position_embeddings": 32768})


_OF_QWEN3 = {"head_dim": 128, "max_position_embeddings": 40960}
_QWEN3_06B = _qwen(1024, 3072, 28, 16, 8, 151936, tied=True).model_copy(update=_OF_QWEN3)
_QWEN3_17B = _qwen(2048, 6144, 28, 16, 8, 151936, tied=True).model_copy(update=_OF_QWEN3)
_QWEN3_4B = _qwen(2560, 9728, 36, 32, 8, 151936, tied=True).model_copy(update=_OF_QWEN3)
_LLAMA32_1B = _LLAMA31_8B.model_copy(
    update=dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, tie_word_embeddings=True)
)
_SMALL = dict(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, head_dim=64
)
_SMOLLM2_135M = _LLAMA3_8B.model_copy(
    update=_SMALL | {"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}
)
KNOWN = {
    "meta-llama/Meta-Llama-3-8B": _LLAMA3_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3_8B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA32_1B,
    "meta-llama/Llama-3.1-8B": _LLAMA31_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA31_8B,
    "TsinghuaC3I/Llama-3-8B-UltraMedical": _LLAMA3_8B,
    "TsinghuaC3I/Llama-3.1-8B-UltraMedical": _LLAMA31_8B,
    "sfairXC/FsfairX-LLaMA3-RM-v0.1": _LLAMA3_8B,
    "meta-llama/Meta-Llama-3-70B-Instruct": _LLAMA3_70B,
    "TsinghuaC3I/Llama-3-70B-UltraMedical": _LLAMA3_70B,
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen(896, 4864, 24, 14, 2, 151936, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen(1536, 8960, 28, 12, 2, 151936, tied=True),
    "Qwen/Qwen2.5-3B-Instruct": _qwen(2048, 11008, 36, 16, 2, 151936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen(3584, 18944, 28, 28, 4, 152064, tied=False),
    "Qwen/Qwen2.5-14B-Instruct": _qwen(5120, 13824, 48, 40, 8, 152064, tied=False),
    "Qwen/Qwen2.5-32B-Instruct": _qwen(5120, 27648, 64, 40, 8, 152064, tied=False),
    "Qwen/Qwen3-0.6B": _QWEN3_06B,
    "Qwen/Qwen3-1.7B": _QWEN3_17B,
    "Qwen/Qwen3-4B": _QWEN3_4B,
    "Qwen/Qwen3-8B": _QWEN3_8B,
    "Skywork/Skywork-Reward-V2-Llama-3.2-1B": _LLAMA32_1B,
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": _QWEN3_06B,
    "Skywork/Skywork-Reward-V2-Qwen3-1.7B": _QWEN3_17B,
    "Skywork/Skywork-Reward-V2-Qwen3-4B": _QWEN3_4B,
    "Skywork/Skywork-Reward-V2-Qwen3-8B": _QWEN3_8B,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
    "offline://smollm2-135m-instruct": _SMOLLM2_135M,
}
# What a config must say; other families' names are transformers' own (GPT-2's n_embd is its hidden_size).
_REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
# Names of the MLP's width that transformers doesn't translate. Without any it is four times the hidden size.
_MLP_WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size")


def resolve_architecture(
    path: str, given: Architecture | None, key: str, path_key: str | None = None
) -> Architecture:
    """The shape of the model at `path`: as given, from its config.json, or of a well-known hub id.

    `key` is the section that may give it, `path_key` the key of the path where that isn't in the same section.

    Raises:
        ValueError: none of the three, with the config key that fixes it; or a local checkpoint whose files are cut
            or not there.
    """
    if given is not None:
        return given
    if path.startswith("stage://"):  # what a recipe's stage will make, and after @ what it starts from
        path = path.partition("@")[2]
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        try:
            return read_architecture(folder, key)
        except ValueError as error:
            raise ValueError(f"{path_key or f'{key}.path'}={path!r}: {str(error).splitlines()[0]}") from None
    if path in KNOWN:
        return KNOWN[path]
    raise ValueError(
        f"{path_key or f'{key}.path'}={path!r}: its shape is unknown without downloading it; name its folder once it is "
        f"downloaded, or set {key}.architecture ({', '.join(Architecture.model_fields)}) from its config.json"
    )


def read_architecture(folder: Path, key: str) -> Architecture:
    """The shape of a local checkpoint's text decoder. Raises ValueError as `resolve_architecture`."""
    checkpoint = read_config_file(folder / "config.json")
    config = decoder_config(checkpoint)
    missing = [name for name in _REQUIRED if not isinstance(getattr(config, name, None), int)]
    if missing:
        raise ValueError(
            f"{folder / 'config.json'}: says no {', '.join(missing)}, so it is not a decoder with attention; name "
            f"another model, or set {key}.architecture"
        )
    mlp = next(filter(None, (getattr(config, name, None) for name in _MLP_WIDTHS)), 4 * config.hidden_size)
    stored = sum(prod(shape) for shape in stored_shapes(find_weight_files(folder)).values())
    if getattr(checkpoint, "quantization_config", None) is not None:
        stored = 0  # packed weights are fewer numbers than parameters
    return validate(
        Architecture,
        {
            **{name: getattr(config, name) for name in _REQUIRED},
            "intermediate_size": max(mlp) if isinstance(mlp, (list, tuple)) else int(mlp),
            "num_key_value_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            "head_dim": head_width(config),
            "tie_word_embeddings": bool(getattr(checkpoint, "tie_word_embeddings", False)),
            "max_position_embeddings": longest_sequence(config),
            "parameters": stored or None,
        },
    )


def count_parameters(shape: Architecture) -> int:
    """Parameters: as counted in the files, else of a Llama-like decoder (embeddings, attention, gated MLP, norms, head)."""
    if shape.parameters is not None:
        return shape.parameters
    width = shape.hidden_size
    head_dim = shape.head_dim or width // shape.num_attention_heads
    queries, keys = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    layer = width * (2 * queries + 2 * keys) + 3 * width * shape.intermediate_size + 2 * width
    return _outside(shape) + shape.num_hidden_layers * layer + width


# -- bytes on one device -----------------------------------------------------------------------------------


def training_bytes(
    shape: Architecture, model: Model, group: TrainerGroup, training: Optimization, device: str, longest: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of one rank by kind, with ZeRO's partitioning (arXiv 1910.02054, section 3): on its device, and in host memory.

    bfloat16: weights 2, gradients 4, and fp32 master, momentum and variance 12 bytes a parameter; float32: 4, 4 and 8.
    Stage 1 divides the optimizer by the ranks, 2 the gradients too, 3 the weights too. Stage 2 has the gradients of a
    micro-batch in the weights' type beside the sum.

    With LoRA (arXiv 2106.09685) the weights are frozen, and all else is of the adapters alone: one of rank r on a matrix
    of [m, n] has r (m + n) parameters. 4-bit weights leave embeddings and head whole.

    Args:
        longest: tokens of the largest sample, which goes through alone where a micro-batch holds fewer.
    """
    precision, width = resolve_precision(model.precision, device), shape.hidden_size
    count, size = count_parameters(shape), WEIGHT_BYTES[precision]
    weights, trained = count * size, count
    if model.lora is not None:
        trained, outside = model.lora.rank * _adapted_sides(shape), _outside(shape)
        frozen = int((count - outside) * (_QUANTIZED_BYTES if model.lora.quantize else size))
        weights = frozen + (outside + trained) * size
    split = [group.ranks if group.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    gradients = trained * (4 + size * (group.zero_stage == 2)) // split[1]
    optimizer, host = trained * (12 if precision == "bfloat16" else 8) // split[2], {}
    if group.offload_optimizer:
        # Its float32 weights and gradients too; stages 2 and 3 add gradients up there.
        host = {"optimizer": trained * (20 if group.zero_stage == 2 else 16) // split[2]}
        optimizer = 0
        if group.zero_stage == 3:
            host["gradients"], gradients = gradients, 0
    # A layer keeps for its backward pass about 12 widths and 4 MLP widths a token: 2 norms of 4 (they compute in float32),
    # queries, keys, values and what attention makes of them; gate, its activation, up and their product. Of a layer that is
    # computed again the input alone is kept. These are the first ones: when their turn comes, the others are gone.
    # A rank has its part of the tokens; in attention it has all of them in that part of the heads, which is as much.
    tokens = -(-max(training.micro_batch_tokens, longest) // group.sequence_parallel)
    layers = shape.num_hidden_layers
    layer = tokens * (12 * width + 4 * shape.intermediate_size) * size
    again = recomputed_layers(training, layers)
    kept = again * tokens * width * size + max(1, layers - again) * layer
    own = {
        "weights": weights // split[0],
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": kept + _logit_bytes(shape, tokens, device),
    }
    if device == "cuda" and group.zero_stage:
        gathered = _whole_at_once(shape) if group.zero_stage == 3 else 0
        own["buffers"] = (reduced_at_once(count) + gathered) * size
    return own, host


def _adapted_sides(shape: Architecture) -> int:
    """Rows and columns of all matrices that LoRA adapts: of every layer's attention and MLP."""
    width = shape.hidden_size
    head_dim = shape.head_dim or width // shape.num_attention_heads
    queries, keys = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    sides = 2 * (width + queries) + 2 * (width + keys) + 3 * (width + shape.intermediate_size)
    return sides * shape.num_hidden_layers


def recomputed_layers(training: Optimization, layers: int) -> int:
    """How many of so many layers are computed again; all, where nobody has said how many."""
    if not training.gradient_checkpointing:
        return 0
    return layers if training.checkpointed_layers is None else min(training.checkpointed_layers, layers)


def forward_bytes(
    shape: Architecture, precision: str, tokens: int, group: ReplicaGroup, device: str, *, head: bool
) -> dict[str, int]:
    """A forward-only replica: weights, one live layer of a batch of so many tokens, or of its part of them, and a chunk of
    logits if it has a head.

    Sharded, a rank holds its part of the weights and those that are whole at once.
    """
    size, shards = WEIGHT_BYTES[precision], group.replicas if group.shard else 1
    tokens = -(-tokens // group.sequence_parallel)
    weights = count_parameters(shape) * size
    live = tokens * (6 * shape.hidden_size + 2 * shape.intermediate_size) * size
    if shards > 1:
        live += _whole_at_once(shape) * size
    logits = _logit_bytes(shape, tokens, device) if head else 0
    return {"weights": weights // shards, "activations": live + logits}


def _whole_at_once(shape: Architecture) -> int:
    """Parameters that stage 3 has whole at once; see `zero3_limits`."""
    head, outside = shape.vocab_size * shape.hidden_size, _outside(shape)
    body = count_parameters(shape) - outside
    limits = zero3_limits(body // shape.num_hidden_layers, head, shape.hidden_size)
    return min(count_parameters(shape), limits["stage3_max_live_parameters"])


def engine_weight_bytes(shape: Architecture, precision: str, quantization: str | None) -> int:
    """Of an engine. In 8 bits are the layers; embeddings and head are not."""
    count, size = count_parameters(shape), WEIGHT_BYTES[precision]
    if quantization is None:
        return count * size
    outside = _outside(shape)
    return count - outside + outside * size


def cache_bytes(shape: Architecture, precision: str) -> int:
    """Keys and values of one token in all layers."""
    head_dim = shape.head_dim or shape.hidden_size // shape.num_attention_heads
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * head_dim * WEIGHT_BYTES[precision]


def _outside(shape: Architecture) -> int:
    """Parameters of embeddings and head."""
    return shape.vocab_size * shape.hidden_size * (1 if shape.tie_word_embeddings else 2)


def _logit_bytes(shape: Architecture, tokens: int, device: str) -> int:
    """Logits exist for one chunk of tokens in fp32, with their gradient."""
    return 2 * min(tokens, chunk_tokens(shape.vocab_size, device)) * shape.vocab_size * 4
