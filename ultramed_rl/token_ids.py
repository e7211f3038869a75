"""Token ids as one block of int32: a sequence that processes and files pass on without touching its numbers.

A pickled tuple of 400 ids is 400 objects to write and 400 to make; this is one copy of 1,600 bytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

_SIZE = array("i").itemsize
assert _SIZE == 4, "an int of 32 bits"


def pack_ids(ids: Iterable[int]) -> bytes:
    """Token ids as int32 in the machine's order.

    Raises:
        OverflowError: an id that 32 bits don't hold.
    """
    return ids.packed if isinstance(ids, TokenIds) else array("i", ids).tobytes()


class TokenIds(Sequence[int]):
    """An immutable sequence of token ids; equal to any tuple or list of the same numbers.

    Raises:
        OverflowError: an id that 32 bits don't hold.
    """

    __slots__ = ("packed",)

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self.packed: bytes = pack_ids(ids)

    @classmethod
    def of_bytes(cls, packed: bytes) -> TokenIds:
        """Of int32 in the machine's order."""
        made = cls.__new__(cls)
        made.packed = packed
        return made

    def _numbers(self) -> memoryview:
        return memoryview(self.packed).cast("i")

    def __len__(self) -> int:
        return len(self.packed) // _SIZE

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers().tolist())

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> TokenIds: ...
    def __getitem__(self, index: int | slice) -> int | TokenIds:
        if isinstance(index, slice):
            return TokenIds.of_bytes(self._numbers()[index].tobytes())
        return int(self._numbers()[index])

    def within(self, size: int) -> bool:
        """Whether all ids are of a vocabulary of this size, below 2**31."""
        # Read without their sign, negative ones are the highest.
        return not self.packed or int(np.frombuffer(self.packed, dtype=np.uint32).max()) < size

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenIds):
            return self.packed == other.packed
        if isinstance(other, tuple | list):
            return len(self) == len(other) and list(self) == list(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))  # as it equals a tuple

    def __repr__(self) -> str:
        return f"TokenIds({list(self)})"
