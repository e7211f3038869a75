"""One way to ask a language model that judges: behind an API, or on engines of the run's own.

JudgeClient.run(work) --> ask(messages) --+--> ChatSession --> API
                                          +--> EngineRequests --> whoever runs the engines

That is the run's loop while scorers ask in a thread of their own; else whoever asks runs them meanwhile, by `served`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from ultramed_rl.config.judge_models import JudgeModel
from ultramed_rl.config.models import Endpoint
from ultramed_rl.http.chat import ChatSession, chat_client
from ultramed_rl.http.client import Failure
from ultramed_rl.http.session import running
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.records import ChatRequest, Message, TokenChoice
from ultramed_rl.thoughts import after_thoughts

logger = logging.getLogger(__name__)
T = TypeVar("T")
Turn = Callable[[], None]  # lets engines go on for a moment
_LIKELIEST = 20  # tokens of a place: the most that OpenAI's API gives
GIVEN_UP = "the run gave up what this was asked for"
_AGAIN = 0.7  # least temperature at which engines are asked again
_MANY, _ALIKE = 64, 0.95  # verdicts from which on, and the share of one, where a judge is doubted


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


class AlikeVerdicts:
    """Warns once of a judge most of whose verdicts so far are the same: it makes no pairs."""

    def __init__(self, name: str) -> None:
        self.name, self._told = name, False
        self._seen: Counter[str] = Counter()

    def see(self, verdicts: Iterable[str]) -> None:
        """More verdicts, each in a word."""
        self._seen.update(verdicts)
        count = self._seen.total()
        if count < _MANY or self._told:
            return
        ((verdict, most),) = self._seen.most_common(1)
        if most >= _ALIKE * count:
            self._told = True
            logger.warning(
                "judge %s: %.0f %% of %d verdicts are alike (%s), so it hardly tells answers apart; use another judge, template "
                "or scale, or grade=expected",
                *(self.name, 100 * most / count, count, verdict),
            )


class NoReply(Exception):
    """What keeps engines from answering this one request."""


class AskJudge(Protocol):
    """Asks the judge once. `draw` tells apart several replies to the same messages."""

    def __call__(self, messages: Sequence[Message], draw: int = 0) -> Awaitable[JudgeReply]:
        """The reply. Raises RuntimeError: nobody answers at all; NoReply: nobody can answer this request."""
        ...


class EngineRequests:
    """Requests to engines, which another thread than the one they come from serves."""

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
    waits in `requests`, which whoever runs the engines reads. `served` gives the caller of `run` the turns by which it does so
    itself, or None where another thread does.
    """

    def __init__(self, config: JudgeModel, *, weighs: bool = False) -> None:
        """`weighs`: replies come with the likeliest tokens of their last places.

        Raises:
            ValueError: the key's environment variable isn't set.
        """
        self.config, self.weighs = config, weighs
        self.engine = config.engine
        self.requests = EngineRequests()
        self.served: Callable[[], AbstractContextManager[Turn | None]] = nullcontext
        if self.engine is None:
            shared = {"model", "base_url", "api_key_env", "concurrency", "timeout_s", "retries"}
            extra = {"logprobs": True, "top_logprobs": _LIKELIEST} if weighs else {}
            self.endpoint = Endpoint(**config.model_dump(include=shared), extra=extra)
            self._client = chat_client(self.endpoint, "judge")

    def run(
        self,
        work: Sequence[Callable[[AskJudge], Coroutine[Any, Any, T]]],
        advance: Callable[[int], None] | None = None,
    ) -> list[T]:
        """What each piece of work comes to, in their order; all are under way at once, in a thread of their own.

        Args:
            advance: told of each piece that is done, in their order, from the calling thread.

        Raises:
            RuntimeError: the API cannot be reached, refuses, or doesn't speak the protocol; too few engines are left.
        """
        results: list[T] = []
        with self.served() as turn, running(None if self.engine else self._client.close) as start:
            ask = self._engine_ask() if self.engine else self._api_ask()
            for future in [start(piece(ask)) for piece in work]:
                while turn is not None and not future.done():
                    turn()
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
        self,
        ask: AskJudge,
        messages: Sequence[Message],
        read: Callable[[JudgeReply], T | None],
        draw: int = 0,
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

    def _api_ask(self) -> AskJudge:
        session = ChatSession(self.endpoint, self._client)

        async def ask(messages: Sequence[Message], draw: int = 0) -> JudgeReply:
            request = ChatRequest("", tuple(messages), self.config.max_tokens, self.config.temperature)
            try:
                found = await session.ask(request)
            except Failure as failure:
                raise failure.stopping(self._client.server) from None
            return JudgeReply(after_thoughts(found.text), found.choices)

        return ask

    def _engine_ask(self) -> AskJudge:
        config, requests = self.config, self.requests

        async def ask(messages: Sequence[Message], draw: int = 0) -> JudgeReply:
            # An engine that takes the likeliest tokens says the same again.
            again = draw % (config.retries + 1) > 0
            temperature = max(config.temperature, _AGAIN) if again else config.temperature
            seed = derive_seed(draw, *(message["content"] for message in messages))
            request = ChatRequest("", tuple(messages), config.max_tokens, temperature, seed=seed)
            found = await requests.reply(request)
            return JudgeReply(after_thoughts(found.text), found.choices)

        return ask
