"""One way to ask a language model that judges: behind an API, or on engines of the run's own.

a scorer's thread: JudgeClient.run(work) --> ask(messages) --+--> ChatSession --> API
                                                             +--> EngineRequests --> the run's loop --> engines
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from ultramed_rl.config.judge_models import ApiModel, JudgeModel
from ultramed_rl.config.models import Endpoint
from ultramed_rl.http.chat import ChatSession, chat_client
from ultramed_rl.http.client import Failure
from ultramed_rl.http.session import running
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.records import ChatRequest, Message, TokenChoice
from ultramed_rl.thoughts import Thinking

T = TypeVar("T")
_LIKELIEST = 20  # tokens of a place: the most that OpenAI's API gives
GIVEN_UP = "the run gave up what this was asked for"
_AGAIN = 0.7  # least temperature at which engines are asked again


@dataclass(frozen=True)
class JudgeReply:
    """What a judge said after its thought; of a judge that weighs its words, also the likeliest tokens of the last places."""

    text: str
    choices: Sequence[TokenChoice] = ()


@dataclass(frozen=True)
class Reply(Generic[T]):
    """The last text that came, and what was read in it: None for nothing."""

    value: T | None
    text: str


class NoReply(Exception):
    """What keeps engines from answering this one request."""


class Ask(Protocol):
    """Asks the judge once. `draw` tells apart several replies to the same messages."""

    def __call__(self, messages: Sequence[Message], draw: int = 0) -> Awaitable[JudgeReply]:
        """The reply. Raises RuntimeError: nobody answers at all; NoReply: nobody can answer this request."""
        ...


class EngineRequests:
    """Requests from scorers' threads to engines that another thread serves."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[ChatRequest, Future[JudgeReply]]] = SimpleQueue()
        self.closed = False  # nobody serves them any more

    async def reply(self, request: ChatRequest) -> JudgeReply:
        """What the engines answer. Raises NoReply: they cannot."""
        if self.closed:
            raise NoReply(GIVEN_UP)
        future: Future[JudgeReply] = Future()
        self._waiting.put((request, future))
        return await asyncio.wrap_future(future)

    def take(self) -> Iterator[tuple[ChatRequest, Future[JudgeReply]]]:
        """The requests that wait, with what awaits their replies; as many as the caller takes."""
        with suppress(Empty):
            while True:
                yield self._waiting.get_nowait()


def settle(future: Future[JudgeReply], result: JudgeReply | NoReply) -> None:
    """Give a request its reply, or what keeps it from one; who asked may have given up."""
    with suppress(InvalidStateError):
        if isinstance(result, NoReply):
            future.set_exception(result)
        else:
            future.set_result(result)


class JudgeClient:
    """Asks a judge. Many requests are under way at a time: `concurrency` to an API, to engines what they take.

    A request that fails is sent again, `retries` times. Opens no connection before it asks. What an engine is to answer
    waits in `requests`, which whoever runs the engines reads.
    """

    def __init__(self, config: ApiModel | JudgeModel, *, weighs: bool = False) -> None:
        """`weighs`: replies come with the likeliest tokens of their last places.

        Raises:
            ValueError: the key's environment variable isn't set.
        """
        self.config, self.weighs = config, weighs
        self.engine = config.engine if isinstance(config, JudgeModel) else None
        self.thought = config.thought if isinstance(config, JudgeModel) else []
        self.requests = EngineRequests()
        if self.engine is None:
            shared = {"model", "base_url", "api_key_env", "concurrency", "timeout_s", "retries"}
            extra = {"logprobs": True, "top_logprobs": _LIKELIEST} if weighs else {}
            self.endpoint = Endpoint(**config.model_dump(include=shared), extra=extra)
            self._client = chat_client(self.endpoint, "judge")

    def run(
        self,
        work: Sequence[Callable[[Ask], Coroutine[Any, Any, T]]],
        advance: Callable[[int], None] | None = None,
    ) -> list[T]:
        """What each piece of work comes to, in their order; all are under way at once, in another thread.

        Args:
            advance: told of each piece that is done, in their order, from the calling thread.

        Raises:
            RuntimeError: the API cannot be reached, refuses, or doesn't speak the protocol; too few engines are left.
        """
        results: list[T] = []
        with running(None if self.engine else self._client.close) as start:
            ask = self._engine_ask() if self.engine else self._api_ask()
            for future in [start(piece(ask)) for piece in work]:
                results.append(future.result())
                if advance is not None:
                    advance(1)
        return results

    def ask_for(
        self,
        prompts: Sequence[str],
        read: Callable[[JudgeReply], T | None],
        advance: Callable[[int], None] | None = None,
    ) -> list[Reply[T]]:
        """What `read` finds in the reply to each prompt, one user message each, in their order. Equal prompts are drawn
        apart. Raises as `run`."""
        drawn: dict[str, int] = {}
        work = []
        for prompt in prompts:
            draw = drawn[prompt] = drawn.get(prompt, -1) + 1
            messages = (Message(role="user", content=prompt),)
            work.append(lambda ask, m=messages, d=draw: self.until_read(ask, m, read, d))
        return self.run(work, advance)

    async def until_read(
        self, ask: Ask, messages: Sequence[Message], read: Callable[[JudgeReply], T | None], draw: int = 0
    ) -> Reply[T]:
        """What `read` finds in the reply. One that holds nothing to read is asked for again, `retries` times."""
        text = ""
        for attempt in range(self.config.retries + 1):
            try:
                reply = await ask(messages, draw * (self.config.retries + 1) + attempt)
            except NoReply as refused:
                return Reply(None, str(refused))
            text = reply.text
            if (value := read(reply)) is not None:
                return Reply(value, text)
        return Reply(None, text)

    def _api_ask(self) -> Ask:
        session = ChatSession(self.endpoint, self._client)

        async def ask(messages: Sequence[Message], draw: int = 0) -> JudgeReply:
            request = ChatRequest("", tuple(messages), self.config.max_tokens, self.config.temperature)
            try:
                found = await session.ask(request)
            except Failure as failure:
                raise failure.stopping(self._client.server) from None
            return JudgeReply(self.after_thought(found.text), found.choices)

        return ask

    def _engine_ask(self) -> Ask:
        config, requests = self.config, self.requests

        async def ask(messages: Sequence[Message], draw: int = 0) -> JudgeReply:
            # An engine that takes the likeliest tokens says the same again.
            again = draw % (config.retries + 1) > 0
            temperature = max(config.temperature, _AGAIN) if again else config.temperature
            seed = derive_seed(draw, *(message["content"] for message in messages))
            request = ChatRequest("", tuple(messages), config.max_tokens, temperature, seed=seed)
            found = await requests.reply(request)
            return JudgeReply(self.after_thought(found.text), found.choices)

        return ask

    def after_thought(self, text: str) -> str:
        """A reply without the judge's thought; nothing where the thought has no end."""
        if not self.thought:
            return text
        opens, closes = self.thought
        return text[Thinking(opens, closes).answer_start(text) or 0 :]
