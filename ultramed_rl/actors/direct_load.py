"""Weights straight from a segment into the layers of a vLLM model on CPU. Imported by vLLM processes only.

On CPU linear layers compute with a packed copy of their weight, and hold no other. vLLM's reload builds each weight
anew, packs it, and copies the rest once more: three passes over memory that is fresh each time. Here a layer packs
out of the segment itself, once. Which weights make up which layer is guessed by name, and believed only after vLLM's
own loader made exactly these weights of the same segment.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Barrier
from typing import Any

import torch
from torch import nn

from ultramed_rl.actors.segment import Segment, Slot

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h


@dataclass(frozen=True)
class Target:
    """A parameter of a layer, and the slots that make it up, on top of each other.

    `packed`: the layer keeps only what it made of the weight.
    """

    layer: nn.Module
    name: str
    sources: tuple[str, ...]
    packed: bool

    def size(self, slots: Mapping[str, Slot]) -> int:
        """Elements in all."""
        return sum(math.prod(slots[source].shape) for source in self.sources)

    @property
    def parameter(self) -> torch.Tensor:
        """As the layer has it now."""
        found = self.layer._parameters[self.name]
        assert found is not None
        return found


class DirectLoad:
    """A proven way from a segment with these slots into a model."""

    def __init__(self, model: nn.Module, targets: Sequence[Target], slots: dict[str, Slot]) -> None:
        # The largest first, so that no thread is left with one in the end.
        self.targets = sorted(targets, key=lambda target: -target.size(slots))
        self.slots, self.heads = slots, _heads(model)
        _keep_freed_memory()
        self.pool = _single_threads(torch.get_num_threads())

    def fits(self, segment: Segment) -> bool:
        """Whether the segment is laid out as the one that this was proven with."""
        return segment.slots == self.slots

    def load(self, segment: Segment) -> None:
        """Make the segment's weights the model's."""
        list(self.pool.map(lambda target: _fill(target, segment), self.targets))
        for head in self.heads:
            _repack(head)


def load_by_vllm(model: nn.Module, model_config: Any, segment: Segment) -> DirectLoad | None:
    """Load by vLLM's layer-wise reload; returns the direct way of later loads, or None where there is none."""
    from vllm.model_executor.model_loader.reload.layerwise import (
        finalize_layerwise_reload,
        initialize_layerwise_reload,
    )

    targets = find_targets(model, segment)
    with _packing_seen(targets or (), segment) as seen:
        initialize_layerwise_reload(model)
        model.load_weights((name, segment.tensor(name)) for name in segment.slots)
        finalize_layerwise_reload(model, model_config)
    repack_tied_head(model)
    if targets is None or not all(_proven(target, segment, seen) for target in targets):
        return None
    return DirectLoad(model, targets, segment.slots)


def find_targets(model: nn.Module, segment: Segment) -> list[Target] | None:
    """Where the slots go, by name; None for a model that has other names, layers or platforms than these."""
    from vllm.platforms import current_platform

    if current_platform.is_zen_cpu():  # its layers go on computing with the weight that they are given
        return None
    found: dict[int, Target] = {}
    for path, layer in model.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            sources = _sources(model, path, name)
            packed = parameter.numel() == 0
            if all(source in segment.slots for source in sources) and (not packed or _packs(layer)):
                found[id(parameter)] = Target(layer, name, sources, packed)
    parameters = {id(parameter) for parameter in model.parameters()}
    used = [source for target in found.values() for source in target.sources]
    complete = found.keys() == parameters and sorted(used) == sorted(segment.slots)
    return list(found.values()) if complete and _heads(model) else None


def _sources(model: nn.Module, path: str, name: str) -> tuple[str, ...]:
    """The checkpoint's names of a parameter: vLLM says which layers it fuses."""
    prefix, _, leaf = path.rpartition(".")
    parts = getattr(model, "packed_modules_mapping", {}).get(leaf, [leaf])
    return tuple(".".join(filter(None, (prefix, part, name))) for part in parts)


def _packs(layer: nn.Module) -> bool:
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod

    return type(getattr(layer, "quant_method", None)) is UnquantizedLinearMethod


def _heads(model: nn.Module) -> list[nn.Module]:
    """The layer that gives logits: it packs a copy of its weight and keeps both."""
    head = getattr(model, "lm_head", None)
    return [] if head is None or not hasattr(head, "quant_method") else [head]


def _single_threads(count: int) -> ThreadPoolExecutor:
    """Threads that compute on one core each: building a packed layer has parts that no second core helps with."""
    pool, all_there = ThreadPoolExecutor(count), Barrier(count)

    def settle() -> None:
        torch.set_num_threads(1)
        all_there.wait()

    wait([pool.submit(settle) for _ in range(count)])
    torch.set_num_threads(count)  # torch takes the last setting for everyone's
    return pool


def _keep_freed_memory() -> None:
    """Let glibc give packed weights the memory of those before them; fresh pages cost as much as the packing."""
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_ARENA_MAX, 1)


@torch.no_grad()
def _fill(target: Target, segment: Segment) -> None:
    rows = segment.rows(target.sources)
    if target.packed:
        _pack(target, rows)
    else:
        target.parameter.data[: len(rows)].copy_(rows)


def _pack(target: Target, weight: torch.Tensor) -> None:
    layer, kept = target.layer, target.layer._parameters[target.name]
    layer.cpu_linear = None  # what it had is freed before the new is made, and used again
    layer._parameters[target.name] = nn.Parameter(weight, requires_grad=False)
    try:
        layer.quant_method.process_weights_after_loading(layer)
    finally:
        layer._parameters[target.name] = kept  # not the segment's: that is the policy's own memory


@contextmanager
def _packing_seen(targets: Sequence[Target], segment: Segment) -> Iterator[dict[int, bool]]:
    """Within it, whether each packed target was given the segment's weight, by the layer's id."""
    seen: dict[int, bool] = {}
    methods = []
    for target in targets:
        if target.packed:
            method = target.layer.quant_method
            method.process_weights_after_loading = _compare(method, target, segment, seen)
            methods.append(method)
    try:
        yield seen
    finally:
        for method in methods:
            vars(method).pop("process_weights_after_loading", None)


def _compare(method: Any, target: Target, segment: Segment, seen: dict[int, bool]) -> Any:
    process = method.process_weights_after_loading

    def process_and_compare(layer: nn.Module) -> None:
        seen[id(layer)] = torch.equal(layer._parameters[target.name], segment.rows(target.sources))
        process(layer)

    return process_and_compare


def _proven(target: Target, segment: Segment, seen: dict[int, bool]) -> bool:
    if target.packed:
        return seen.get(id(target.layer), False)
    rows = segment.rows(target.sources)
    held = target.parameter[: len(rows)]
    return held.shape == rows.shape and torch.equal(held, rows.to(held.dtype))


def repack_tied_head(model: nn.Module) -> None:
    """Make a tied output head compute with the new embedding.

    On CPU the head multiplies by a packed copy of the shared weight. Checkpoints of tied models hold no
    head, so vLLM 0.29's reload never packs it again and would sample from new layers under an old head.
    """
    head, embedding = getattr(model, "lm_head", None), getattr(model, "model", model)
    embedding = getattr(embedding, "embed_tokens", None)
    if head is None or embedding is None or head is embedding or head.weight is not embedding.weight:
        return
    vars(head).pop("_already_called_process_weights_after_loading", None)
    _repack(head)


def _repack(head: nn.Module) -> None:
    head.cpu_linear = None
    head.quant_method.process_weights_after_loading(head)
