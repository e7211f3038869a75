"""Chats answered by this project's own engines: the data factory's other generator."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

from ultramed_rl.config.factory import EngineConfig
from ultramed_rl.data.chats import LONGEST_TEXT
from ultramed_rl.http.attempts import Misfit, read_reply
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.models.checks import check_sampled_model
from ultramed_rl.models.tokenizer import chat_tokenizer
from ultramed_rl.records import ChatReply, ChatRequest, Completion, Prompt, SamplingRequest
from ultramed_rl.token_ids import TokenIds
from ultramed_rl.workers.sampling import SamplingWorkers


class EngineGenerator:
    """A `Generator` over vLLM engines, which start when it is entered and end when it is left.

    Requests are taken as engines have room for them. The same request has the same answer wherever and beside
    whatever it is computed, as far as the engine's rounding allows.
    """

    exhausted = ""  # engines have no budget

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.tokenizer = chat_tokenizer(config.policy, learns=False)
        check_sampled_model(config.policy.path, config.policy)

    def __enter__(self) -> Self:
        self._workers = SamplingWorkers(self.config, self.tokenizer)
        try:
            self._workers.start_rollout(self.config.policy.path, 0)
        except BaseException:
            self._workers.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.stop()

    def replies(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """One reply for every request, in the order in which they are done.

        A reply's error is "truncated", "too_long: ..." (the chat leaves no room for its answer), "refused: ..."
        (by the chat template), "misfit: ..." (not the JSON asked for, and why) or "empty".
        """
        asked: dict[str, tuple[ChatRequest, int]] = {}
        refused: deque[ChatReply] = deque()

        def source() -> Iterator[SamplingRequest]:
            for request in requests:
                found = self._sampling(request)
                if isinstance(found, ChatReply):
                    refused.append(found)
                else:
                    asked[request.key] = (request, len(found.prompt.token_ids))
                    yield found

        for outcome in self._workers.answer(source()):
            while refused:
                yield refused.popleft()
            request, tokens = asked.pop(outcome.key)
            if outcome.error:
                yield ChatReply(request.key, "", f"engine: {outcome.error}", tokens)
            else:
                yield _reply(request, outcome.value[0], tokens)
        yield from refused

    def _sampling(self, request: ChatRequest) -> SamplingRequest | ChatReply:
        longest = max(len(message["content"]) for message in request.messages)
        if longest > LONGEST_TEXT:
            return ChatReply(
                request.key, "", f"too_long: a turn has {longest:,} characters, over {LONGEST_TEXT:,}"
            )
        try:
            token_ids = TokenIds(self.tokenizer.encode_chat(request.messages))
        except ValueError as error:
            return ChatReply(request.key, "", f"refused: {error}")
        room = self.config.policy.max_length - request.max_tokens
        if len(token_ids) > room:
            return ChatReply(
                request.key, "", f"too_long: the chat has {len(token_ids)} tokens, and room for {room}"
            )
        seed = derive_seed(request.key) if request.seed is None else request.seed
        prompt = Prompt(request.key, request.messages, token_ids)
        sampling = (request.temperature, request.top_p, request.max_tokens, seed)
        return SamplingRequest(prompt, 1, *sampling, request.schema)


def _reply(request: ChatRequest, completion: Completion, prompt_tokens: int) -> ChatReply:
    text, error = "", ""
    try:
        text = read_reply(completion.text, completion.finish_reason, request.schema)
    except Misfit as misfit:
        error = str(misfit)
    return ChatReply(request.key, text, error, prompt_tokens, len(completion.token_ids))
