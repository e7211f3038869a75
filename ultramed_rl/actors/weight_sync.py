"""A policy rank's end of the way of the weights into vLLM's native weight-transfer engines.

    policy ranks --(nccl: disaggregated GPUs | ipc: same GPUs | shared_memory: CPU)--> vLLM workers

Ranks describe a bucket of weights, and push it while engines pull it; `workers/policy.py` starts both. By NCCL the
weights go while both are called; by the other ways they lie ready when they are described, and a push is nothing.

vLLM's own `nccl` and `ipc` engines serve GPUs. For CPU a `shared_memory` engine is registered through the
`vllm.general_plugins` entry point, so that it exists in every vLLM process.
"""

from __future__ import annotations

import math
import mmap
import os
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from ultramed_rl.actors.engine_state import EngineState
from ultramed_rl.config.models import LoRA

SHARED_MEMORY, ADAPTER = "shared_memory", "adapter"
Shapes = Sequence[tuple[str, torch.dtype, tuple[int, ...]]]  # of weights, by name
_CACHE_LINE = 64  # bytes


def register_engines() -> None:
    """Make `shared_memory` known to vLLM. Called by vLLM in each of its processes (plugin entry point)."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if SHARED_MEMORY not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            SHARED_MEMORY, "ultramed_rl.actors.shared_memory", "SharedMemoryWeightTransferEngine"
        )


def transfer_backend(device: str, layout: str, lora: LoRA | None = None) -> str:
    """The transfer engine that fits the devices; for adapters alone none of vLLM's."""
    if lora is not None and lora.sync == "adapter":
        return ADAPTER
    if device == "cpu":
        return SHARED_MEMORY
    return "ipc" if layout == "colocated" else "nccl"


@dataclass(frozen=True)
class WeightBucket:
    """Weights that engines take at once. Between the first and the last of a sync an engine holds no complete policy."""

    info: dict[str, Any]  # the update info of vLLM's engine
    bytes: int  # of the weights
    first: bool = True
    last: bool = True


def join_buckets(buckets: Sequence[WeightBucket]) -> WeightBucket:
    """One bucket as all ranks describe it: by `ipc` each has a handle to the same weights on its own GPU."""
    bucket = buckets[0]
    if "ipc_handles" not in bucket.info:
        return bucket
    handles = {uuid: handle for b in buckets for uuid, handle in b.info["ipc_handles"].items()}
    return replace(bucket, info=bucket.info | {"ipc_handles": handles})


class Sender:
    """A way to so many rollout engines, on which rank 0 sends and all ranks gather the weights together."""

    def __init__(self, engine: EngineState, engines: int, tensor_parallel: int) -> None:
        self.engine, self.is_sender = engine, dist.get_rank() == 0
        self.shapes = engine.weight_shapes()
        self.sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in self.shapes]
        names, dtypes, shapes = map(list, zip(*self.shapes, strict=True))
        types = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        # As vLLM's update infos say it.
        self.info: dict[str, Any] = {"names": names, "dtype_names": types, "shapes": shapes}
        # What each engine is told before the first bucket: the init info of vLLM's engine.
        self.init_infos: list[dict[str, Any]] = [{} for _ in range(engines)]
        self._described: Iterator[WeightBucket] = iter(())

    def meet(self) -> None:
        """What engines wait for when they are told their init infos."""

    def describe(self, first: bool) -> WeightBucket:
        """The next bucket, or the `first`; engines have let go of the one before. Collective."""
        if first:
            self._described = self.buckets()
        return next(self._described)

    def buckets(self) -> Iterator[WeightBucket]:
        """All buckets of a sync. Collective."""
        raise NotImplementedError

    def push(self) -> None:
        """What engines wait for when they pull a bucket. Collective."""

    def close(self) -> None:
        """Give back what a sync took, whether it was finished or not."""
        self._described = iter(())

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights, whole, one at a time, as engines are told of them. Collective."""
        for (name, tensor), shape in zip(self.engine.weights(), self.shapes, strict=True):
            assert (name, tensor.dtype, tuple(tensor.shape)) == shape, f"{name}: described as {shape}"
            yield name, tensor


class SharedTensors:
    """Tensors of these names, types and shapes in memory that processes of one node map: new memory, or what another process
    has at `path`, to be read only.

    The memory has no file: it is a memfd, which other processes open through its owner's /proc entry. It needs no room in
    /dev/shm, and goes when the last process that maps it ends, however it ends. Here it lives as long as any of its tensors
    is referred to.

    Raises:
        ValueError: no process of this machine has such memory.
    """

    def __init__(self, shapes: Shapes, path: str | None = None) -> None:
        self.offsets: dict[str, int] = {}  # in bytes
        self.shapes = {name: (dtype, tuple(shape)) for name, dtype, shape in shapes}
        size = 0
        for name, (dtype, shape) in self.shapes.items():
            self.offsets[name] = -(-size // _CACHE_LINE) * _CACHE_LINE
            size = self.offsets[name] + math.prod(shape) * dtype.itemsize
        if path is None:
            file = os.memfd_create("ultramed_rl-weights", os.MFD_CLOEXEC)
            weakref.finalize(self, os.close, file)
            os.ftruncate(file, max(1, size))
            self.path = f"/proc/{os.getpid()}/fd/{file}"
            self._memory = mmap.mmap(file, max(1, size))
        else:
            self.path = path
            self._memory = _map_other(path, max(1, size))
        with suppress(OSError):  # a kernel without huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor of this name: a view, no copy. Each has a storage of its own: writers of checkpoints take tensors of one
        storage for tied."""
        (dtype, shape), offset = self.shapes[name], self.offsets[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the memory of others is read-only
            flat = torch.frombuffer(self._memory, dtype=dtype, count=math.prod(shape), offset=offset)
        return flat.view(shape)


def _map_other(path: str, size: int) -> mmap.mmap:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ValueError(
            f"weights at {path}: cannot be mapped ({error.strerror}); policy and engines on CPU must share one "
            "machine and one process namespace: use cluster.nodes=1, or one container a node"
        ) from None
    try:
        return mmap.mmap(file, size, prot=mmap.PROT_READ)
    finally:
        os.close(file)


class SharedMemorySender(Sender):
    """Keeps the policy's weights in memory that every engine on the node maps, so that they are sent as they lie.

    Weights that own their storage live there from now on. Others (flattened by ZeRO, merged from adapters) are
    copied there for each sync.
    """

    def __init__(self, engine: EngineState, engines: int, tensor_parallel: int) -> None:
        super().__init__(engine, engines, tensor_parallel)
        if not self.is_sender:
            return
        self.shared = SharedTensors(self.shapes)
        self.info["path"] = self.shared.path
        # The memory becomes the storage of every parameter that is sent as it is and shares its own with none.
        for name, parameter in engine.module.lm.named_parameters():
            old = parameter.data
            own = old.untyped_storage().nbytes() == old.numel() * old.element_size() and old.is_contiguous()
            if own and self.shared.shapes.get(name) == (old.dtype, tuple(old.shape)):
                parameter.data = self.shared.tensor(name).copy_(old)

    def buckets(self) -> Iterator[WeightBucket]:
        for name, tensor in self.weights():
            if self.is_sender and tensor.data_ptr() != (place := self.shared.tensor(name)).data_ptr():
                place.copy_(tensor)
        yield WeightBucket(self.info, sum(self.sizes))


class IpcSender(Sender):
    """Each rank copies the weights, as many at once as there is room for, into a buffer of its GPU, out of which the
    engine's process on that GPU reads them."""

    def __init__(self, engine: EngineState, engines: int, tensor_parallel: int) -> None:
        from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

        super().__init__(engine, engines, tensor_parallel)
        self.init_infos = [{"packed": True} for _ in range(engines)]
        self.buffer_bytes = max(DEFAULT_PACKED_BUFFER_SIZE_BYTES, *self.sizes)

    def buckets(self) -> Iterator[WeightBucket]:
        from vllm.distributed.weight_transfer.packed_tensor import packed_ipc_producer

        gpu, sent = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid), 0
        for chunk in packed_ipc_producer(self.weights(), gpu, lambda item: item[1], self.buffer_bytes):
            info = dict(vars(chunk))
            info["ipc_handles"] = info.pop("ipc_handle")
            first, sent = sent == 0, sent + len(chunk.names)
            yield WeightBucket(info, sum(chunk.tensor_sizes), first, last=sent == len(self.shapes))

    def close(self) -> None:
        super().close()
        torch.cuda.ipc_collect()


class NcclSender(Sender):
    """Rank 0 broadcasts all weights, in one bucket, to the engines' processes, which come after it in their group."""

    def __init__(self, engine: EngineState, engines: int, tensor_parallel: int) -> None:
        import ray
        from vllm.utils.network_utils import get_open_port

        super().__init__(engine, engines, tensor_parallel)
        group = {
            "master_address": ray.util.get_node_ip_address(),
            "master_port": get_open_port(),
            "world_size": 1 + engines * tensor_parallel,
            "packed": True,
        }
        self.init_infos = [group | {"rank_offset": 1 + i * tensor_parallel} for i in range(engines)]

    def meet(self) -> None:
        from vllm.distributed.weight_transfer.nccl_common import trainer_init

        if self.is_sender:
            self.group = trainer_init(self.init_infos[0])

    def buckets(self) -> Iterator[WeightBucket]:
        yield WeightBucket(self.info, sum(self.sizes))

    def push(self) -> None:
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        if self.is_sender:
            packed_nccl_broadcast_producer(self.weights(), self.group, 0, lambda item: item[1])
        else:
            for _ in self.weights():
                pass
        torch.cuda.current_stream().synchronize()


class AdapterSender(Sender):
    """Sends a LoRA policy's adapters alone, by Ray: engines hold the base model."""

    def buckets(self) -> Iterator[WeightBucket]:
        from safetensors.torch import save

        state, config = self.engine.adapters(), self.engine.module.lm.lora_config
        size = sum(tensor.nbytes for tensor in state.values())
        about = {
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "target_modules": sorted(config.target_modules),
        }
        yield WeightBucket({"adapter": save(state), "config": about} if self.is_sender else {}, size)


SENDERS: dict[str, type[Sender]] = {
    SHARED_MEMORY: SharedMemorySender,
    "ipc": IpcSender,
    "nccl": NcclSender,
    ADAPTER: AdapterSender,
}
