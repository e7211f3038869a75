"""Named tensors in memory that several processes of one node map.

The memory has no file: it is a memfd, which other processes open through its owner's /proc entry. It needs no room
in /dev/shm, and goes when the last process that maps it ends, however it ends.
"""

from __future__ import annotations

import math
import mmap
import os
import warnings
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

_ALIGNMENT = 64  # bytes; a cache line


@dataclass(frozen=True)
class TensorSlot:
    """Where a tensor lies: `offset` in bytes, `dtype` by its name in torch."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type itself."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype), self.dtype
        return dtype

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.offset + math.prod(self.shape) * self.torch_dtype.itemsize


def lay_out(shapes: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> list[TensorSlot]:
    """Slots one after the other, in the order of (name, type, shape)."""
    slots: list[TensorSlot] = []
    for name, dtype, shape in shapes:
        end = slots[-1].end if slots else 0
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        slots.append(TensorSlot(name, str(dtype).removeprefix("torch."), tuple(shape), offset))
    return slots


class SharedTensors:
    """The tensors of these slots, in the memory that another process has at `path`, to be read only, or in new memory; it
    lives as long as any of them is referred to. Raises ValueError: no process of this machine has such memory."""

    def __init__(self, slots: Sequence[TensorSlot], path: str | None = None) -> None:
        self.slots = {slot.name: slot for slot in slots}
        size = max(1, *(slot.end for slot in slots))
        if path is None:
            file = os.memfd_create("ultramed_rl-weights", os.MFD_CLOEXEC)
            weakref.finalize(self, os.close, file)
            os.ftruncate(file, size)
            self.path = f"/proc/{os.getpid()}/fd/{file}"
            self._memory = mmap.mmap(file, size)
        else:
            self.path = path
            self._memory = _map_other(path, size)
        with suppress(OSError):  # a kernel without huge pages
            self._memory.madvise(mmap.MADV_HUGEPAGE)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor of a slot: a view, no copy. Each has a storage of its own: writers of checkpoints take tensors of
        one storage for tied."""
        slot = self.slots[name]
        count = math.prod(slot.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the memory of others is read-only
            flat = torch.frombuffer(self._memory, dtype=slot.torch_dtype, count=count, offset=slot.offset)
        return flat.view(slot.shape)


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
