"""One HTTP request to a chat completions API, and what may go wrong with it."""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ultramed_rl.config.generation import Endpoint
from ultramed_rl.config.secrets import read_secret
from ultramed_rl.data.factory.api.body import estimate_tokens, request_body
from ultramed_rl.records import ChatRequest

if TYPE_CHECKING:
    from aiohttp import ClientSession

_BUSY = {408, 409, 425, 429}
_UNPAID = "insufficient_quota"  # OpenAI's code, under status 429, of an account without money
_KEY = "set api_key_env to the variable that holds its key"


@dataclass(frozen=True)
class Answer:
    """A reply as it came. Where the API doesn't count tokens, they are estimated."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Failure(Exception):
    """A request without an answer.

    Args:
        reason: the error's kind and words.
        passing: a later try may go better.
        wait: seconds that the server asks to wait before that.
        unreachable: nobody was there to ask.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int | None = None,
        passing: bool = False,
        wait: float = 0.0,
        unreachable: bool = False,
    ) -> None:
        shown = "" if status is None else f"status {status} "
        super().__init__(f"{shown}{reason}")
        self.status, self.passing, self.wait, self.unreachable = status, passing, wait, unreachable

    def stopping(self, name: str, endpoint: Endpoint) -> RuntimeError:
        """The error that ends a run: who, what, and what to do about it."""
        if self.status is None and self.passing:
            cure = "is it running? Or raise timeout_s or retries"
        else:
            cure = {
                401: _KEY,
                402: "pay, or ask another endpoint",
                403: _KEY,
                404: f"check base_url and model={endpoint.model!r}",
            }.get(self.status or 0, "see the server's log")
        return RuntimeError(f"{name} {endpoint.base_url}: {self}; {cure}")


class Transport:
    """Sends requests as they are, once. Opens no connection before that; close it in the loop that used it."""

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        """Raises ValueError where the key's environment variable isn't set."""
        self.endpoint = endpoint
        # Never OpenAI's own variable by default: a key isn't sent to an address that it wasn't meant for.
        self._key = read_secret(endpoint.api_key_env, f"{name}.api_key_env") or "none"
        self._client: ClientSession | None = None

    async def send(self, request: ChatRequest) -> Answer:
        """The reply. Raises Failure, by the names that OpenAI's own client gives to what may happen."""
        from aiohttp import ClientConnectorError, ClientError

        url = f"{self.endpoint.base_url.rstrip('/')}/chat/completions"
        try:
            async with self._opened().post(url, json=request_body(self.endpoint, request)) as response:
                status, headers, payload = response.status, response.headers, await response.read()
        except TimeoutError:  # of aiohttp's too, so it comes first
            raise Failure("APITimeoutError (no reply within timeout_s)", passing=True) from None
        except ClientError as error:
            absent = isinstance(error, ClientConnectorError)
            words = self._words(f"{type(error).__name__}: {error}")
            raise Failure(f"APIConnectionError {words}", passing=True, unreachable=absent) from None
        if status != 200:
            raise self._refused(status, retry_after(headers, time.time()), payload)
        return self._read(payload, request)

    async def close(self) -> None:
        """Close the connections; a later request opens them anew."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _opened(self) -> ClientSession:
        if self._client is None:
            from aiohttp import ClientSession, ClientTimeout, TCPConnector

            self._client = ClientSession(
                headers={"Authorization": f"Bearer {self._key}"},
                timeout=ClientTimeout(total=self.endpoint.timeout_s),
                connector=TCPConnector(limit=self.endpoint.concurrency),
                trust_env=True,
            )
        return self._client

    def _refused(self, status: int, wait: float, payload: bytes) -> Failure:
        error = _field(_loaded(payload), "error")
        message, unpaid = _field(error, "message"), _field(error, "code") == _UNPAID
        return Failure(
            self._words(message if isinstance(message, str) else payload.decode(errors="replace")),
            status=402 if unpaid else status,
            passing=not unpaid and (status >= 500 or status in _BUSY),
            wait=wait,
        )

    def _read(self, payload: bytes, request: ChatRequest) -> Answer:
        response = _loaded(payload)
        choices = _field(response, "choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = _field(choice, "message")
        content = _field(message, "content") or ""
        if not isinstance(message, dict) or not isinstance(content, str):
            raise Failure(
                f"its reply {self._words(payload.decode(errors='replace'))} is no chat completion; is base_url "
                "that of an OpenAI-compatible API, as http://host:8000/v1?",
                passing=True,
            )
        text, asked = _without_surrogates(content), "".join(turn["content"] for turn in request.messages)
        usage = _field(response, "usage")
        return Answer(
            text,
            str(_field(choice, "finish_reason") or ""),
            _count(_field(usage, "prompt_tokens"), asked),
            _count(_field(usage, "completion_tokens"), text),
        )

    def _words(self, words: str) -> str:
        """Words of the server's in one line; one that repeats the key doesn't get it into a log."""
        if self._key != "none":
            words = words.replace(self._key, "***")
        return f"({' '.join(words.split())[:200]})"


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Seconds that a Retry-After header asks to wait, by number or by date (RFC 9110, 10.2.3); 0 without one.

    Args:
        now: seconds since the epoch.
    """
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        seconds = 0.0 if date is None else email.utils.mktime_tz(date) - now
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _loaded(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return None


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _count(count: Any, text: str) -> int:
    return count if isinstance(count, int) and count >= 0 else estimate_tokens(text)


def _without_surrogates(text: str) -> str:
    """Halves of characters, which no file can hold, as the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
