"""The shape of a model, found without loading it, and its parameter count."""

from __future__ import annotations

import json
from pathlib import Path

from ultramed_rl.config.models import Architecture

_LLAMA3_8B = Architecture(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
)
_LLAMA3_70B = Architecture(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128256,
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
)
KNOWN = {
    "meta-llama/Meta-Llama-3-8B": _LLAMA3_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA3_8B,
    "meta-llama/Llama-3.1-8B": _LLAMA3_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA3_8B,
    "TsinghuaC3I/Llama-3-8B-UltraMedical": _LLAMA3_8B,
    "TsinghuaC3I/Llama-3.1-8B-UltraMedical": _LLAMA3_8B,
    "sfairXC/FsfairX-LLaMA3-RM-v0.1": _LLAMA3_8B,
    "meta-llama/Meta-Llama-3-70B-Instruct": _LLAMA3_70B,
    "TsinghuaC3I/Llama-3-70B-UltraMedical": _LLAMA3_70B,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2_135M,
    "offline://smollm2-135m-instruct": _SMOLLM2_135M,
}
_FIELDS = set(Architecture.model_fields)


def resolve_architecture(
    path: str, given: Architecture | None, key: str, path_key: str | None = None
) -> Architecture:
    """The shape of the model at `path`: as given, from its config.json, or of a well-known hub id.

    `key` is the section that may give it, `path_key` the key of the path where that isn't in the same section.

    Raises:
        ValueError: none of the three; names the config key that cures it.
    """
    if given is not None:
        return given
    if path.startswith("stage://"):  # what a recipe's stage will make, and after @ what it starts from
        path = path.partition("@")[2]
    config_file = Path(path).expanduser() / "config.json"
    if config_file.is_file():
        return read_architecture(config_file)
    if path in KNOWN:
        return KNOWN[path]
    raise ValueError(
        f"{path_key or f'{key}.path'}={path!r}: its shape is unknown without downloading it; set {key}.architecture "
        f"({', '.join(sorted(_FIELDS))}) from its config.json"
    )


def read_architecture(config_file: Path) -> Architecture:
    """The shape in a Hugging Face config.json."""
    data = json.loads(config_file.read_text())
    data.setdefault("num_key_value_heads", data.get("num_attention_heads"))
    try:
        return Architecture(**{name: data[name] for name in _FIELDS if data.get(name) is not None})
    except ValueError as error:
        raise ValueError(
            f"{config_file}: not the config of a decoder: {str(error).splitlines()[0]}"
        ) from None


def count_parameters(shape: Architecture) -> int:
    """Parameters of a Llama-like decoder: embeddings, attention, gated MLP, norms, head."""
    width = shape.hidden_size
    head_dim = shape.head_dim or width // shape.num_attention_heads
    queries, keys = shape.num_attention_heads * head_dim, shape.num_key_value_heads * head_dim
    layer = width * (2 * queries + 2 * keys) + 3 * width * shape.intermediate_size + 2 * width
    embeddings = shape.vocab_size * width * (1 if shape.tie_word_embeddings else 2)
    return embeddings + shape.num_hidden_layers * layer + width
