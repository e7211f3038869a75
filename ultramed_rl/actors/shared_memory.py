"""vLLM's end of the shared-memory weight transfer. Imported by vLLM processes only."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: the file says what it holds."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """A safetensors file in shared memory, complete when this arrives."""

    path: str


class SharedMemoryWeightTransferEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Maps the file and loads it layer by layer, repacking CPU weights as at start-up."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """No rendezvous."""

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        self.model.load_weights(load_file(update_info.path).items())

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Nothing is held between updates."""


def repack_tied_head(model: torch.nn.Module) -> None:
    """Make a tied output head compute with the new embedding.

    On CPU the head multiplies by a packed copy of the shared weight. Checkpoints of tied models hold no
    head, so vLLM 0.29's reload never packs it again and would sample from new layers under an old head.
    """
    head, embedding = getattr(model, "lm_head", None), getattr(model, "model", model)
    embedding = getattr(embedding, "embed_tokens", None)
    if head is None or embedding is None or head is embedding or head.weight is not embedding.weight:
        return
    vars(head).pop("_already_called_process_weights_after_loading", None)
    head.quant_method.process_weights_after_loading(head)
