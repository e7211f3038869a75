"""A piece of memory that several processes of one node map, with named tensors in it.

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
from itertools import pairwise

import torch

_ALIGNMENT = 64  # bytes; a cache line


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies: `offset` in bytes, `dtype` by its name in torch."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type itself."""
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype), self.dtype
        return found

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.offset + math.prod(self.shape) * self.torch_dtype.itemsize


def lay_out(shapes: Iterable[tuple[str, torch.dtype, tuple[int, ...]]]) -> list[Slot]:
    """Slots one after the other, in the order of (name, type, shape)."""
    slots: list[Slot] = []
    for name, dtype, shape in shapes:
        end = slots[-1].end if slots else 0
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        slots.append(Slot(name, str(dtype).removeprefix("torch."), tuple(shape), offset))
    return slots


class Segment:
    """Mapped memory with the tensors of its slots; they live as long as any of them is referred to.

    Args:
        slots: what lies where.
        path: of a segment that another process made, to be read only; None makes a new one.

    Raises:
        ValueError: no process of this machine has such a segment.
    """

    def __init__(self, slots: Sequence[Slot], path: str | None = None) -> None:
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
        """The tensor of a slot: a view, no copy."""
        slot = self.slots[name]
        return self._view(slot, slot.shape)

    def rows(self, names: Sequence[str]) -> torch.Tensor:
        """Tensors on top of each other: a view where they lie so, else a copy."""
        slots = [self.slots[name] for name in names]
        adjacent = all(a.end == b.offset for a, b in pairwise(slots))
        if not adjacent or len({(slot.dtype, slot.shape[1:]) for slot in slots}) > 1:
            return torch.cat([self.tensor(name) for name in names])
        shape = (sum(slot.shape[0] for slot in slots), *slots[0].shape[1:])
        return self._view(slots[0], shape)

    def _view(self, first: Slot, shape: tuple[int, ...]) -> torch.Tensor:
        # Each view has a storage of its own: writers of checkpoints take tensors of one storage for tied.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the memory of others is read-only
            flat = torch.frombuffer(
                self._memory, dtype=first.torch_dtype, count=math.prod(shape), offset=first.offset
            )
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
