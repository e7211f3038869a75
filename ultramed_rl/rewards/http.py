"""Client of a reward server that speaks OpenRLHF's protocol (`server.py` describes it)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ultramed_rl.config.rewards import HttpTerm
from ultramed_rl.config.secrets import read_secret
from ultramed_rl.http.client import Failure, HttpClient, Server, field_of
from ultramed_rl.http.session import Session, running
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards.term import with_prompts

_TOKEN = "set token_env to the variable that holds the server's token"
_CURES = {
    200: 'it must answer {"rewards": [one number per query]} as OpenRLHF\'s serve_rm does',
    401: _TOKEN,
    403: _TOKEN,
    404: "write the whole address, as http://host:5000/get_reward",
    413: "lower batch_size",
}


class RewardClient:
    """Sends texts in batches, several at a time, and puts the rewards back in order.

    A text is what OpenRLHF sends: prompt and answer with their special tokens, by the policy's chat template,
    or by that of `config.tokenizer`. An answer that was cut off lacks the end-of-turn token.
    """

    def __init__(self, config: HttpTerm, tokenizer: Any = None) -> None:
        """`tokenizer` is the policy's, used where the config names none."""
        self.config = config
        server = Server(
            "reward server",
            config.url,
            timeout_s=config.timeout_s,
            retries=config.retries,
            concurrency=config.concurrency,
            token=read_secret(config.token_env, "http.token_env"),
            fixes=_CURES,
        )
        self._client = HttpClient(server)
        self._own: Any = None
        if config.tokenizer is not None:
            from ultramed_rl.models.reading import RewardReader

            self._own = RewardReader.of(config.tokenizer, None)
            tokenizer = self._own.tokenizer
        if tokenizer is None:
            raise ValueError("http.tokenizer=null: no policy's tokenizer to fall back on; name one")
        self.tokenizer = tokenizer

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """The server's reward of each completion; NaN where it gives none. Raises RuntimeError: the server cannot be
        reached or refuses, or its reply doesn't fit the request."""
        texts = [self._texts(*pair) for pair in with_prompts(prompts, completions)]
        size = self.config.batch_size
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        with running(self._client.close) as start:
            session = Session(self._client)
            replies = [start(self._ask(session, batch)) for batch in batches]
            return [reward for reply in replies for reward in reply.result()]

    def _texts(self, prompt: Prompt, completion: Completion) -> tuple[str, str]:
        """The prompt, and prompt and answer together.

        A server takes all letters of a control token for the token, so that a text's own ones have a space in them.
        """
        tokenizer = self.tokenizer
        part = tokenizer.controls.part
        decode = lambda ids: tokenizer.backend.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        messages = tuple(Message(role=m["role"], content=part(m["content"])) for m in prompt.messages)
        if self._own is not None:
            prompt = replace(prompt, messages=messages)
            group = self._own.read(prompt, [replace(completion, text=part(completion.text))])
            return decode(tokenizer.encode_chat(messages)), decode([*group.prompt, *group.answers[0]])
        asked = prompt.token_ids if messages == prompt.messages else tokenizer.encode_chat(messages)
        body, start = list(completion.token_ids), decode(asked)
        end = decode(body[-1:]) if body[-1:] == [tokenizer.end_id] else ""
        answer = part(decode([*asked, *body]).removesuffix(end).removeprefix(start)) + end
        thinking = getattr(tokenizer, "thinking", None) if self.config.reads == "answer" else None
        start = start.removesuffix(thinking.opened) if thinking else start
        return start, start + answer

    async def _ask(self, session: Session, batch: Sequence[tuple[str, str]]) -> list[float]:
        prompts, texts = map(list, zip(*batch, strict=True))
        body = {"query": texts, "prompts": prompts, "labels": [""] * len(batch)}
        read = lambda reply: read_rewards(reply, len(batch))
        try:
            return await session.send(lambda: self._client.post(body, read))
        except Failure as failure:
            raise failure.stopping(self._client.server) from None


def read_rewards(reply: Any, count: int) -> list[float]:
    """The rewards of `count` texts, NaN where null says that there is none. Raises ValueError: what the reply is,
    where it cannot be laid beside the texts."""
    rewards = field_of(reply, "rewards")
    if not isinstance(rewards, list) or len(rewards) != count:
        got = f"{len(rewards)} `rewards`" if isinstance(rewards, list) else "no list of `rewards`"
        raise ValueError(f"{got} for {count} texts")
    odd = [r for r in rewards if r is not None and (isinstance(r, bool) or not isinstance(r, int | float))]
    if odd:
        raise ValueError(f"no number for every text ({type(odd[0]).__name__} among `rewards`)")
    return [math.nan if reward is None else float(reward) for reward in rewards]
