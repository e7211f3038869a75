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
import math
import queue
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Request

from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.rewards.guards import (
    Held,
    Limits,
    check_token,
    choose_token,
    make_server,
    read_queries,
)

if TYPE_CHECKING:
    from ultramed_rl.actors.scorer import RewardWorker
    from ultramed_rl.models.tokenizer import ChatTokenizer

Texts = list[list[int]]


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


def check_texts(texts: Sequence[Sequence[int]], limits: Limits, vocabulary: int) -> None:
    """Answer 413 or 422 where the model cannot read a tokenised text."""
    for index, text in enumerate(texts):
        if len(text) < 2 or max(text) >= vocabulary:
            short = f"{len(text)} tokens; prompt and answer have at least 2"
            reason = short if len(text) < 2 else f"token {max(text)} is outside the model's {vocabulary}"
            raise HTTPException(422, f"query {index}: {reason}")
        if limits.tokens is not None and len(text) > limits.tokens:
            raise HTTPException(413, f"query {index}: {len(text)} tokens; the model reads {limits.tokens}")


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
