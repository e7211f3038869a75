"""vLLM's end of the shared-memory weight transfer. Imported by vLLM processes only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from ultramed_rl.actors.direct_load import DirectLoad, load_by_vllm
from ultramed_rl.actors.segment import Segment, Slot


@dataclass
class SharedMemoryInitInfo(WeightTransferInitInfo):
    """Nothing to agree on: each update says where its weights lie."""


@dataclass
class SharedMemoryUpdateInfo(WeightTransferUpdateInfo):
    """A segment with all weights: its path, and the fields of its slots. Nobody writes there during the update."""

    path: str
    slots: list[Any]


class SharedMemoryWeightTransferEngine(WeightTransferEngine[SharedMemoryInitInfo, SharedMemoryUpdateInfo]):
    """Reads weights where the policy has them. The first update goes through vLLM's own loader, which shows what
    becomes of each weight; later ones go straight into the layers."""

    init_info_cls = SharedMemoryInitInfo
    update_info_cls = SharedMemoryUpdateInfo
    segment: Segment | None = None
    direct: DirectLoad | None = None

    def init_transfer_engine(self, init_info: SharedMemoryInitInfo) -> None:
        """No rendezvous; but the sender is another one, whose path may be one that an earlier one had."""
        self.segment = None

    def start_weight_update(self) -> None:
        """An update is one piece: `receive_weights` does it all."""

    def receive_weights(self, update_info: SharedMemoryUpdateInfo) -> None:
        segment = self._map(update_info)
        if self.direct is not None and self.direct.fits(segment):
            self.direct.load(segment)
        else:
            self.direct = load_by_vllm(self.model, self.model_config, segment)

    def _map(self, update_info: SharedMemoryUpdateInfo) -> Segment:
        slots = [Slot(name, dtype, tuple(shape), offset) for name, dtype, shape, offset in update_info.slots]
        if self.segment is None or self.segment.path != update_info.path:
            self.segment = Segment(slots, update_info.path)
        return self.segment

    def finish_weight_update(self) -> None:
        """The weights are in their layers already."""

    def shutdown(self) -> None:
        self.segment = self.direct = None
