"""A limit per minute, kept by waiting: the token bucket."""

from __future__ import annotations

import asyncio
import time

_BURST_S = 0.25  # what a late loop may catch up with; a server that counts by the second hardly sees it


class Rate:
    """Lets `per_minute` units a minute pass, evenly, first come first served; None lets all pass.

    An amount over the bucket's size waits for a full bucket and leaves a debt. For one event loop.
    """

    def __init__(self, per_minute: float | None) -> None:
        self.per_second = None if per_minute is None else per_minute / 60.0
        self._size = max(1.0, (self.per_second or 0.0) * _BURST_S)
        self._level, self._seen = self._size, time.monotonic()
        self._turn = asyncio.Lock()

    async def take(self, amount: float) -> None:
        """Return when `amount` units may pass."""
        if self.per_second is None:
            return
        async with self._turn:
            while (missing := min(amount, self._size) - self._refilled()) > 1e-9:
                await asyncio.sleep(missing / self.per_second)
            self._level -= amount

    def give_back(self, amount: float) -> None:
        """Units that were taken and not used; negative for those used beyond."""
        self._level += amount

    def _refilled(self) -> float:
        now = time.monotonic()
        self._level = min(self._size, self._level + (now - self._seen) * (self.per_second or 0.0))
        self._seen = now
        return self._level
