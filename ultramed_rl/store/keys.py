"""Keys by 8 bytes of their hash, so that millions of them fit in memory."""

from __future__ import annotations

import hashlib
from array import array

_FIRST_SLOTS = 1024


def key_number(key: str) -> int:
    """64 bits of a key's SHA-256, never 0: the same in every process. Two of a million keys share one with
    probability 3e-8."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") or 1


class KeyIndex:
    """Keys in the order in which they were met: 8 bytes each, and 8 to 16 more to find them by."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._slots = array("I", bytes(4 * _FIRST_SLOTS))  # a place plus one, or 0; open addressing

    def __len__(self) -> int:
        return len(self._numbers)

    def meet(self, key: str) -> int:
        """The place, from 0, at which `key` was met first: the number of keys before this call if it is new."""
        if 2 * len(self) >= len(self._slots):
            self._grow()
        self._numbers.append(key_number(key))
        return self._enter(len(self._numbers) - 1)

    def _enter(self, place: int) -> int:
        numbers, slots, number = self._numbers, self._slots, self._numbers[place]
        mask = len(slots) - 1
        slot = number & mask
        while found := slots[slot]:
            if numbers[found - 1] == number:
                return found - 1
            slot = (slot + 1) & mask
        slots[slot] = place + 1
        return place

    def _grow(self) -> None:
        size = 2 * len(self._slots)
        self._slots = array("I", bytes(4 * size))
        for place in range(len(self._numbers)):
            self._enter(place)
