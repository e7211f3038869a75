"""LoRA and QLoRA policies (arXiv 2106.09685, 2305.14314), by peft: the base model stays frozen inside.

With its adapters off the model is the starting policy again, so it is its own reference: no second copy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultramed_rl.config.models import LoRA

_ADAPTER = "default"
_PREFIX = "base_model.model."  # peft's name for the model around which it wraps itself
Whole = Callable[[list[nn.Parameter]], AbstractContextManager[Any]]


def attach_lora(lm: Any, lora: LoRA, base: str) -> None:
    """Freeze the model of `base` and put adapters, which start at zero effect, into its linear layers."""
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraConfig

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules
        if isinstance(lora.target_modules, str)
        else [*lora.target_modules],
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    lm.requires_grad_(False)
    inject_adapter_in_model(config, lm, adapter_name=_ADAPTER)
    lm.lora_config = config


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


def merged_weights(lm: nn.Module, whole: Whole) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the plain model that equals base plus adapters, one at a time, under their plain names.

    `whole` makes partitioned parameters whole while a weight is read.
    """
    adapted = dict(_lora_layers(lm))
    for name, parameter in lm.named_parameters():
        if ".lora_" in name:
            continue
        owner, _, leaf = name.rpartition(".")
        plain_owner = owner.removesuffix(".base_layer")
        layer = adapted.get(plain_owner)
        if layer is None or leaf != "weight":
            with whole([parameter]):
                yield f"{plain_owner}.{leaf}", _dequantize(parameter)
            continue
        down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        with whole([parameter, down, up]):
            change = layer.get_delta_weight(_ADAPTER).float()
            yield f"{plain_owner}.weight", (_dequantize(parameter).float() + change).to(down.dtype).detach()


def merged_shapes(lm: nn.Module) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Name, type and shape of everything that `merged_weights` yields, in its order."""
    for name, parameter in lm.named_parameters():
        if ".lora_" in name:
            continue
        owner, _, leaf = name.rpartition(".")
        packed = getattr(parameter, "quant_state", None)
        shape = packed.shape if packed else getattr(parameter, "ds_shape", parameter.shape)
        dtype = packed.dtype if packed else parameter.dtype
        yield f"{owner.removesuffix('.base_layer')}.{leaf}", dtype, tuple(shape)


def forget_quantizer(lm: Any) -> None:
    """What leaves this model is whole weights; transformers would write the 4-bit ones in their place."""
    lm.hf_quantizer = None
    lm.is_quantized = False
    if hasattr(lm.config, "quantization_config"):
        del lm.config.quantization_config


def adapter_parameters(lm: nn.Module) -> list[nn.Parameter]:
    """What is trained."""
    return [p for name, p in lm.named_parameters() if ".lora_" in name]


def adapter_state(lm: Any) -> dict[str, torch.Tensor]:
    """The adapters as `PeftModel` names them, copied to the CPU."""
    from peft import get_peft_model_state_dict

    return {_PREFIX + k: v.detach().cpu().clone() for k, v in get_peft_model_state_dict(lm).items()}


def save_adapter(lm: Any, state: dict[str, torch.Tensor], directory: Path) -> None:
    """Write `adapter_state` in peft's own format."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    lm.lora_config.save_pretrained(directory)


def _read_config(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
    return content


def load_adapter(lm: Any, directory: Path) -> None:
    """Read what `save_adapter` wrote into a model that `attach_lora` prepared.

    Raises:
        ValueError: the file holds other adapters than the model.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(directory / "adapter_model.safetensors")
    expected = adapter_state(lm)
    kept = _read_config(directory)
    same_shape = {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
    if not same_shape or kept["lora_alpha"] != lm.lora_config.lora_alpha:
        targets = sorted({name.rpartition(".")[2] for name in kept["target_modules"]})
        raise ValueError(
            f"{directory}: adapters of rank={kept['r']}, alpha={kept['lora_alpha']}, target_modules={targets}, and "
            "policy.lora asks for others; resume with the same policy.lora"
        )
    set_peft_model_state_dict(lm, {k.removeprefix(_PREFIX): v for k, v in state.items()})


def _lora_layers(lm: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in lm.named_modules() if isinstance(module, LoraLayer)]


def _dequantize(weight: nn.Parameter) -> torch.Tensor:
    if getattr(weight, "quant_state", None) is None:
        return weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    plain: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
    return plain
