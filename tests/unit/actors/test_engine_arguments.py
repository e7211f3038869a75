"""Every argument that an engine is started with is one of vLLM's, and of its kind."""

from __future__ import annotations

from typing import Any, get_type_hints

import pytest
import torch
from pydantic import ConfigDict, TypeAdapter

from ultramed_rl.actors.rollout import EngineArguments, RolloutWorker
from ultramed_rl.config.cluster import RolloutGroup


class Given(Exception):
    """What vLLM was given, before it does anything."""


def given(arguments: EngineArguments, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def refuse(**named: Any) -> None:
        raise Given(named)

    monkeypatch.setattr("vllm.LLM", refuse)
    monkeypatch.setattr("ultramed_rl.actors.rollout.sample_with_few_numbers", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(Given) as found:
        RolloutWorker(0).start(arguments, 2, 0)
    named: dict[str, Any] = found.value.args[0]
    return named


@pytest.mark.parametrize(
    ("device", "backend", "changes", "more"),
    [
        ("cpu", "shared_memory", {"kv_cache_gib": 0.5}, {}),
        ("cuda", "nccl", {"tensor_parallel": 2, "enforce_eager": True}, {"trust_remote_code": True}),
        ("cuda", "ipc", {"quantization": "fp8"}, {"sleep_level": 2}),
        ("cuda", "adapter", {"kv_cache_gib": 20.0}, {"sleep_level": 1, "lora_rank": 24}),
    ],
)
def test_arguments_are_vllms(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str, changes: dict[str, Any], more: dict[str, Any]
) -> None:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    known = get_type_hints(EngineArgs, include_extras=True) | get_type_hints(
        LLM.__init__, include_extras=True
    )
    arguments = EngineArguments("/m", device, "bfloat16", 64, RolloutGroup(**changes), backend, **more)
    found = given(arguments, monkeypatch)
    assert not found.keys() - known.keys()
    for name, value in found.items():
        kind: TypeAdapter[Any] = TypeAdapter(known[name], config=ConfigDict(arbitrary_types_allowed=True))
        kind.validate_python(value, strict=True)
    lora = backend == "adapter"
    assert (
        found.get("max_lora_rank") == (32 if lora else None) and ("weight_transfer_config" in found) != lora
    )
    assert bool(found.get("enable_sleep_mode")) == bool(arguments.sleep_level)
