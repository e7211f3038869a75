"""Requests to an endpoint within its limits, again where they fail, and the thread in which they run."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from ultramed_rl.data.factory.api.body import largest_use
from ultramed_rl.data.factory.api.rate import Rate
from ultramed_rl.data.factory.api.transport import Answer, Failure, Transport
from ultramed_rl.records import ChatRequest

T = TypeVar("T")
Start = Callable[[Coroutine[Any, Any, T]], "Future[T]"]
_FIRST_S, _LONGEST_S = 0.5, 30.0  # the most that is waited after a first failure, and after any
_WELL_S = 1.0  # and after any while most requests are answered: the trouble is this request's own
_MEMORY = 1 / 32  # weight of one attempt in the share of those that are answered
_WELL = 0.6  # such a share, from which the endpoint is well
_LONGEST_ASKED_S = 600.0  # a server that asks for a longer wait is asked again after this


@dataclass
class Trail:
    """What one request has taken so far, over all its attempts."""

    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Session:
    """An endpoint, `concurrency` requests at a time, at no more than its rates. For one event loop."""

    def __init__(self, transport: Transport) -> None:
        self.transport, self.endpoint = transport, transport.endpoint
        self._slots = asyncio.Semaphore(self.endpoint.concurrency)
        self._requests = Rate(self.endpoint.requests_per_minute)
        self._tokens = Rate(self.endpoint.tokens_per_minute)
        self._answered = 0.0  # of the latest attempts, the share

    async def send(self, request: ChatRequest, trail: Trail) -> Answer:
        """The answer, asked for until `trail` has `retries` attempts more than one.

        Between attempts it waits what the server asks for, and a random time up to a bound that doubles with
        every attempt ("full jitter": so that all who failed together don't come back together). While the endpoint
        answers most of what it is asked, the bound stays low.

        Raises:
            Failure: the last one, or one that wouldn't pass.
        """
        while True:
            trail.attempts += 1
            try:
                answer = await self._once(request)
            except Failure as failure:
                self._note(answered=False)
                if not failure.passing or not self.may_retry(trail):
                    raise
                await asyncio.sleep(self._delay(trail.attempts, failure.wait))
                continue
            self._note(answered=True)
            trail.prompt_tokens += answer.prompt_tokens
            trail.completion_tokens += answer.completion_tokens
            return answer

    def may_retry(self, trail: Trail) -> bool:
        """Whether the request may be sent once more."""
        return trail.attempts <= self.endpoint.retries

    def _note(self, *, answered: bool) -> None:
        self._answered += _MEMORY * (answered - self._answered)

    def _delay(self, attempts: int, asked: float) -> float:
        longest = _WELL_S if self._answered >= _WELL else _LONGEST_S
        bound = min(longest, _FIRST_S * 2 ** (attempts - 1))
        return min(asked, _LONGEST_ASKED_S) + random.uniform(0.0, bound)

    async def _once(self, request: ChatRequest) -> Answer:
        largest = unused = sum(largest_use(request))
        async with self._slots:
            await self._tokens.take(largest)
            await self._requests.take(1)
            try:
                answer = await self.transport.send(request)
                unused = largest - answer.prompt_tokens - answer.completion_tokens
                return answer
            finally:
                self._tokens.give_back(unused)


@contextmanager
def session(transport: Transport) -> Iterator[tuple[Session, Start[Any]]]:
    """A session and what starts coroutines in its thread. At the end those still running are cancelled."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="api", daemon=True)
    thread.start()
    try:
        yield Session(transport), lambda work: asyncio.run_coroutine_threadsafe(work, loop)
    finally:
        if not sys.is_finalizing():  # then the thread is gone already, and nobody would answer
            _stop(transport, loop, thread)


def _stop(transport: Transport, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    asyncio.run_coroutine_threadsafe(_wind_up(transport), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _wind_up(transport: Transport) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await transport.close()
