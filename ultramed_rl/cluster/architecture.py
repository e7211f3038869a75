"""The shape of a model, found without loading it, and its parameter count."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from ultramed_rl.config.explain import validate
from ultramed_rl.config.models import Architecture
from ultramed_rl.models.files import (
    decoder_config,
    find_weight_files,
    head_width,
    longest_sequence,
    read_config_file,
    stored_shapes,
)

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
_LLAMA3_70B = Architecture(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128256,
    max_position_embeddings=8192,
)
_SMOLLM2_135M = Architecture(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49152,
    head_dim=64,
    tie_word_embeddings=True,
    max_position_embeddings=8192,
)
KNOWN = {
    "meta-llama/Meta-Llama-3-8B": _LLAMA3_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3_8B,
    "meta-llama/Llama-3.1-8B": _LLAMA31_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA31_8B,
    "TsinghuaC3I/Llama-3-8B-UltraMedical": _LLAMA3_8B,
    "TsinghuaC3I/Llama-3.1-8B-UltraMedical": _LLAMA31_8B,
    "sfairXC/FsfairX-LLaMA3-RM-v0.1": _LLAMA3_8B,
    "meta-llama/Meta-Llama-3-70B-Instruct": _LLAMA3_70B,
    "TsinghuaC3I/Llama-3-70B-UltraMedical": _LLAMA3_70B,
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
        f"{path_key or f'{key}.path'}={path!r}: its shape is unknown without downloading it; set {key}.architecture "
        f"({', '.join(Architecture.model_fields)}) from its config.json"
    )


def read_architecture(folder: Path, key: str) -> Architecture:
    """The shape of a local checkpoint's text decoder. Raises ValueError as `resolve_architecture`."""
    whole = read_config_file(folder / "config.json")
    config = decoder_config(whole)
    missing = [name for name in _REQUIRED if not isinstance(getattr(config, name, None), int)]
    if missing:
        raise ValueError(
            f"{folder / 'config.json'}: says no {', '.join(missing)}, so it is not a decoder with attention; name "
            f"another model, or set {key}.architecture"
        )
    stored = stored_shapes(find_weight_files(folder))
    plain = (
        getattr(whole, "quantization_config", None) is None
    )  # packed weights are fewer numbers than parameters
    return validate(
        Architecture,
        {
            **{name: getattr(config, name) for name in _REQUIRED},
            "intermediate_size": _mlp_width(config),
            "num_key_value_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            "head_dim": head_width(config),
            "tie_word_embeddings": bool(getattr(whole, "tie_word_embeddings", False)),
            "max_position_embeddings": longest_sequence(config),
            "parameters": sum(prod(shape) for shape in stored.values()) or None if plain else None,
        },
    )


def _mlp_width(config: Any) -> int:
    for name in _MLP_WIDTHS:
        found = getattr(config, name, None)
        if found:
            return max(found) if isinstance(found, (list, tuple)) else int(found)
    return 4 * int(config.hidden_size)


def count_parameters(shape: Architecture) -> int:
    """Parameters: as counted in the files, else of a Llama-like decoder (embeddings, attention, gated MLP, norms, head)."""
    if shape.parameters is not None:
        return shape.parameters
    width = shape.hidden_size
    head_dim = shape.head_dim or width // shape.num_attention_heads
    queries, keys = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    layer = width * (2 * queries + 2 * keys) + 3 * width * shape.intermediate_size + 2 * width
    embeddings = shape.vocab_size * width * (1 if shape.tie_word_embeddings else 2)
    return embeddings + shape.num_hidden_layers * layer + width
