"""A chat completions API: messages to a text, asked for until it can be used or nothing more may be tried."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from ultramed_rl.config.models import Endpoint
from ultramed_rl.config.secrets import LEAST_IN_TEXT, read_secret, redact
from ultramed_rl.http.client import Failure, HttpClient, Server, field_of
from ultramed_rl.http.json_reply import UnusableReply, read_reply, validator
from ultramed_rl.http.session import Rate, ReplyRecord, Session
from ultramed_rl.records import ChatRequest, Message, TokenChoice

_KEY = "set api_key_env to the variable that holds its key"
_MOST_TOKENS = 2**31  # a larger count is no count
_CHARACTERS = 4  # of English to a token, about
_IN_A_ROW = 20  # requests that fail without an answer between them: it isn't the requests
_UNKNOWN = {401, 402}  # who asks isn't let in, whatever it asks
_ABSENT = {301, 302, 303, 307, 308, 403, 404}  # or only this request isn't allowed
_FORM = "Answer with one JSON value that fits this JSON schema, and with nothing else:\n"


@dataclass(frozen=True)
class CountedReply:
    """A reply as it came. Where the API doesn't count tokens, they are estimated; where it was asked for logprobs, `choices`
    has each token's."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    choices: tuple[TokenChoice, ...] = ()


def chat_client(endpoint: Endpoint, name: str) -> HttpClient:
    """The client of an endpoint.

    Args:
        name: how errors call it.

    Raises:
        ValueError: the key's environment variable isn't set.
    """
    # Never OpenAI's own variable by default: a key isn't sent to an address that it wasn't meant for.
    key = read_secret(endpoint.api_key_env, f"{name}.api_key_env") or "none"
    return HttpClient(
        Server(
            name,
            endpoint.base_url,
            timeout_s=endpoint.timeout_s,
            retries=endpoint.retries,
            concurrency=endpoint.concurrency,
            token=key,
            requests_per_minute=endpoint.requests_per_minute,
            fixes={
                200: "is base_url that of an OpenAI-compatible API, as http://host:8000/v1?",
                401: _KEY,
                402: "pay, or ask another endpoint",
                403: _KEY,
                404: f"check base_url and model={endpoint.model!r}",
            },
        )
    )


class ChatSession(Session):
    """An endpoint within its rates of requests and tokens. For one event loop."""

    def __init__(self, endpoint: Endpoint, client: HttpClient) -> None:
        super().__init__(client)
        self.endpoint = endpoint
        self._tokens = Rate(endpoint.tokens_per_minute)
        self._failed_in_a_row = 0

    async def ask(self, request: ChatRequest) -> CountedReply:
        """The answer, whatever it says. Raises Failure as `send`."""
        used = ReplyRecord()
        return await self.send(lambda: self._post(request, used), used)

    async def ask_until_usable(self, request: ChatRequest, used: ReplyRecord) -> str:
        """The text of an answer that can be used, see `read_reply`; `used` gains what it took.

        One that was cut off, or is empty, is asked for again as it was: cut off, once. One that isn't the JSON
        asked for is asked for with the answer and what is wrong with it.

        Raises:
            UnusableReply: the last answer can't be used.
            Failure: as `send`.
            ValueError: the schema is none.
        """
        if request.schema:
            validator(request.schema)  # a bad one is the caller's error, not each answer's
        asked, cut = request, 0

        async def attempt() -> str:
            nonlocal asked, cut
            answer = await self._post(asked, used)
            try:
                return read_reply(answer.text, answer.finish_reason, request.schema)
            except UnusableReply as misfit:
                error = str(misfit)
                cut += error == "truncated"
                misfit.passing = error != "filtered" and cut < 2
                if error.startswith("misfit: "):
                    problem = error.removeprefix("misfit: ")
                    told = f"This answer can't be used: {problem}. Answer again, with the JSON value alone."
                    turns = [Message(role="assistant", content=answer.text)] if answer.text.strip() else []
                    turns.append(Message(role="user", content=told))
                    asked = replace(request, messages=(*request.messages, *turns))
                raise

        return await self.send(attempt, used)

    def serves_nobody(self, failure: Failure) -> bool:
        """Whether, with this failure of a request, it is no use to ask further."""
        if failure.status in _UNKNOWN:
            return True
        if not self.answered and (failure.unreachable or failure.status in _ABSENT):
            return True
        # A refused request may be a bad one. But where none was ever answered, it is what all have in common.
        self._failed_in_a_row += failure.passing or not self.answered
        return self._failed_in_a_row >= _IN_A_ROW

    async def _post(self, request: ChatRequest, used: ReplyRecord) -> CountedReply:
        largest = unused = sum(largest_use(request))
        await self._tokens.take(largest)
        try:
            body = request_body(self.endpoint, request)
            answer = await self.client.post(body, lambda reply: _read(reply, request), "/chat/completions")
            unused = largest - answer.prompt_tokens - answer.completion_tokens
        finally:
            self._tokens.give_back(unused)
        self._failed_in_a_row = 0
        used.prompt_tokens += answer.prompt_tokens
        used.completion_tokens += answer.completion_tokens
        return answer


def _read(reply: Any, request: ChatRequest) -> CountedReply:
    choices = field_of(reply, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = field_of(choice, "message")
    content = field_of(message, "content") or ""
    if not isinstance(message, dict) or not isinstance(content, str):
        raise ValueError("no chat completion")
    # Halves of characters, which no file can hold, become the replacement character.
    content = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    text = redact(content, least=LEAST_IN_TEXT)
    asked = "".join(turn["content"] for turn in request.messages)
    usage = field_of(reply, "usage")
    return CountedReply(
        text,
        str(field_of(choice, "finish_reason") or ""),
        _count(field_of(usage, "prompt_tokens"), asked),
        _count(field_of(usage, "completion_tokens"), text),
        _choices(field_of(field_of(choice, "logprobs"), "content")),
    )


def _choices(content: Any) -> tuple[TokenChoice, ...]:
    """OpenAI's `logprobs.content`. Raises ValueError: of another form."""
    try:
        return tuple(
            TokenChoice(
                str(place["token"]), {str(c["token"]): float(c["logprob"]) for c in place["top_logprobs"]}
            )
            for place in content or ()
        )
    except (TypeError, KeyError, ValueError):
        raise ValueError("logprobs of another form than OpenAI's") from None


def _count(count: Any, text: str) -> int:
    counted = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < _MOST_TOKENS
    return count if counted else estimate_tokens(text)


def request_body(endpoint: Endpoint, request: ChatRequest) -> dict[str, Any]:
    """The fields of the request's body, `extra` over ours; a null in `extra` leaves a field out."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [dict(message) for message in _messages(endpoint, request)],
        "temperature": request.temperature,
        endpoint.length_field: request.max_tokens,
    }
    if request.top_p != 1.0:  # some APIs refuse it beside a temperature
        body["top_p"] = request.top_p
    if request.seed is not None:
        body["seed"] = request.seed
    if request.schema and endpoint.structured == "json_schema":
        form = {"name": "answer", "schema": json.loads(request.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    elif request.schema and endpoint.structured == "json_object":
        body["response_format"] = {"type": "json_object"}
    body |= endpoint.extra
    return {name: value for name, value in body.items() if value is not None}


def estimate_tokens(text: str) -> int:
    """Tokens of a text, where nobody has counted them."""
    return -(-len(text) // _CHARACTERS)


def largest_use(request: ChatRequest) -> tuple[int, int]:
    """Tokens that a request may take: of the prompt, about; of the answer, at most."""
    prompt = request.schema + "".join(message["content"] for message in request.messages)
    return estimate_tokens(prompt), request.max_tokens


def _messages(endpoint: Endpoint, request: ChatRequest) -> list[Message]:
    """The chat, with the schema in the last user turn where the endpoint doesn't hold to it by itself."""
    messages = list(request.messages)
    if not request.schema or endpoint.structured == "json_schema":
        return messages
    last = max((i for i, turn in enumerate(messages) if turn["role"] == "user"), default=len(messages))
    before = "".join(f"{turn['content']}\n\n" for turn in messages[last : last + 1])
    messages[last : last + 1] = [Message(role="user", content=f"{before}{_FORM}{request.schema}")]
    return messages
