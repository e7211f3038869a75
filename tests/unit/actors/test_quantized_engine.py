"""Engines in 8 bits: vLLM rounds what a sync brings, in the memory that it had before."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ultramed_rl.actors import rollout


def test_each_sync_rounds_the_new_weights_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """By vLLM's own layer and reload: a scale for each output, so that no weight is off by more than half of the last of
    float8's three binary places, 2^-4 of itself, or of half the smallest step, 2^-10 of its row's largest over 448."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.config.quantization import _ONLINE_SHORTHANDS
    from vllm.model_executor import parameter
    from vllm.model_executor.layers.linear import ReplicatedLinear
    from vllm.model_executor.layers.quantization.online import fp8
    from vllm.model_executor.layers.quantization.online.base import OnlineQuantizationConfig
    from vllm.model_executor.model_loader import reload

    kernel = SimpleNamespace(process_weights_after_loading=lambda layer: None)
    monkeypatch.setattr(fp8, "init_fp8_linear_kernel", lambda **_: kernel)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)
    chosen = OnlineQuantizationConfig(_ONLINE_SHORTHANDS[rollout.QUANTIZATIONS["fp8"] or ""])
    engine = VllmConfig()
    engine.model_config = SimpleNamespace(dtype=torch.bfloat16)  # type: ignore[assignment]
    with set_current_vllm_config(engine):
        how = {"bias": False, "params_dtype": torch.bfloat16, "disable_tp": True}
        layer = ReplicatedLinear(64, 32, quant_config=chosen, **how)
    model = nn.Sequential(layer)
    reload.record_metadata_for_reloading(model)

    def load(weight: torch.Tensor) -> None:
        layer.weight.weight_loader(layer.weight, weight)
        reload.finalize_layerwise_reload(model, engine.model_config)

    places = set()
    torch.manual_seed(0)
    for sync in range(3):
        weight = (torch.randn(32, 64) * torch.logspace(-3, 1, 32)[:, None]).bfloat16()
        if sync:
            reload.initialize_layerwise_reload(model)
        load(weight)
        assert layer.weight.dtype == torch.float8_e4m3fn and layer.weight_scale.numel() == 32
        found = layer.weight.float().t() * layer.weight_scale.reshape(32, 1)
        largest = weight.float().abs().amax(dim=1, keepdim=True)
        allowed = weight.float().abs() * 2**-4 + largest / 448 * 2**-10
        assert ((found - weight.float()).abs() <= 1.001 * allowed).all()
        places.add(layer.weight.data_ptr())
    assert len(places) == 1, "CUDA graphs would read the old weights"


def test_a_gpu_without_8_bit_products_is_refused_before_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    from ultramed_rl.config.cluster import RolloutGroup

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    arguments = rollout.EngineArguments(
        "/nowhere", "cuda", "bfloat16", 64, RolloutGroup(quantization="fp8"), "nccl"
    )
    with pytest.raises(ValueError, match=r"quantization=fp8: .*8\.9.*8\.0"):
        rollout.RolloutWorker(0).start(arguments, None, 0)
