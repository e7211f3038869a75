"""Questions to a language model behind an OpenAI-compatible API, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ultramed_rl.config.models import Endpoint
from ultramed_rl.config.rewards import ApiModel
from ultramed_rl.http.chat import ChatSession, ChatTrail, chat_client
from ultramed_rl.http.client import Failure
from ultramed_rl.http.session import running
from ultramed_rl.records import ChatRequest, Message

T = TypeVar("T")


@dataclass(frozen=True)
class Reply(Generic[T]):
    """The last text that came, and what was read in it: None for nothing."""

    value: T | None
    text: str


class ApiClient:
    """Sends each prompt as one user message, `concurrency` at a time, and keeps the replies in order.

    A request that fails is sent again, `retries` times. Opens no connection before it asks.

    Args:
        name: how errors call the model.
    """

    def __init__(self, config: ApiModel, name: str = "judge") -> None:
        """Raises ValueError where the key's environment variable isn't set."""
        self.config = config
        self.endpoint = Endpoint(
            model=config.model,
            base_url=config.base_url,
            api_key_env=config.api_key_env,
            concurrency=config.concurrency,
            timeout_s=config.timeout_s,
            retries=config.retries,
        )
        self._client = chat_client(self.endpoint, name)

    def ask(self, prompts: Sequence[str], advance: Callable[[int], None] | None = None) -> list[str]:
        """The reply to each prompt; empty where the model said nothing. As `ask_for`."""
        return [reply.text for reply in self.ask_for(prompts, str, advance)]

    def ask_for(
        self,
        prompts: Sequence[str],
        read: Callable[[str], T | None],
        advance: Callable[[int], None] | None = None,
    ) -> list[Reply[T]]:
        """What `read` finds in the reply to each prompt, in their order.

        A prompt whose reply holds nothing to read is asked again, `retries` times.

        Args:
            read: runs in another thread, one reply at a time.
            advance: told of each prompt that is done, in their order, from the calling thread.

        Raises:
            RuntimeError: the API cannot be reached, refuses, or doesn't speak the protocol.
        """
        replies: list[Reply[T]] = []
        with running(self._client) as start:
            asking = ChatSession(self.endpoint, self._client)
            for future in [start(self._until_read(asking, prompt, read)) for prompt in prompts]:
                replies.append(future.result())
                if advance is not None:
                    advance(1)
        return replies

    async def _until_read(
        self, asking: ChatSession, prompt: str, read: Callable[[str], T | None]
    ) -> Reply[T]:
        text = ""
        for _ in range(self.config.retries + 1):
            text = await self._ask(asking, prompt)
            value = read(text)
            if value is not None:
                return Reply(value, text)
        return Reply(None, text)

    async def _ask(self, asking: ChatSession, prompt: str) -> str:
        config = self.config
        request = ChatRequest(
            "", (Message(role="user", content=prompt),), config.max_tokens, config.temperature
        )
        try:
            return (await asking.ask(request, ChatTrail())).text
        except Failure as failure:
            raise failure.stopping(self._client.server) from None
