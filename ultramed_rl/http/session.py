"""Requests to a server within its limits and rate, again where they fail, and the thread in which they run."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ultramed_rl.http.client import Failure, HttpClient

logger = logging.getLogger(__name__)
T = TypeVar("T")
Start = Callable[[Coroutine[Any, Any, T]], "Future[T]"]
LONGEST_ASKED_S = 600.0  # a server that asks for a longer wait is asked again after this
# The longest random wait between tries. While most requests are answered it stays low: the trouble is this request's own.
_UNWELL_S, _WELL_S = 30.0, 1.0
_MEMORY = 1 / 32  # weight of one attempt in the share of those that are answered
_WELL_SHARE = 0.6  # such a share, from which the server is well
_BURST_S = 0.25  # what a late loop may catch up with; a server that counts by the second hardly sees it


@dataclass
class ReplyRecord:
    """What one request has used, over all its attempts so far; tokens and their cost, in the prices' currency, of chats
    alone. `seconds`: from taken to done."""

    key: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    attempts: int = 0
    seconds: float = 0.0
    cached: bool = False
    error: str = ""


class Session:
    """A server, `concurrency` requests at a time, at no more than its rate. For one event loop."""

    def __init__(self, client: HttpClient) -> None:
        self.client, self.server = client, client.server
        self.answered = False  # ever
        self._slots = asyncio.Semaphore(self.server.concurrency)
        self._requests = Rate(self.server.requests_per_minute)
        self._answered_share = 0.0  # of the latest attempts
        self._told_until = 0.0

    async def send(self, ask: Callable[[], Awaitable[T]], used: ReplyRecord | None = None) -> T:
        """What `ask` gives, called until `used` has `retries` attempts more than one.

        Between attempts it waits what the server asks for, up to `LONGEST_ASKED_S`, and a random time; after an
        answer that can't be used it doesn't wait.

        Raises:
            Failure: the last one, or one that wouldn't pass.
        """
        used = used or ReplyRecord()
        while True:
            used.attempts += 1
            try:
                async with self._slots:
                    await self._requests.take(1)
                    answer = await ask()
            except Failure as failure:
                failure.attempts = used.attempts
                self.note(failure.answered)
                if not failure.passing or used.attempts > self.server.retries:
                    raise
                if not failure.answered:
                    await asyncio.sleep(self.delay(failure))
            else:
                self.note(True)
                return answer

    def note(self, answered: bool) -> None:
        """An attempt has ended."""
        self.answered |= answered
        self._answered_share += _MEMORY * (answered - self._answered_share)

    def delay(self, failure: Failure) -> float:
        """Seconds before the next attempt, "full jitter": a random time up to a bound that doubles, so that all who
        failed together don't come back together; on top of what the server asks for, of which is told once,
        however many requests it says it to."""
        most = _WELL_S if self._answered_share >= _WELL_SHARE else _UNWELL_S
        jitter = random.uniform(0.0, min(most, 2.0 ** (failure.attempts - 2)))
        wait = min(failure.wait, LONGEST_ASKED_S) + jitter
        if failure.wait and (now := time.monotonic()) >= self._told_until:
            self._told_until = now + wait
            said = "%s %s: %s; it asks to wait %g s and is asked again after %.1f s"
            logger.warning(said, self.server.name, self.server.url, failure, failure.wait, wait)
        return wait


@contextmanager
def running(close: Callable[[], Awaitable[None]] | None = None) -> Iterator[Start[Any]]:
    """What starts coroutines, in an event loop in a thread of its own: the caller may be in a loop already (a
    notebook's). At the end those still running are cancelled, and `close` is awaited."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="event loop", daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop)
    finally:
        if not sys.is_finalizing():  # then the thread is gone already, and nobody would answer
            asyncio.run_coroutine_threadsafe(_wind_up(close), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _wind_up(close: Callable[[], Awaitable[None]] | None) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    if close is not None:
        await close()


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
            while True:
                now = time.monotonic()
                self._level = min(self._size, self._level + (now - self._seen) * self.per_second)
                self._seen = now
                if (missing := min(amount, self._size) - self._level) <= 1e-9:
                    break
                await asyncio.sleep(missing / self.per_second)
            self._level -= amount

    def give_back(self, amount: float) -> None:
        """Units that were taken and not used; negative for those used beyond."""
        self._level += amount
