"""Which device a command computes on, where no config says it."""

from __future__ import annotations

from typing import Any


def device_options(device: str | None, alone: bool) -> dict[str, Any]:
    """The device as an override; without an option, a config decides.

    Args:
        alone: there is no config: what isn't given is looked for.
    """
    return {"cluster.device": find_device(device or "auto")} if device or alone else {}


def engine_options(device: str | None, alone: bool) -> dict[str, Any]:
    """The same for one rollout engine on this machine."""
    found = device_options(device, alone)
    if not alone:
        return found
    memory = {"cluster.rollout.kv_cache_gib": 1.0} if found["cluster.device"] == "cpu" else {}
    return {**found, "cluster.devices_per_node": 1, **memory}


def find_device(device: str) -> str:
    """`auto` is cuda where this machine has it, else cpu."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
