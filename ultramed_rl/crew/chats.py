"""Chats answered by this project's own engines: the data factory's other generator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Self

from ultramed_rl.actors.rollout import SamplingRequest
from ultramed_rl.config.factory_stage import EngineConfig
from ultramed_rl.crew.sampling import SamplingCrew
from ultramed_rl.data.factory.api.attempts import read_reply
from ultramed_rl.data.factory.api.structured import Misfit
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.models.tokenizer import chat_tokenizer
from ultramed_rl.records import ChatReply, ChatRequest, Completion, Prompt

_WAVES = 4  # full batches of an engine that are dealt at once


class EngineGenerator:
    """A `Generator` over vLLM engines, which start when it is entered and end when it is left.

    Requests are dealt in windows; the next begins when all of one are answered. The same request has the same
    answer wherever and beside whatever it is computed, as far as the engine's rounding allows.
    """

    exhausted = ""  # engines have no budget

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.tokenizer = chat_tokenizer(config.policy)
        group = config.cluster.rollout
        self.window = _WAVES * group.engines * group.max_num_seqs

    def __enter__(self) -> Self:
        self._crew = SamplingCrew(self.config, self.tokenizer)
        try:
            self._crew.start_rollout(self.config.policy.path, 0)
        except BaseException:
            self._crew.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._crew.stop()

    def replies(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """One reply for every request, in the order in which they are done.

        A reply's error is "truncated", "too_long: ..." (the chat leaves no room for its answer), "refused: ..."
        (by the chat template), "misfit: ..." (not the JSON asked for, and why) or "empty".
        """
        source = iter(requests)
        while window := list(islice(source, self.window)):
            asked: dict[str, tuple[ChatRequest, int]] = {}
            sampling = []
            for request in window:
                found = self._sampling(request)
                if isinstance(found, ChatReply):
                    yield found
                else:
                    asked[request.key] = (request, len(found.prompt.token_ids))
                    sampling.append(found)
            for completions in self._crew.stream_completions(sampling, 0):
                request, tokens = asked[completions[0].prompt_id]
                yield _reply(request, completions[0], tokens)

    def _sampling(self, request: ChatRequest) -> SamplingRequest | ChatReply:
        try:
            token_ids = tuple(self.tokenizer.encode_chat(request.messages))
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
