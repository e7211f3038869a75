"""vLLM's end of the shared-memory weight transfer. Imported by vLLM processes only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from ultramed_rl.actors.weight_sync import SharedTensors


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: each update says where its weights lie."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """The path of memory with all weights, and these. Nobody writes there during the update."""

    path: str
    names: list[str]
    dtype_names: list[str]
    shapes: list[Any]


class SharedMemoryWeightTransferEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Reads weights where the policy has them, by vLLM's own layer-wise reload. An update is one piece, all of it in
    `receive_weights`, so that a sender that dies leaves none half done."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo
    shared: SharedTensors | None = None

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """No rendezvous; but the sender is another one, whose path may be one that an earlier one had."""
        self.shared = None

    def start_weight_update(self) -> None:
        """Nothing to begin."""

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        if self.shared is None or self.shared.path != update_info.path:
            types = [getattr(torch, name) for name in update_info.dtype_names]
            shapes = list(zip(update_info.names, types, update_info.shapes, strict=True))
            self.shared = SharedTensors(shapes, update_info.path)
        shared = self.shared
        initialize_layerwise_reload(self.model)
        self.model.load_weights((name, shared.tensor(name)) for name in shared.shapes)
        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_head(self.model)

    def finish_weight_update(self) -> None:
        """Nothing to end."""

    def shutdown(self) -> None:
        self.shared = None


def repack_tied_head(model: nn.Module) -> None:
    """Make a tied output head compute with the new embedding.

    On CPU the head multiplies by a packed copy of the shared weight. Checkpoints of tied models hold no
    head, so vLLM 0.29's reload never packs it again and would sample from new layers under an old head.
    """
    head: Any = getattr(model, "lm_head", None)
    embedding = getattr(getattr(model, "model", model), "embed_tokens", None)
    if head is None or embedding is None or head is embedding or head.weight is not embedding.weight:
        return
    vars(head).pop("_already_called_process_weights_after_loading", None)
    head.cpu_linear = None
    head.quant_method.process_weights_after_loading(head)
