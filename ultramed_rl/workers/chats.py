"""Chats answered by this project's own engines: the data factory's other generator."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

from ultramed_rl.config.factory import EngineConfig
from ultramed_rl.data.chats import LONGEST_TEXT
from ultramed_rl.http.json_reply import UnusableReply, read_reply
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.models.checks import check_sampled_model
from ultramed_rl.models.tokenizer import chat_tokenizer
from ultramed_rl.records import ChatReply, ChatRequest, Prompt, SamplingRequest
from ultramed_rl.scheduling.pool import Outcome
from ultramed_rl.token_ids import TokenIds
from ultramed_rl.workers.sampling import SamplingWorkers


class EngineGenerator:
    """A `Generator` over vLLM engines, which start when it is entered and end when it is left.

    The same request has the same answer wherever and beside whatever it is computed, as far as the engine's rounding
    allows.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.tokenizer = chat_tokenizer(config.policy, learns=False)
        check_sampled_model(config.policy.path, config.policy)
        self._waiting: deque[SamplingRequest] = deque()
        self._asked: dict[str, asyncio.Future[Outcome]] = {}
        self._pump: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._workers = SamplingWorkers(self.config, self.tokenizer)
        try:
            self._workers.start_rollout(self.config.policy.path, 0)
        except BaseException:
            self._workers.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.stop()

    async def close(self) -> None:
        """Nothing of this belongs to a loop."""

    async def reply(self, request: ChatRequest) -> ChatReply:
        """The reply; its error is "truncated", "too_long: ..." (the chat leaves no room for its answer), "refused: ..."
        (by the chat template), "misfit: ..." (not the JSON asked for, and why), "empty" or "engine: ...".

        Raises:
            RuntimeError: too few engines are left.
        """
        try:
            sampling = self._sampling(request)
        except ValueError as refused:
            return ChatReply(request.key, "", str(refused))
        outcome = self._asked[request.key] = asyncio.get_running_loop().create_future()
        self._waiting.append(sampling)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._answer_all())
        ended, tokens = await outcome, len(sampling.prompt.token_ids)
        if ended.error:
            return ChatReply(request.key, "", f"engine: {ended.error}", tokens)
        (completion,), text, error = ended.value, "", ""
        try:
            text = read_reply(completion.text, completion.finish_reason, request.schema)
        except UnusableReply as misfit:
            error = str(misfit)
        return ChatReply(request.key, text, error, tokens, len(completion.token_ids))

    async def _answer_all(self) -> None:
        """Consumes what waits, as the engines have room; ends when all of it is answered.

        It waits for the engines in the loop's own thread, since whoever else is in the loop waits for these answers.
        """
        pool, scheduler = self._workers.engines, self._workers.scheduler
        try:
            with self._workers.rollout.on_device():
                while self._asked:
                    while self._waiting and pool.has_capacity:
                        self._workers.offer(self._waiting.popleft())
                    for outcome in scheduler.outcomes():
                        self._asked.pop(outcome.key).set_result(outcome)
                    # Those who have got their answers ask on; then those whose record has ended take the next one.
                    for _ in range(2):
                        await asyncio.sleep(0)
        except Exception as error:
            for asked in self._asked.values():
                asked.set_exception(error)
            self._asked.clear()
            self._waiting.clear()
        finally:
            if pool.unfinished:
                pool.forget()

    def _sampling(self, request: ChatRequest) -> SamplingRequest:
        """Raises ValueError, with the reply's error, for a chat that can't be asked."""
        longest = max(len(message["content"]) for message in request.messages)
        if longest > LONGEST_TEXT:
            raise ValueError(f"too_long: a turn has {longest:,} characters, over {LONGEST_TEXT:,}")
        try:
            token_ids = TokenIds(self.tokenizer.encode_chat(request.messages))
        except ValueError as error:
            raise ValueError(f"refused: {error}") from None
        room = self.config.policy.max_length - request.max_tokens
        if len(token_ids) > room:
            raise ValueError(f"too_long: the chat has {len(token_ids)} tokens, and room for {room}")
        seed = derive_seed(request.key) if request.seed is None else request.seed
        prompt = Prompt(request.key, request.messages, token_ids)
        sampling = (request.temperature, request.top_p, request.max_tokens, seed)
        return SamplingRequest(prompt, 1, *sampling, request.schema)
