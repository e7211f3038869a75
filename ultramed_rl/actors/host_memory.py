"""Where tensors wait while other roles have the GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class HostMemory:
    """Pinned host memory for tensors that leave the GPU and come back, taken when they first leave and kept: to lock pages
    takes several times as long as to copy them.

    A tensor is known by its place, so tensors come in the same order each time; later ones may be added.
    """

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []

    def store(self, tensors: Sequence[torch.Tensor], *, changed: bool = True) -> None:
        """Move tensors off the GPU. Ones that have not `changed` since they were stored are not copied again."""
        self._buffers += [pinned_like(tensor) for tensor in tensors[len(self._buffers) :]]
        for tensor, buffer in zip(tensors, self._buffers, strict=True):
            assert (tensor.shape, tensor.dtype) == (buffer.shape, buffer.dtype), "tensors in another order"
            if changed:
                buffer.copy_(tensor.detach(), non_blocking=True)
        _finish()
        for tensor, buffer in zip(tensors, self._buffers, strict=True):
            tensor.data = buffer

    def restore(self, tensors: Sequence[torch.Tensor], device: torch.device | str) -> None:
        """Undo `store`."""
        for tensor in tensors:
            tensor.data = tensor.data.to(device, non_blocking=True, copy=True)
        _finish()


def pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    """Locked in place: torch's own pinned memory is rounded up to a power of two."""
    buffer = torch.empty_like(tensor, device="cpu")
    runtime = torch.cuda.cudart()
    torch.cuda.check_error(runtime.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0))
    return buffer


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
