"""What leaves the GPU and comes back is the same, in host memory that is taken once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ultramed_rl.actors import host_memory
from ultramed_rl.actors.host_memory import HostMemory
from ultramed_rl.actors.scorer import RewardWorker


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The host memory that was taken."""
    taken: list[torch.Tensor] = []

    def pinned_like(tensor: torch.Tensor) -> torch.Tensor:
        taken.append(torch.empty_like(tensor))
        return taken[-1]

    monkeypatch.setattr(host_memory, "pinned_like", pinned_like)
    return taken


def test_tensors_come_back_and_more_may_follow(pinned: list[torch.Tensor]) -> None:
    host, tensors = HostMemory(), [torch.arange(6.0).view(2, 3).t(), torch.ones(2, dtype=torch.bfloat16)]
    for turn in range(3):
        wanted = [tensor.clone() for tensor in tensors]
        host.store(tensors)
        assert [t.data_ptr() for t in tensors] == [buffer.data_ptr() for buffer in pinned]
        host.restore(tensors, "cpu")
        assert not {t.data_ptr() for t in tensors} & {buffer.data_ptr() for buffer in pinned}
        assert all(torch.equal(*both) for both in zip(tensors, wanted, strict=True))
        tensors[0] += turn
        tensors += [torch.full((4,), 7)] if turn == 1 else []
    assert len(pinned) == 3
    with pytest.raises(AssertionError):
        host.store([tensors[1], tensors[0], tensors[2]])


def test_frozen_weights_are_copied_off_the_gpu_once(
    pinned: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each model that a worker becomes; a later one of the same shape has the first one's memory."""
    worker: Any = RewardWorker(0, "cuda", "float32", 512)
    monkeypatch.setattr(HostMemory, "restore", lambda host, tensors, device: restore(host, tensors, "cpu"))
    copies: list[bool] = []

    def store(host: HostMemory, tensors: Any, *, changed: bool) -> None:
        copies.append(changed)
        keep(host, tensors, changed=changed)

    monkeypatch.setattr(HostMemory, "store", store)
    for value in (1.0, 2.0):
        worker.model, worker._stored = nn.Linear(2, 3), False
        nn.init.constant_(worker.model.weight, value)
        for _ in range(3):
            worker.offload()
            worker.reload()
            assert (worker.model.weight == value).all()
    assert copies == [True, False, False] * 2 and len(pinned) == 2


keep, restore = HostMemory.store, HostMemory.restore
