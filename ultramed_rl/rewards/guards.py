"""What a reward server allows before it computes: how long a client may take and how many there are, the token, and how
much one request holds."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

_CHARACTERS = 16  # of a token, in the mean over a text, at most: English has 4 to 5
_MOST_CHARACTERS = 2**20
_ENDING = b'{"detail":"the server is ending; ask again"}'


@dataclass(frozen=True)
class Limits:
    """What a request may hold, how long it may take to come, and how many there may be."""

    queries: int = 1024  # texts of a request
    size: int = 8 * 2**20  # bytes of its body
    tokens: int | None = None  # of a text; None: the model has no limit
    read_s: float = 30.0  # seconds until a request has come whole
    held: int = 128 * 2**20  # bytes of all requests under way; tokenised, they take up to ten times as much
    connections: int = 2048  # beyond so many a request is answered 503
    grace_s: int = 8  # that requests under way have after SIGTERM; a second later the server has ended

    @property
    def characters(self) -> int:
        """Of a text, so that no time is spent on tokenising one that cannot fit."""
        return _MOST_CHARACTERS if self.tokens is None else _CHARACTERS * self.tokens


class Held:
    """Bytes of all requests that aren't answered yet."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0

    @contextmanager
    def request(self) -> Iterator[Callable[[int], None]]:
        """What takes in bytes of one request, held within; it answers 503 over the limit."""
        own = 0

        def take(count: int) -> None:
            nonlocal own
            own += count
            self.bytes += count
            if self.bytes > self.most:
                reason = f"over {self.most} bytes are waiting; ask again"
                raise HTTPException(503, reason, {"Retry-After": "1"})

        try:
            yield take
        finally:
            self.bytes -= own


class RewardRequest(BaseModel):
    """The part of a request that is read."""

    query: list[str] = Field(min_length=1)


def choose_token(host: str, token_env: str, no_token: bool) -> tuple[str | None, bool]:
    """The token to ask for, and whether it was made up here. Raises ValueError: without a token on an address that
    other machines reach."""
    if no_token:
        try:
            alone = ipaddress.ip_address(host).is_loopback
        except ValueError:
            alone = host == "localhost"
        if not alone:
            raise ValueError(
                f"--no-token with --host {host}: other machines reach this address; leave one of the two out"
            )
        return None, False
    given = os.environ.get(token_env, "").strip()
    return (given, False) if given else (secrets.token_urlsafe(32), True)


def check_token(request: Request, token: str | None) -> None:
    """Answer 401 unless the request shows the token, as bearer or as basic authentication's password."""
    if token is None:
        return
    kind, _, shown = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            shown = base64.b64decode(shown, validate=True).decode("utf-8", "replace").partition(":")[2]
        except (binascii.Error, ValueError):
            shown = ""
    elif kind.lower() != "bearer":
        shown = ""
    if not hmac.compare_digest(shown.strip().encode(), token.encode()):
        raise HTTPException(401, "wrong or missing token", {"WWW-Authenticate": "Bearer"})


async def read_queries(request: Request, limits: Limits, take: Callable[[int], None]) -> list[str]:
    """The texts of a request; 413 over a limit, 422 for another form, 408 when it takes too long, 400 when it ends.
    `take`: told of the bytes as they come."""
    body = bytearray()
    try:
        async with asyncio.timeout(limits.read_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.size:
                    raise HTTPException(413, f"request over {limits.size} bytes; send fewer texts at a time")
                take(len(chunk))
    except TimeoutError:
        reason = f"request not whole after {limits.read_s:g} s"
        raise HTTPException(408, reason, {"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400, "request not whole") from None
    try:
        queries = RewardRequest.model_validate_json(bytes(body)).query
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "body"
        raise HTTPException(422, f"{place}: {problem['msg']}; send {{'query': [text, ...]}}") from None
    if len(queries) > limits.queries:
        raise HTTPException(413, f"{len(queries)} queries; at most {limits.queries} per request")
    for index, query in enumerate(queries):
        if len(query) > limits.characters:
            raise HTTPException(413, f"query {index}: {len(query)} characters; at most {limits.characters}")
    return queries


# -- connections ----------------------------------------------------------------------------------------


def make_server(app: FastAPI, host: str, port: int, limits: Limits) -> uvicorn.Server:
    """What serves an application within limits: `run()` returns `grace_s` after SIGTERM, whatever clients do."""
    app.add_middleware(_EndQuietly)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        ws="none",
        http=_patient(limits.read_s),
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=limits.grace_s,
    )
    return uvicorn.Server(config)


def _patient(seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 that closes a connection on which no whole request head came for so long.

    uvicorn's own limit is for connections that say nothing; one that says a byte now and then would stay.
    """

    class Patient(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(seconds, self._look, None)

        def _look(self, seen: Any) -> None:
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self.cycle is seen:
                self.transport.close()
            elif not self.transport.is_closing():
                self.loop.call_later(seconds, self._look, self.cycle)

    return Patient


class _EndQuietly:
    """Requests that are ended with the server get an answer, instead of a traceback in the log for each."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": _ENDING})
