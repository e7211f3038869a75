"""Questions to a language model behind an OpenAI-compatible API, many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from ultramed_rl.config.rewards import ApiModel
from ultramed_rl.rewards.term import read_secret

if TYPE_CHECKING:
    from openai import OpenAI

T = TypeVar("T")
_KEY = "set api_key_env to the variable that holds its key"


@dataclass(frozen=True)
class Reply(Generic[T]):
    """The last text that came, and what was read in it: None for nothing."""

    value: T | None
    text: str


class ApiClient:
    """Sends each prompt as one user message, `concurrency` at a time, and keeps the replies in order.

    A request that fails is sent again by OpenAI's client, `retries` times. Opens no connection before it asks.

    Args:
        name: how errors call the model.
    """

    def __init__(self, config: ApiModel, name: str = "judge") -> None:
        """Raises ValueError where the key's environment variable isn't set."""
        self.config = config
        self.name = name
        # Never OpenAI's own variable by default: a key isn't sent to an address that it wasn't meant for.
        self._key = read_secret(config.api_key_env, f"{name}.api_key_env") or "none"

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
            read: runs in several threads at once.
            advance: told of each prompt that is done, in their order, from the calling thread.

        Raises:
            RuntimeError: the API cannot be reached, refuses, or doesn't speak the protocol.
        """
        replies: list[Reply[T]] = []
        with self._connect() as client, ThreadPoolExecutor(self.config.concurrency) as pool:
            for reply in pool.map(lambda prompt: self._until_read(client, prompt, read), prompts):
                replies.append(reply)
                if advance is not None:
                    advance(1)
        return replies

    def _connect(self) -> OpenAI:
        from openai import OpenAI

        config = self.config
        return OpenAI(
            api_key=self._key,
            base_url=config.base_url,
            timeout=config.timeout_s,
            max_retries=config.retries,
        )

    def _until_read(self, client: OpenAI, prompt: str, read: Callable[[str], T | None]) -> Reply[T]:
        text = ""
        for _ in range(self.config.retries + 1):
            text = self._ask(client, prompt)
            value = read(text)
            if value is not None:
                return Reply(value, text)
        return Reply(None, text)

    def _ask(self, client: OpenAI, prompt: str) -> str:
        from openai import OpenAIError

        config = self.config
        try:
            response = client.chat.completions.create(
                model=config.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=config.temperature,
                max_tokens=config.max_tokens,
            )
            return response.choices[0].message.content or ""
        except OpenAIError as error:
            raise self._failure(error) from None
        except (AttributeError, IndexError, TypeError, ValueError):
            raise RuntimeError(
                f"{self.name} {config.base_url}: its reply is no chat completion; is base_url that of an "
                "OpenAI-compatible API, as http://host:8000/v1?"
            ) from None

    def _failure(self, error: Exception) -> RuntimeError:
        status = getattr(error, "status_code", None)
        cure = {
            401: _KEY,
            403: _KEY,
            404: f"check base_url and model={self.config.model!r}",
            None: "is it running? Or raise timeout_s or retries",
        }.get(status, "see the server's log")
        reason = " ".join(str(error).split())[:200]
        shown = "" if status is None else f"status {status}, "
        return RuntimeError(
            f"{self.name} {self.config.base_url}: {shown}{type(error).__name__} ({reason}); {cure}"
        )
