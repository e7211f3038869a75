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
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException, Request

from ultramed_rl.rewards.connections import make_server
from ultramed_rl.rewards.guards import Held, Limits, check_token, choose_token, read_queries
from ultramed_rl.rewards.waiting import Waiting


class TextEncoder(Protocol):
    """What the server needs of a `ChatTokenizer`."""

    def encode_text(self, text: str) -> list[int]:
        """Token ids, without special tokens added."""


class GroupScorer(Protocol):
    """What the server needs of a `RewardWorker`."""

    vocab_size: int

    def score(self, groups: Sequence[Any]) -> Iterator[list[tuple[int, int, float]]]:
        """(group, answer, reward) of every answer."""


def make_app(
    model: GroupScorer, tokenizer: TextEncoder, token: str | None, limits: Limits | None = None
) -> FastAPI:
    """The server as an ASGI application.

    Requests that wait for the model are scored together, in passes of its token budget: OpenRLHF's workers
    send one text each.

    Args:
        token: what requests must show; None: nothing.

    Status codes: 401 without the token, 408 for a request that takes too long to come, 413 over a limit, 422 for
    another form, 500 when the model fails, 503 for too many connections and when the server ends.
    """
    bounds = limits or Limits()
    waiting: Waiting[list[int], float] = Waiting(lambda texts: score_texts(model, texts), bounds.queries)
    # One thread: a tokenizer isn't made for several, and texts of many requests take turns in it.
    encoding = ThreadPoolExecutor(1, "tokenizer")
    held = Held(bounds.held)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        waiting.start()
        yield
        encoding.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(waiting.stop, 1.0)

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
            rewards = await asyncio.wrap_future(waiting.submit(texts))
        numbers = [reward if math.isfinite(reward) else None for reward in rewards]
        return {"rewards": numbers, "scores": numbers, "extra_logs": {}}

    return app


def score_texts(model: GroupScorer, texts: Sequence[Sequence[int]]) -> list[float]:
    """The reward of each tokenised text, in order."""
    from ultramed_rl.learning.packing import AnswerGroup

    groups = [AnswerGroup(text[:-1], [text[-1:]]) for text in texts]
    found = {group: reward for numbers in model.score(groups) for group, _, reward in numbers}
    return [found[index] for index in range(len(texts))]


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

    Requests must show the token in the environment variable `token_env`; one is made up and told on stderr
    where it isn't set.

    Raises:
        ValueError: an open address without a token, or a model that cannot be served.
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
) -> tuple[Any, Any, Limits]:
    """The model in this process, its tokenizer, and the limits that follow from its shape."""
    import torch

    from ultramed_rl.actors.scorer import RewardWorker
    from ultramed_rl.config.models import resolve_precision
    from ultramed_rl.models.checks import check_reward_model
    from ultramed_rl.models.configs import decoder_config, longest_sequence, read_config
    from ultramed_rl.models.tokenizer import ChatTokenizer

    check_reward_model(path, trained=True, trust_remote_code=trust_remote_code)
    config = decoder_config(read_config(path, trust_remote_code=trust_remote_code))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = ChatTokenizer(path, trust_remote_code=trust_remote_code)
    worker = RewardWorker(0, device, resolve_precision(precision, device), batch_tokens)
    worker.load(path, trust_remote_code)
    return worker, tokenizer, Limits(tokens=longest_sequence(config))
