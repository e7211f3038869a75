"""One HTTP request to a server that may be slow, broken or hostile: its reply as JSON, or what went wrong with it."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ultramed_rl.config.secrets import redact

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

T = TypeVar("T")
MOST_BYTES = 8 * 2**20  # of a reply
_ERROR_BYTES = 2**16  # of the reply to a refused request
_BUSY = {408, 409, 425, 429}
_SEARCHED = 20_000  # characters of a server's words that are looked through for secrets
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_UNPAID = "insufficient_quota"  # OpenAI's code, under status 429, of an account without money
_DEFAULT = "see the server's log"
_IS_IT_THERE = "is it running? Or raise timeout_s or retries"
_REDIRECTED = (
    "a redirect is not followed: texts and key would go elsewhere; write the address that it leads to"
)


@dataclass(frozen=True)
class Server:
    """Who is asked and how. `name` and `url` are what errors show; `fixes` are what to do about a status, and by 200
    about a reply that isn't what was asked for."""

    name: str
    url: str
    timeout_s: float
    retries: int
    concurrency: int
    token: str | None = None
    requests_per_minute: float | None = None
    fixes: Mapping[int, str] = field(default_factory=dict)


@dataclass(eq=False)
class Failure(Exception):
    """A request without an answer, or without one that can be used."""

    reason: str  # the error's kind and words
    status: int | None = None
    passing: bool = False  # a later try may go better
    wait: float = 0.0  # seconds that the server asks to wait before that
    unreachable: bool = False  # nobody was there to ask
    answered: bool = False  # there was an answer, which can't be used
    fix: str = _DEFAULT  # what to do about it, where the server's own for the status doesn't say
    attempts: int = 1

    def __str__(self) -> str:
        return self.reason if self.status is None else f"status {self.status} {self.reason}"

    def stopping(self, server: Server) -> RuntimeError:
        """The error that ends a run: who, what, and what to do about it."""
        fix = server.fixes.get(self.status or 0, self.fix)
        tried = f" ({self.attempts} tries)" if self.attempts > 1 else ""
        return RuntimeError(f"{server.name} {server.url}: {self}{tried}; {fix}")


class HttpClient:
    """Sends requests as they are, once. Opens no connection before that; close it in the loop that used it.

    A request takes `timeout_s` at most, however slowly the server sends; a reply has `MOST_BYTES` at most. It goes to
    the server's own address alone: redirects aren't followed, and of the environment only HTTP_PROXY, HTTPS_PROXY
    and NO_PROXY count.
    """

    def __init__(self, server: Server) -> None:
        """Raises ValueError: the environment's proxy isn't one of HTTP."""
        self.server = server
        self._proxy = _proxy_of(server.url)
        self._opened: ClientSession | None = None

    async def post(self, body: Mapping[str, Any], read: Callable[[Any], T], path: str = "") -> T:
        """What `read` makes of the reply's JSON.

        Args:
            read: raises ValueError, what the reply is, where it isn't what was asked for.
            path: follows the server's address.

        Raises:
            Failure: by the names that OpenAI's own client gives to what may happen.
        """
        from aiohttp import ClientConnectorError, ClientError

        url = f"{self.server.url.rstrip('/')}{path}" if path else self.server.url
        try:
            async with self._session().post(
                url, json=body, allow_redirects=False, proxy=self._proxy
            ) as response:
                status, headers, payload = response.status, response.headers, await _read(response)
        except TimeoutError:  # of aiohttp's too, so it comes first
            reason = f"APITimeoutError (no whole reply within timeout_s={self.server.timeout_s:g})"
            raise Failure(reason, passing=True, fix=_IS_IT_THERE) from None
        except (ClientError, OSError, ValueError) as error:
            absent = isinstance(error, ClientConnectorError)
            reason = one_line(f"{type(error).__name__}: {error}")
            raise Failure(
                f"APIConnectionError ({reason})", passing=True, unreachable=absent, fix=_IS_IT_THERE
            ) from None
        if not 200 <= status < 300:
            raise _refused(status, headers, payload)
        try:
            return read(parse_json(payload))
        except ValueError as error:
            said = one_line(payload.decode(errors="replace"))
            reason, fix = f"its reply ({said}): {one_line(str(error))}", self.server.fixes.get(200, _DEFAULT)
            raise Failure(reason, passing=True, fix=fix) from None

    async def close(self) -> None:
        """Close the connections; a later request opens them anew."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    def _session(self) -> ClientSession:
        if self._opened is None:
            from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

            # Packed replies are neither asked for nor unpacked: a small one may unpack to gigabytes.
            headers = {"Accept-Encoding": "identity"}
            if self.server.token is not None:
                headers["Authorization"] = f"Bearer {self.server.token}"
            self._opened = ClientSession(
                headers=headers,
                timeout=ClientTimeout(total=self.server.timeout_s),
                connector=TCPConnector(limit=self.server.concurrency),
                cookie_jar=DummyCookieJar(),
                auto_decompress=False,
            )
        return self._opened


def one_line(words: str) -> str:
    """Words of a server's, cut; no secret gets into a log with them, and no control character to a terminal."""
    words = " ".join(words.split())
    shown = redact(words[:_SEARCHED])
    if len(words) > _SEARCHED:  # its end may hold the beginning of a secret
        shown = shown[: -_SEARCHED // 2]
    shown = _PASSWORD.sub("***", shown)[:200]
    return "".join(character if character.isprintable() else "?" for character in shown)


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Seconds that a Retry-After header asks to wait, by number or by date (RFC 9110, 10.2.3); 0 without one.

    Args:
        now: seconds since the epoch.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,12}(\.\d{0,12})?", value, re.ASCII):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


async def _read(response: ClientResponse) -> bytes:
    fine = 200 <= response.status < 300
    most = MOST_BYTES if fine else _ERROR_BYTES
    payload = bytearray()
    async for chunk in response.content.iter_any():
        payload += chunk
        if len(payload) > most:
            if fine:
                raise Failure(f"its reply has over {most} bytes")
            break
    return bytes(payload[:most])


def _refused(status: int, headers: Mapping[str, str], payload: bytes) -> Failure:
    if 300 <= status < 400:
        reason = one_line(f"redirects to {headers.get('location', 'nowhere')}")
        return Failure(f"({reason})", status=status, fix=_REDIRECTED)
    try:
        reply = parse_json(payload)
    except ValueError:
        reply = None
    error = field_of(reply, "error")
    told = (field_of(error, "message"), error, field_of(reply, "detail"), payload.decode(errors="replace"))
    unpaid = field_of(error, "code") == _UNPAID
    return Failure(
        f"({one_line(next(words for words in told if isinstance(words, str)))})",
        status=402 if unpaid else status,
        passing=not unpaid and (status >= 500 or status in _BUSY),
        wait=retry_after(headers, time.time()),
    )


def parse_json(text: str | bytes, *, raw_breaks: bool = False) -> Any:
    """The value of JSON as RFC 8259 has it, of a writer that isn't trusted.

    Args:
        raw_breaks: whether strings may hold control characters as they are.

    Raises:
        ValueError: no JSON, or what readers take in different ways: a key twice in an object, NaN, a number beyond
            what a float holds, nesting beyond what Python reads.
    """
    try:
        return json.loads(
            text,
            strict=not raw_breaks,
            object_pairs_hook=_once,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_finite,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos} of {len(text)})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise ValueError("not JSON (nested too deeply)") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} stands twice in one object")
    return value


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is no number of JSON, or beyond what a float holds")
    return int(digits) if digits.lstrip("-").isdecimal() else number


def field_of(value: Any, name: str) -> Any:
    """A field of a JSON object; None where there is none."""
    return value.get(name) if isinstance(value, dict) else None


def _proxy_of(url: str) -> str | None:
    """The proxy that the environment names for an address. Raises ValueError: one of another protocol."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.hostname or ""):
        return None
    kind, separator, _ = proxy.partition("://")
    if not separator:
        return f"http://{proxy}"
    if kind.lower() not in ("http", "https"):
        raise ValueError(
            f"{parts.scheme}_proxy: {kind}:// is no HTTP proxy; name one as http://host:port, or add "
            f"{parts.hostname} to no_proxy"
        )
    return proxy
