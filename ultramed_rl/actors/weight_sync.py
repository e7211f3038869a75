"""Policy weights to every rollout engine, through vLLM's native weight-transfer API.

    policy ranks --(nccl: disaggregated GPUs | ipc: same GPUs | shared_memory: CPU)--> vLLM workers

vLLM's own `nccl` and `ipc` engines serve GPUs. For CPU a `shared_memory` engine is registered through the
`vllm.general_plugins` entry point, so that it exists in every vLLM process. The control plane is the same
for all three: init, start_weight_update, update_weights, finish_weight_update(version).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, Protocol

from ultramed_rl.actors.engine import Engine
from ultramed_rl.actors.segment import Segment, lay_out

SHARED_MEMORY = "shared_memory"


def register_engines() -> None:
    """Make `shared_memory` known to vLLM. Called by vLLM in each of its processes (plugin entry point)."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if SHARED_MEMORY not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            SHARED_MEMORY, "ultramed_rl.actors.shared_memory", "SharedMemoryWeightTransferEngine"
        )


def transfer_backend(device: str, layout: str) -> str:
    """The transfer engine that fits the devices."""
    if device == "cpu":
        return SHARED_MEMORY
    return "ipc" if layout == "colocated" else "nccl"


class RolloutClient:
    """vLLM's weight-sync control plane over a list of rollout actors."""

    def __init__(self, engines: Sequence[Any], tensor_parallel: int) -> None:
        self.engines, self.tensor_parallel = engines, tensor_parallel

    def _all(self, method: str, *arguments: Sequence[Any]) -> None:
        import ray

        ray.get([getattr(e, method).remote(*a) for e, *a in zip(self.engines, *arguments, strict=True)])

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        infos = [dict(init_info) for _ in self.engines]
        for index, info in enumerate(infos):
            if "rank_offset" in info:
                # vLLM counts ranks within one engine; ours join one NCCL group after the trainer's rank 0.
                info["rank_offset"] = 1 + index * self.tensor_parallel
        self._all("init_weight_transfer", infos)

    def start_weight_update(self) -> None:
        self._all("start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._all("update_weights", [update_info] * len(self.engines))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update", [weight_version] * len(self.engines))

    def set_version(self, version: int) -> None:
        """Record the policy version that the engines now hold."""
        self._all("set_policy_version", [version] * len(self.engines))


class Sender(Protocol):
    """One rank's end of the transfer."""

    def send(self, version: int) -> dict[str, float]:
        """Send everything; returns seconds and bytes. Collective."""
        ...


def make_sender(backend: str, engine: Engine, engines: Sequence[Any], tensor_parallel: int) -> Sender:
    """Open a transfer of this backend. Collective."""
    client = RolloutClient(engines, tensor_parallel)
    if backend == SHARED_MEMORY:
        return SharedMemorySender(engine, client)
    return NativeSender(backend, engine, client)


class SharedMemorySender:
    """Keeps the policy's weights in memory that every engine on the node maps, so that they are sent as they lie.

    Weights that own their storage live there from now on. Others (flattened by ZeRO, merged from adapters) are
    copied there by each `send`.
    """

    def __init__(self, engine: Engine, client: RolloutClient) -> None:
        import torch.distributed as dist

        self.engine, self.client = engine, client
        self.is_sender = dist.get_rank() == 0
        if self.is_sender:
            self.slots = lay_out(engine.weight_shapes())
            self.segment = Segment(self.slots)
            self._move_in()
            self.client.init_weight_transfer_engine({})

    def send(self, version: int) -> dict[str, float]:
        """Besides seconds and bytes: the seconds of each part."""
        import torch.distributed as dist

        laps = _Laps()
        self._fill()
        laps.end("fill")
        try:
            if self.is_sender:
                self.client.start_weight_update()
                laps.end("start")
                self.client.update_weights(self._update_info())
                laps.end("load")
                self.client.finish_weight_update(str(version))
                laps.end("finish")
                self.client.set_version(version)
                laps.end("version")
        finally:
            dist.barrier()  # after an error too: the others wait here
        size = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in self.engine.weight_shapes())
        return {"seconds": laps.total(), "bytes": float(size), **laps.seconds}

    def _update_info(self) -> dict[str, Any]:
        return {"path": self.segment.path, "slots": [astuple(slot) for slot in self.slots]}

    def _fill(self) -> None:
        """Copy what doesn't lie in the segment already. Collective."""
        for name, tensor in self.engine.weights():
            if self.is_sender:
                place = self.segment.tensor(name)
                if tensor.data_ptr() != place.data_ptr():
                    place.copy_(tensor)

    def _move_in(self) -> None:
        """Make the segment the storage of every parameter that is sent as it is and shares its own with none."""
        for name, parameter in self.engine.module.lm.named_parameters():
            slot, old = self.segment.slots.get(name), parameter.data
            own = old.untyped_storage().nbytes() == old.numel() * old.element_size() and old.is_contiguous()
            if slot is not None and own and (old.shape, old.dtype) == (slot.shape, slot.torch_dtype):
                parameter.data = self.segment.tensor(name).copy_(old)


class _Laps:
    """Seconds of the parts of something, as `seconds_NAME`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = self._last = time.perf_counter()

    def end(self, name: str) -> None:
        """The part that began with the one before's end is over."""
        now = time.perf_counter()
        self.seconds[f"seconds_{name}"], self._last = now - self._last, now

    def total(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started


class NativeSender:
    """vLLM's own `nccl` or `ipc` trainer engine over our weights."""

    def __init__(self, backend: str, engine: Engine, client: RolloutClient) -> None:
        import torch.distributed as dist
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        self.client, self.is_sender = client, dist.get_rank() == 0
        sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in engine.weight_shapes()]
        self.bytes = sum(sizes)
        workers = len(client.engines) * client.tensor_parallel
        self.trainer = WeightTransferTrainerFactory.trainer_init(
            _init_info(backend, dist.get_rank(), workers, max(sizes)), client=client, source=_source(engine)
        )

    def send(self, version: int) -> dict[str, float]:
        started = time.perf_counter()
        self.trainer.send_weights()
        if self.is_sender:
            self.client.set_version(version)
        return {"seconds": time.perf_counter() - started, "bytes": float(self.bytes)}


def _init_info(backend: str, rank: int, workers: int, largest: int) -> Any:
    """`largest`: bytes of the largest weight, which a packed buffer of vLLM's `ipc` must hold."""
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
        from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

        size = max(largest, DEFAULT_PACKED_BUFFER_SIZE_BYTES)
        return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=size)
    import ray
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_open_port

    return NCCLTrainerInitInfo(
        rank=rank,
        master_address=ray.util.get_node_ip_address(),
        master_port=get_open_port(),
        world_size=1 + workers,
    )


def _source(engine: Engine) -> Any:
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class EngineSource(WeightSource):
        """The policy's weights, gathered one at a time under ZeRO-3."""

        def metadata(self) -> list[Any]:
            return [ParamMeta(*entry) for entry in engine.weight_shapes()]

        def __iter__(self) -> Any:
            return engine.weights()

    return EngineSource()
