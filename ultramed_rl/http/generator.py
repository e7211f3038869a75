"""Chats answered by an OpenAI-compatible API: within budgets, and never paid for twice."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ultramed_rl.config.models import Endpoint
from ultramed_rl.http.attempts import Outcome, Watch, usable_reply
from ultramed_rl.http.chat import ChatSession, ChatTrail, chat_client, largest_use
from ultramed_rl.http.client import Failure
from ultramed_rl.http.replies import ApiUsage, ReplyRecord, ReplyStore
from ultramed_rl.http.session import running
from ultramed_rl.records import ChatReply, ChatRequest
from ultramed_rl.store.digests import digest_inputs


class ApiGenerator:
    """A `Generator` over HTTP.

    A reply that was had before, in any run with this folder, is given again for nothing. Rates and concurrency
    hold for each call of `replies`. Not to be sent to another process: make one there, with the same folder.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        folder: Path,
        run: str = "",
        name: str = "endpoint",
        journal: Path | None = None,
    ) -> None:
        """
        Args:
            folder: of the known replies and the use, on a local disk; processes may share it.
            run: whose use the budgets count; another run has budgets of its own.
            name: how errors call the endpoint.
            journal: see `ReplyStore`.

        Raises:
            ValueError: the key's environment variable isn't set.
            RuntimeError: the folder's file cannot be opened.
        """
        self.endpoint = endpoint
        self._client = chat_client(endpoint, name)
        self._store = ReplyStore(folder, run, endpoint.model, journal)
        self._watch = Watch()

    @property
    def exhausted(self) -> str:
        """Which budget is used up, by how much, and what to do; empty while none is."""
        usage, tokens, money = self.usage(), self.endpoint.token_budget, self.endpoint.money_budget
        if tokens is not None and usage.tokens >= tokens:
            return f"token_budget={tokens}: {usage.tokens} tokens are used; raise it to go on"
        if money is not None and usage.cost >= money:
            return f"money_budget={money:g}: {usage.cost:.4g} are used; raise it to go on"
        return ""

    def usage(self) -> ApiUsage:
        """What the run has asked of this model so far, earlier starts included."""
        return self._store.usage()

    def close(self) -> None:
        """Close the folder's file. Nothing is lost without this."""
        self._store.close()

    def replies(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """One reply for every request that is taken, in the order in which they are done.

        Requests are taken in the caller's thread, while it waits for a reply: at most twice `concurrency` more
        than replies were given. When a budget is used up no more are taken, and those under way are finished.
        A reply's error is "truncated", "filtered", "empty", "misfit: ..." (not the JSON asked for, and why) or
        "failure: ..." (of the endpoint).

        Raises:
            RuntimeError: the endpoint serves nobody: it refuses the key; from the start, the model or any
                connection; or 20 requests in a row. What was under way is to be asked again.
            ValueError: a request's schema is none.
        """
        source, ended = iter(requests), False
        under_way = _UnderWay(self.endpoint)
        with running(self._client) as start:
            asking = ChatSession(self.endpoint, self._client)
            while True:
                while not ended and under_way.has_room(self.usage()):
                    request = next(source, None)
                    if request is None:
                        ended = True
                    else:
                        under_way.add(request, start(self._reply(asking, request)))
                if not under_way.requests:
                    return
                yield under_way.next()

    async def _reply(self, asking: ChatSession, request: ChatRequest) -> ChatReply:
        started, digest = time.monotonic(), self._digest(request)
        known = self._store.find(digest)
        if known is not None:
            self._store.write(ReplyRecord(request.key, cached=True), digest)
            return ChatReply(request.key, known, attempts=0, cached=True)
        trail, outcome = ChatTrail(), Outcome(error="stopped")
        try:
            outcome = await usable_reply(asking, request, trail, self._watch)
        except Failure as failure:
            raise failure.stopping(self._client.server) from None
        finally:  # what was used is used, also where the run ends here
            tokens = (trail.prompt_tokens, trail.completion_tokens)
            price, seconds = cost(self.endpoint, *tokens), round(time.monotonic() - started, 3)
            record = ReplyRecord(request.key, *tokens, price, trail.attempts, seconds, error=outcome.error)
            self._store.write(record, digest, outcome.text or None)
        return ChatReply(request.key, outcome.text, outcome.error, *tokens, attempts=trail.attempts)

    def _digest(self, request: ChatRequest) -> bytes:
        """Of all that decides on the reply."""
        extra = json.dumps(dict(self.endpoint.extra), sort_keys=True)
        return bytes.fromhex(digest_inputs([replace(request, key=""), self.endpoint.model, extra]))


class _UnderWay:
    """Requests that were taken and whose replies were not given yet.

    While something is under way that may use up the rest of a budget, nothing more is taken. So a run goes over its
    budget by one request at most, and by what failed attempts at those under way use.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.requests: dict[Future[ChatReply], ChatRequest] = {}
        self._done: queue.SimpleQueue[Future[ChatReply]] = queue.SimpleQueue()
        self._tokens, self._cost = 0, 0.0  # that those under way may use

    def has_room(self, usage: ApiUsage) -> bool:
        """Whether one more may be taken now: twice `concurrency`, so that slots stay full while some wait to be
        asked again."""
        tokens, money = self.endpoint.token_budget, self.endpoint.money_budget
        return (
            len(self.requests) < 2 * self.endpoint.concurrency
            and (tokens is None or usage.tokens + self._tokens < tokens)
            and (money is None or usage.cost + self._cost < money)
        )

    def add(self, request: ChatRequest, reply: Future[ChatReply]) -> None:
        self.requests[reply] = request
        self._count(request, 1)
        reply.add_done_callback(self._done.put)

    def next(self) -> ChatReply:
        """The reply that is done next, or the error that ends them all."""
        future = self._done.get()
        self._count(self.requests.pop(future), -1)
        return future.result()

    def _count(self, request: ChatRequest, sign: Literal[1, -1]) -> None:
        largest = largest_use(request)
        self._tokens += sign * sum(largest)
        self._cost += sign * cost(self.endpoint, *largest)


def cost(endpoint: Endpoint, prompt_tokens: int, completion_tokens: int) -> float:
    """What so many tokens cost, in the prices' currency."""
    return (endpoint.prompt_price * prompt_tokens + endpoint.completion_price * completion_tokens) / 1e6
