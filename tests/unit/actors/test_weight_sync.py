"""The policy's weights through vLLM's own ends of the GPU ways, on tensors in host memory."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer import packed_tensor
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo, IPCWeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_engine import (
    NCCLWeightTransferInitInfo,
    NCCLWeightTransferUpdateInfo,
)

from ultramed_rl.actors import weight_sync
from ultramed_rl.actors.engine import Engine
from ultramed_rl.actors.weight_sync import IpcSender, NcclSender, WeightBucket, join_buckets

WEIGHTS = {
    "embedding": torch.arange(24, dtype=torch.float32).view(6, 4),
    "turned": torch.arange(12, dtype=torch.bfloat16).view(3, 4).T,
    "bias": torch.tensor([0.5, -0.5], dtype=torch.float64),
    "head": torch.arange(20, dtype=torch.float32).view(5, 4) - 10,
}
ENGINE = cast(
    Engine,
    SimpleNamespace(
        weights=lambda: iter(WEIGHTS.items()),
        weight_shapes=lambda: [(name, w.dtype, tuple(w.shape)) for name, w in WEIGHTS.items()],
    ),
)


class HostTorch:
    """torch, whose GPU is the host."""

    gpu = ""
    accelerator = SimpleNamespace(current_device_index=lambda: 0)
    cuda = SimpleNamespace(
        current_device=lambda: 0,
        current_stream=lambda: SimpleNamespace(synchronize=lambda: None),
        get_device_properties=lambda _: SimpleNamespace(uuid=HostTorch.gpu),
        ipc_collect=lambda: None,
        stream=lambda _: nullcontext(),
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *size: Any, device: str = "", **options: Any) -> torch.Tensor:
        return torch.empty(*size, **options)


@pytest.fixture
def buffers(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Those that were exported to other processes; a handle is a buffer's place here."""
    exported: list[torch.Tensor] = []

    def export(buffer: torch.Tensor) -> tuple[None, tuple[int, ...]]:
        exported.append(buffer)
        return None, (len(exported) - 1,) * 8

    for module in (packed_tensor, weight_sync):
        monkeypatch.setattr(module, "torch", HostTorch())
    monkeypatch.setattr(packed_tensor, "reduce_tensor", export)
    streams = (SimpleNamespace(synchronize=lambda: None),) * 2
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda *_: streams)
    return exported


def check_received(found: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(WEIGHTS)
    for name, weight in WEIGHTS.items():
        assert found[name].dtype == weight.dtype and torch.equal(found[name], weight)


@pytest.mark.parametrize(("largest", "size"), [(2**20, 2**30), (2_101_346_304, 2_101_346_304)])
def test_a_packed_buffer_holds_the_largest_weight(
    largest: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding of a 70B Llama is 128256 x 8192 x 2 bytes, over the 2**30 that vLLM takes by itself."""
    shapes = [("small", torch.uint8, (3,)), ("large", torch.uint8, (largest,))]
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    sender = IpcSender(cast(Engine, SimpleNamespace(weight_shapes=lambda: shapes)), 8, 1)
    assert sender.buffer_bytes == size
    assert [IPCWeightTransferInitInfo(**info).packed for info in sender.init_infos] == [True] * 8


def test_by_ipc_each_gpu_reads_its_own_buffer(
    buffers: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    senders = []
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        senders.append(IpcSender(ENGINE, engines=2, tensor_parallel=1))
        senders[
            -1
        ].buffer_bytes = 128  # the embedding's 96 and the next one's 24, then the bias's 16 and the head's 80
    described(senders, first=True)  # of a sync that was given up
    buckets = [described(senders, first=True)]
    taken = [received(buckets[0], gpu, buffers) for gpu in (0, 1)]
    while not buckets[-1].last:
        buckets.append(described(senders, first=False))
        for gpu in (0, 1):
            taken[gpu] |= received(buckets[-1], gpu, buffers)
    assert [(bucket.first, bucket.bytes) for bucket in buckets] == [(True, 120), (False, 96)]
    for found in taken:
        check_received(found)
    for sender in senders:
        sender.close()


def described(senders: list[IpcSender], first: bool) -> WeightBucket:
    buckets = []
    for gpu, sender in enumerate(senders):
        HostTorch.gpu = f"gpu-{gpu}"
        buckets.append(sender.describe(first))
    return join_buckets(buckets)


def received(bucket: WeightBucket, gpu: int, buffers: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What vLLM reads on a GPU, out of this GPU's buffer."""
    HostTorch.gpu = f"gpu-{gpu}"
    info = IPCWeightTransferUpdateInfo(**bucket.info)
    importer = SimpleNamespace(rebuild=lambda arguments: buffers[arguments[0]])
    handles = cast(dict[str, Any], info.ipc_handles)
    assert handles.keys() == {"gpu-0", "gpu-1"} and handles["gpu-0"] != handles["gpu-1"]
    sizes = cast(list[int], info.tensor_sizes)
    return dict(
        packed_tensor.packed_ipc_consumer(
            handles, info.names, info.shapes, info.dtype_names, sizes, 0, cast(Any, importer)
        )
    )


def test_by_nccl_all_weights_go_in_the_order_that_engines_are_told(
    buffers: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: deque[torch.Tensor] = deque()
    senders = []
    for rank in (0, 1):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        senders.append(NcclSender(ENGINE, engines=3, tensor_parallel=2))
    senders[0].group = SimpleNamespace(broadcast=lambda tensor, src: sent.append(tensor.clone()))
    bucket = join_buckets([sender.describe(first=True) for sender in senders])
    assert bucket.first and bucket.last and bucket.bytes == 216
    for sender in senders:
        sender.push()

    told = [NCCLWeightTransferInitInfo(**info) for info in senders[0].init_infos]
    assert [info.rank_offset for info in told] == [1, 3, 5] and {info.world_size for info in told} == {7}
    assert all(info.packed for info in told)
    update, found = NCCLWeightTransferUpdateInfo(**bucket.info), dict[str, torch.Tensor]()
    described = zip(update.names, update.shapes, update.dtype_names, strict=True)
    packed_tensor.packed_nccl_broadcast_consumer(
        iter((name, (shape, getattr(torch, dtype))) for name, shape, dtype in described),
        SimpleNamespace(broadcast=lambda tensor, src: tensor.copy_(sent.popleft())),
        0,
        found.update,
        told[0].packed_buffer_size_bytes,
        told[0].packed_num_buffers,
        "cpu",
    )
    assert not sent
    check_received(found)


def test_weights_that_are_not_as_described_are_not_sent(
    buffers: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    sender = NcclSender(ENGINE, engines=1, tensor_parallel=1)
    sender.shapes[1] = ("turned", torch.float32, (4, 3))
    with pytest.raises(AssertionError, match="turned"):
        sender.push()
