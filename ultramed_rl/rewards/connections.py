"""The reward server's connections: how long a client may take, how many there are, and how all of them end."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ultramed_rl.rewards.guards import Limits

_ENDING = b'{"detail":"the server is ending; ask again"}'


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
