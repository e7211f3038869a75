"""Client of a reward server that speaks OpenRLHF's protocol (`server.py` describes it)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from ultramed_rl.config.rewards import HttpTerm
from ultramed_rl.config.secrets import read_secret
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards.term import with_prompts

logger = logging.getLogger(__name__)
_BUSY = {408, 425, 429}
_CURES = {
    401: "set token_env to the variable that holds the server's token",
    403: "set token_env to the variable that holds the server's token",
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
        self._token = read_secret(config.token_env, "http.token_env")
        self._own: Any = None
        if config.tokenizer is not None:
            from ultramed_rl.models.reading import RewardReader

            self._own = RewardReader.of(config.tokenizer, None)
            tokenizer = self._own.tokenizer
        if tokenizer is None:
            raise ValueError("http.tokenizer=null: no policy's tokenizer to fall back on; name one")
        self.tokenizer = tokenizer

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """The server's reward of each completion; NaN where it gives none.

        Raises:
            RuntimeError: the server cannot be reached or refuses, or its reply doesn't fit the request.
        """
        texts = [self._texts(*pair) for pair in with_prompts(prompts, completions)]
        size = self.config.batch_size
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        with (
            httpx.Client(headers=headers, timeout=self.config.timeout_s) as client,
            ThreadPoolExecutor(self.config.concurrency) as pool,
        ):
            replies = list(pool.map(lambda batch: self._ask(client, batch), batches))
        return [reward for rewards in replies for reward in rewards]

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
        whole = decode([*asked, *body]).removesuffix(end)
        return start, start + part(whole.removeprefix(start)) + end

    def _ask(self, client: httpx.Client, batch: Sequence[tuple[str, str]]) -> list[float]:
        payload = {
            "query": [whole for _, whole in batch],
            "prompts": [prompt for prompt, _ in batch],
            "labels": [""] * len(batch),
        }
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(self.config.retries + 1),
            wait=wait_exponential(multiplier=0.5, max=30.0) + wait_random(0.0, 0.5),
            reraise=True,
        )
        try:
            response = retrying(self._post, client, payload)
        except httpx.HTTPError as error:
            raise self._failure(error) from None
        return self._read(response, len(batch))

    def _post(self, client: httpx.Client, payload: dict[str, list[str]]) -> httpx.Response:
        # A redirect isn't followed, and counts as an error: it would carry the token elsewhere.
        return client.post(self.config.url, json=payload).raise_for_status()

    def _failure(self, error: httpx.HTTPError) -> RuntimeError:
        url, tries = self.config.url, self.config.retries + 1
        if isinstance(error, httpx.HTTPStatusError):
            status, text = error.response.status_code, " ".join(error.response.text.split())[:200]
            tried = f" ({tries} times)" if _may_pass(error) else ""
            cure = _CURES.get(status, "see the server's log")
            return RuntimeError(f"reward server {url}: status {status}{tried} {text!r}; {cure}")
        cure = "raise timeout_s" if isinstance(error, httpx.TimeoutException) else "start the server"
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        return RuntimeError(f"reward server {url}: {reason} ({tries} times); {cure}, or raise retries")

    def _read(self, response: httpx.Response, count: int) -> list[float]:
        """The reply's rewards; anything that cannot be laid beside the request is refused."""
        try:
            rewards = response.json()["rewards"]
        except (ValueError, KeyError, TypeError):
            raise self._refusal(f"its reply {response.text[:100]!r} isn't JSON with `rewards`") from None
        if not isinstance(rewards, list) or len(rewards) != count:
            got = f"{len(rewards)} rewards" if isinstance(rewards, list) else f"rewards={rewards!r}"
            raise self._refusal(f"{got[:100]} for {count} texts")
        odd = [
            r for r in rewards if r is not None and (isinstance(r, bool) or not isinstance(r, int | float))
        ]
        if odd:
            raise self._refusal(f"reward {odd[0]!r:.100} is no number")
        return [float(r) if r is not None and math.isfinite(r) else math.nan for r in rewards]

    def _refusal(self, problem: str) -> RuntimeError:
        return RuntimeError(
            f"reward server {self.config.url}: {problem}; it must answer "
            '{"rewards": [one number per query]} as OpenRLHF\'s serve_rm does'
        )


def _may_pass(error: BaseException) -> bool:
    """Whether a later try may go better: the connection failed, or the server is busy or broken."""
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return status >= 500 or status in _BUSY
    return isinstance(error, httpx.TransportError)
