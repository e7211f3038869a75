"""A reward model behind OpenRLHF's protocol, as openrlhf 0.11.2 has it (cli/serve_rm.py, utils/agent.py).

    POST /get_reward   {"query": [text, ...], "prompts": [text, ...], "labels": [any, ...]}
    200                {"rewards": [x, ...], "scores": [x, ...], "extra_logs": {}}

A query is prompt and answer as one text that already holds all special tokens; none is added or taken away,
and the reward is read at the last token. Prompts and labels are sent by OpenRLHF and not needed. Its trainer
takes `rewards` for advantages and `scores` for filtering; its own server gives both the same numbers. Three
things differ: a text over the model's length is refused instead of being cut (the cut would lose the answer's
end), a reward that isn't finite is null, and a token is asked for: `Authorization: Bearer TOKEN`, or, since
OpenRLHF's client sends no such header, as the password in its URL, http://any:TOKEN@host:5000/get_reward.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import math
import os
import queue
import secrets
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from ultramed_rl.learning.packing import AnswerGroup

if TYPE_CHECKING:
    from ultramed_rl.actors.scorer import RewardWorker
    from ultramed_rl.models.tokenizer import ChatTokenizer

Texts = list[list[int]]
_CHARACTERS = 16  # of a token, in the mean over a text, at most: English has 4 to 5
_MOST_CHARACTERS = 2**20
_ENDING = b'{"detail":"the server is ending; ask again"}'


def serve_reward(
    path: str,
    host: str = "127.0.0.1",
    port: int = 5000,
    token_env: str = "ULTRAMED_RL_REWARD_TOKEN",
    no_token: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_tokens: int = 16384,
    trust_remote_code: bool = False,
) -> None:
    """Serve a reward model until interrupted or SIGTERM.

    Requests must show the token in the environment variable `token_env`; one is made up and told on stderr where it
    isn't set. Raises ValueError: an open address without a token, or a model that cannot be served.
    """
    token, made_up = choose_token(host, token_env, no_token)
    model, tokenizer, limits = load_served(path, device, precision, batch_tokens, trust_remote_code)
    if made_up:
        print(f"token, for this run only (set {token_env} to choose one): {token}", file=sys.stderr)
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {path} at http://{shown}:{port}/get_reward", file=sys.stderr)
    with suppress(KeyboardInterrupt):
        make_server(make_app(model, tokenizer, token, limits), host, port, limits).run()


def load_served(
    path: str, device: str, precision: str, batch_tokens: int, trust_remote_code: bool
) -> tuple[RewardWorker, ChatTokenizer, Limits]:
    """The model in this process, its tokenizer, and the limits that follow from its shape."""
    import torch

    from ultramed_rl.actors.scorer import RewardWorker
    from ultramed_rl.config.models import resolve_precision
    from ultramed_rl.models.checks import check_reward_model
    from ultramed_rl.models.files import decoder_config, longest_sequence, read_config
    from ultramed_rl.models.tokenizer import ChatTokenizer

    check_reward_model(path, trained=True, trust_remote_code=trust_remote_code)
    config = decoder_config(read_config(path, trust_remote_code=trust_remote_code))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = ChatTokenizer(path, trust_remote_code=trust_remote_code)
    worker = RewardWorker(0, device, resolve_precision(precision, device), batch_tokens)
    worker.load(path, trust_remote_code)
    return worker, tokenizer, Limits(tokens=longest_sequence(config))


def make_app(
    model: RewardWorker, tokenizer: ChatTokenizer, token: str | None, limits: Limits | None = None
) -> FastAPI:
    """The server as an ASGI application.

    Requests that wait for the model are scored together, in passes of its token budget: OpenRLHF's workers
    send one text each.

    Status codes: 401 without the `token`, if there is one, 408 for a request that takes too long to come, 413 over a limit, 422 for
    another form, 500 when the model fails, 503 for too many connections and when the server ends.
    """
    bounds = limits or Limits()
    scoring = _Scoring(model, bounds.queries)
    # One thread: a tokenizer isn't made for several, and texts of many requests take turns in it.
    encoding = ThreadPoolExecutor(1, "tokenizer")
    held = Held(bounds.held)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        scoring.thread.start()
        yield
        encoding.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(scoring.stop, 1.0)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/get_reward")
    async def get_reward(request: Request) -> dict[str, Any]:
        check_token(request, token)
        with held.request() as take:
            texts = []
            for query in await read_queries(request, bounds, take):
                # One by one: when a request is cancelled, no more than one goes on.
                text = asyncio.get_running_loop().run_in_executor(encoding, tokenizer.encode_text, query)
                texts.append(await text)
            check_texts(texts, bounds, model.vocab_size)
            rewards = await asyncio.wrap_future(scoring.submit(texts))
        numbers = [reward if math.isfinite(reward) else None for reward in rewards]
        return {"rewards": numbers, "scores": numbers, "extra_logs": {}}

    return app


class _Scoring:
    """One thread around the model: the requests that came while it scored the last ones are scored together, up to `most`
    texts or one request. One that is cancelled before its turn isn't computed."""

    def __init__(self, model: RewardWorker, most: int) -> None:
        self.model, self.most = model, most
        self.waiting: queue.SimpleQueue[tuple[Texts, Future[list[float]]] | None] = queue.SimpleQueue()
        # A daemon: a model at work doesn't keep the process alive.
        self.thread = threading.Thread(target=self._serve, name="reward model", daemon=True)

    def submit(self, texts: Texts) -> Future[list[float]]:
        """The rewards of these texts, in their order, when the model gets to them."""
        rewards: Future[list[float]] = Future()
        self.waiting.put((texts, rewards))
        return rewards

    def stop(self, timeout_s: float) -> None:
        """End the thread after all that was submitted; come back earlier where that takes longer than so long."""
        self.waiting.put(None)
        self.thread.join(timeout_s)

    def _serve(self) -> None:
        """Takes requests from `waiting`; waits for the first of each call, and for nobody else."""
        while (request := self.waiting.get()) is not None:
            requests, texts = [], 0
            while request is not None:
                requests += [request] if request[1].set_running_or_notify_cancel() else []
                texts += len(request[0])
                if texts >= self.most or self.waiting.empty():
                    break
                request = self.waiting.get()
            if requests:
                self._score(requests)
            if request is None:
                return

    def _score(self, requests: Sequence[tuple[Texts, Future[list[float]]]]) -> None:
        groups = [AnswerGroup(text[:-1], [text[-1:]]) for texts, _ in requests for text in texts]
        try:
            rewards = {group: reward for numbers in self.model.score(groups) for group, _, reward in numbers}
            left = iter([rewards[index] for index in range(len(groups))])
        except Exception as error:  # whoever asked is told; the next call may go well
            for _, result in requests:
                result.set_exception(error)
            return
        for texts, result in requests:
            result.set_result([next(left) for _ in texts])


# -- what a request may be ---------------------------------------------------------------------------------


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


def check_texts(texts: Sequence[Sequence[int]], limits: Limits, vocabulary: int) -> None:
    """Answer 413 or 422 where the model cannot read a tokenised text."""
    for index, text in enumerate(texts):
        if len(text) < 2 or max(text) >= vocabulary:
            short = f"{len(text)} tokens; prompt and answer have at least 2"
            reason = short if len(text) < 2 else f"token {max(text)} is outside the model's {vocabulary}"
            raise HTTPException(422, f"query {index}: {reason}")
        if limits.tokens is not None and len(text) > limits.tokens:
            raise HTTPException(413, f"query {index}: {len(text)} tokens; the model reads {limits.tokens}")


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
