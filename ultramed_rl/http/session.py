"""Requests to a server within its limits and rate, again where they fail, and the thread in which they run."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from ultramed_rl.http.client import Failure, HttpClient

logger = logging.getLogger(__name__)
T = TypeVar("T")
Start = Callable[[Coroutine[Any, Any, T]], "Future[T]"]
# Between tries, "full jitter": a random time up to a bound that doubles, so that all who failed together don't come
# back together. While most requests are answered the bound stays low: the trouble is this request's own.
_UNWELL = wait_random_exponential(multiplier=0.5, max=30.0)
_WELL = wait_random_exponential(multiplier=0.5, max=1.0)
_MEMORY = 1 / 32  # weight of one attempt in the share of those that are answered
_WELL_SHARE = 0.6  # such a share, from which the server is well
LONGEST_ASKED_S = 600.0  # a server that asks for a longer wait is asked again after this
_BURST_S = 0.25  # what a late loop may catch up with; a server that counts by the second hardly sees it


@dataclass
class Trail:
    """What one request has taken so far, over all its attempts."""

    attempts: int = 0


class Session:
    """A server, `concurrency` requests at a time, at no more than its rate. For one event loop."""

    def __init__(self, client: HttpClient) -> None:
        self.server = client.server
        self._slots = asyncio.Semaphore(self.server.concurrency)
        self._requests = Rate(self.server.requests_per_minute)
        self._answered = 0.0  # of the latest attempts, the share
        self._told_until = 0.0

    async def send(self, ask: Callable[[], Awaitable[T]], trail: Trail) -> T:
        """What `ask` gives, called until `trail` has `retries` attempts more than one.

        Between attempts it waits what the server asks for, up to `LONGEST_ASKED_S`, and a random time.

        Raises:
            Failure: the last one, or one that wouldn't pass.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, Failure) and error.passing),
            stop=lambda _: not self.may_retry(trail),
            wait=self._wait,
            before_sleep=self._tell,
            reraise=True,
        )
        return await retrying(self._once, ask, trail)

    def may_retry(self, trail: Trail) -> bool:
        """Whether the request may be sent once more."""
        return trail.attempts <= self.server.retries

    async def _once(self, ask: Callable[[], Awaitable[T]], trail: Trail) -> T:
        trail.attempts += 1
        async with self._slots:
            await self._requests.take(1)
            try:
                answer = await ask()
            except Failure as failure:
                failure.attempts = trail.attempts
                self._note(answered=False)
                raise
        self._note(answered=True)
        return answer

    def _note(self, *, answered: bool) -> None:
        self._answered += _MEMORY * (answered - self._answered)

    def _wait(self, state: RetryCallState) -> float:
        jitter = (_WELL if self._answered >= _WELL_SHARE else _UNWELL)(state)
        return min(_failure(state).wait, LONGEST_ASKED_S) + jitter

    def _tell(self, state: RetryCallState) -> None:
        """Say that the server asks to wait; once, however many requests it says it to."""
        failure, now = _failure(state), time.monotonic()
        if failure.wait and now >= self._told_until:
            wait = state.upcoming_sleep
            self._told_until = now + wait
            said = "%s %s: %s; it asks to wait %g s and is asked again after %.1f s"
            logger.warning(said, self.server.name, self.server.url, failure, failure.wait, wait)


def _failure(state: RetryCallState) -> Failure:
    failure = state.outcome and state.outcome.exception()
    assert isinstance(failure, Failure)
    return failure


@contextmanager
def running(client: HttpClient) -> Iterator[Start[Any]]:
    """What starts coroutines that use the client, in a thread of their own. At the end those still running are
    cancelled."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=client.server.name, daemon=True)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop)
    finally:
        if not sys.is_finalizing():  # then the thread is gone already, and nobody would answer
            _stop(client, loop, thread)


def _stop(client: HttpClient, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    asyncio.run_coroutine_threadsafe(_wind_up(client), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _wind_up(client: HttpClient) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await client.close()


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
