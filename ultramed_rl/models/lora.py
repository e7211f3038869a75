"""LoRA and QLoRA policies (arXiv 2106.09685, 2305.14314), by peft: the base model stays frozen inside.

With its adapters off the model is the starting policy again, so it is its own reference: no second copy.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain, groupby
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ultramed_rl.config.models import LoRA
from ultramed_rl.models.checkpoint import check_finite_files, kept_buffers
from ultramed_rl.models.files import shown, split_revision, stored_shapes, text_model, whole_size

ADAPTER_FILE = "adapter_model.safetensors"
_ADAPTER = "default"
_PREFIX = "base_model.model."  # peft's name for the model around which it wraps itself
_AT_ONCE = 2**31  # bytes that are made whole together: a layer of a 70B model takes 1.7e9
Gather = Callable[[list[nn.Parameter]], AbstractContextManager[Any]]


def attach_lora(lm: Any, lora: LoRA, base: str) -> None:
    """Freeze the model of `base` and put adapters, which start at zero effect, into its linear layers.
    Raises ValueError: names that no layer has, or adapters that cannot be merged into the plain model's weights."""
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraConfig

    plain = sorted(merged_shapes(lm))
    uses = Counter(id(parameter) for _, parameter in lm.named_parameters(remove_duplicate=False))
    name, revision = split_revision(base)
    targets = lora.target_modules if isinstance(lora.target_modules, str) else [*lora.target_modules]
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        exclude_modules=_unsuited(lm) if targets == "all-linear" else None,
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
        revision=revision,
    )
    lm.requires_grad_(False)
    on_meta = next(lm.parameters()).is_meta
    try:
        inject_adapter_in_model(config, lm, adapter_name=_ADAPTER, low_cpu_mem_usage=on_meta)
        if targets != "all-linear":  # peft, which may have renamed them, goes on if any is a layer's
            layers = [f".{name}" for name, _ in _lora_layers(lm)]
            names = cast(set[str], config.target_modules)
            unknown = [name for name in names if not any(layer.endswith(f".{name}") for layer in layers)]
            if unknown:
                raise ValueError(
                    f"no layer of the model is called {', '.join(sorted(unknown))}; leave it out"
                )
        _check_mergeable(lm, uses, plain)
    except ValueError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"lora.target_modules={lora.target_modules!r}: {reason}") from None
    lm.lora_config = config


def _unsuited(lm: Any) -> list[str] | None:
    """Linear layers that all-linear leaves out: what no text reaches in a model that also sees, and what is more than
    linear, such as a router."""
    kept = {id(module) for module in text_model(lm).modules()}
    linear = ((name, module) for name, module in lm.named_modules() if isinstance(module, nn.Linear))
    return [name for name, module in linear if id(module) not in kept or _has_own_way(module)] or None


def _has_own_way(layer: nn.Module) -> bool:
    """Whether a layer does more with its input than its kind, so that peft would not know what."""
    family: Any = nn.Embedding if isinstance(layer, nn.Embedding) else nn.Linear
    known = hasattr(layer, "embed_scale") or type(layer).__module__.startswith("bitsandbytes")
    return isinstance(layer, family) and type(layer).forward is not family.forward and not known


def _check_mergeable(lm: nn.Module, uses: Mapping[int, int], plain: Sequence[tuple[Any, ...]]) -> None:
    """Base and adapters as one plain model: each adapter changes one weight, which nothing else uses, and names and
    sizes are the base model's. What a layer computes is then what its merged weight computes, as peft merges it."""
    seen: set[int] = set()
    for name, layer in _lora_layers(lm):
        weight = _adapted(layer)
        if weight is None or id(weight) in seen:
            kind = type(layer.get_base_layer()).__name__
            raise ValueError(f"{name} is a {kind}, whose adapter cannot be merged; leave it out")
        if uses[id(weight)] > 1:
            raise ValueError(
                f"{name} shares its weight with another layer (tie_word_embeddings), which the merged one would change "
                "too; leave it out, or untie them in the checkpoint"
            )
        seen.add(id(weight))
    merged = sorted(merged_shapes(lm))
    if merged != plain:
        different = {entry[0] for entry in merged} ^ {entry[0] for entry in plain}
        raise ValueError(
            f"merged, the model would have other weights than its base ({shown(different)}); name other layers"
        )


def quantization(lora: LoRA | None, dtype: torch.dtype) -> Any:
    """transformers' 4-bit NormalFloat config of a QLoRA policy, or None."""
    if lora is None or lora.quantize is None:
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=lora.quantize,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_use_double_quant=True,
    )


def has_adapters(lm: nn.Module) -> bool:
    """Whether `attach_lora` was here."""
    return hasattr(lm, "lora_config")


@contextmanager
def adapters_off(lm: nn.Module) -> Iterator[None]:
    """Within it the model computes as it did before `attach_lora`."""
    layers = _lora_layers(lm)
    for _, layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in layers:
            layer.enable_adapters(True)


def merged_weights(lm: nn.Module, gather: Gather) -> Iterator[tuple[str, torch.Tensor]]:
    """What a checkpoint holds of the plain model that equals base plus adapters, one at a time, under plain names.

    `gather` makes partitioned parameters whole while weights are read: a decoder layer's all at once.
    """
    adapted = {id(_adapted(layer)): layer for _, layer in _lora_layers(lm)}
    for bucket in _buckets(_base_tensors(lm)):
        parameters = [tensor for _, tensor in bucket if isinstance(tensor, nn.Parameter)]  # buffers are whole
        layers = [adapted[id(p)] for p in parameters if id(p) in adapted]
        own = (p for layer in layers for n, p in layer.named_parameters() if n.startswith("lora_"))
        with gather(list(dict.fromkeys([*parameters, *own]))):
            for name, tensor in bucket:
                yield name, _merged(tensor, adapted.get(id(tensor)))


def _merged(tensor: torch.Tensor, layer: Any | None) -> torch.Tensor:
    """A whole weight or buffer, with what its layer's adapters add to it."""
    weight = tensor.detach()
    if (packed := getattr(tensor, "quant_state", None)) is not None:
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(tensor.data, packed)
    if layer is not None:
        change = layer.get_delta_weight(_ADAPTER).detach()
        weight = (weight.float() + change.float()).to(weight.dtype)
    return weight


def _buckets(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """The tensors of a decoder layer, which names number, together; in several buckets where they are over `_AT_ONCE` bytes."""
    for _, members in groupby(tensors, lambda item: re.findall(r"^.*?\.\d+\.", item[0])):
        bucket: list[tuple[str, torch.Tensor]] = []
        size = 0
        for name, tensor in members:
            own = whole_size(tensor) * tensor.element_size()
            if bucket and size + own > _AT_ONCE:
                yield bucket
                bucket, size = [], 0
            bucket.append((name, tensor))
            size += own
        yield bucket


def merged_shapes(lm: nn.Module) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, type and shape of everything that `merged_weights` yields, in its order."""
    for name, tensor in _base_tensors(lm):
        packed = getattr(tensor, "quant_state", None)
        shape = packed.shape if packed else getattr(tensor, "ds_shape", tensor.shape)
        yield name, packed.dtype if packed else tensor.dtype, tuple(shape)


def _base_tensors(lm: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights and kept buffers below the adapters, by their plain names: peft puts what it wraps under `base_layer`, one
    within the other where a layer has several adapters."""
    weights = ((name, weight) for name, weight in lm.named_parameters() if ".lora_" not in name)
    for name, tensor in chain(weights, kept_buffers(lm)):
        yield name.replace(".base_layer", ""), tensor


def _adapted(layer: Any) -> nn.Parameter | None:
    """The one weight that a layer's adapter changes; None of a kind that isn't known to be merged."""
    kind = type(layer).__name__
    if kind == "ParamWrapper":  # of one that isn't a layer's `weight`, such as all experts' at once
        parameter: nn.Parameter = layer.get_param()
        return parameter
    base = layer.get_base_layer()
    plain = kind in ("Linear", "Linear4bit", "Embedding") and not _has_own_way(base)
    return base.weight if plain else None


def adapter_parameters(lm: nn.Module) -> list[nn.Parameter]:
    """What is trained."""
    return [p for name, p in lm.named_parameters() if ".lora_" in name]


def adapter_state(lm: Any) -> dict[str, torch.Tensor]:
    """The adapters as `PeftModel` names them, copied to the CPU."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(lm, save_embedding_layers=False)
    return {_PREFIX + k: v.detach().cpu().clone() for k, v in state.items()}


def save_adapter(lm: Any, state: dict[str, torch.Tensor], directory: Path) -> None:
    """Write `adapter_state` in peft's own format."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(state, directory / ADAPTER_FILE, metadata={"format": "pt"})
    lm.lora_config.save_pretrained(directory)


def load_adapter(lm: Any, directory: Path) -> None:
    """Read what `save_adapter` wrote into a model that `attach_lora` prepared. Raises ValueError: the file holds
    other adapters than the model."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    file = directory / ADAPTER_FILE
    if not file.is_file():
        raise ValueError(f"{file}: not there; adapters are loaded from a checkpoint that has them")
    shapes = stored_shapes([file])
    check_finite_files([file], str(directory))
    kept = json.loads((directory / "adapter_config.json").read_text())
    expected = {name: tuple(tensor.shape) for name, tensor in adapter_state(lm).items()}
    if shapes != expected or kept["lora_alpha"] != lm.lora_config.lora_alpha:
        targets = sorted({name.rpartition(".")[2] for name in kept["target_modules"]})
        raise ValueError(
            f"{directory}: adapters of rank={kept['r']}, alpha={kept['lora_alpha']}, target_modules={targets}, and "
            "policy.lora asks for others; resume with the same policy.lora"
        )
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in load_file(file).items()}
    loaded = set_peft_model_state_dict(lm, state)
    assert not loaded.unexpected_keys, loaded.unexpected_keys


def _lora_layers(lm: nn.Module) -> list[tuple[str, Any]]:
    if not hasattr(lm, "peft_config"):
        return []
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in lm.named_modules() if isinstance(module, LoraLayer)]
