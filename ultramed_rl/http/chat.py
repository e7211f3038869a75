"""A chat completions API: messages to a text, and what is no such reply."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from ultramed_rl.config.models import Endpoint
from ultramed_rl.config.secrets import LEAST_IN_TEXT, read_secret, redact
from ultramed_rl.http.client import HttpClient, Server, field_of
from ultramed_rl.http.session import Rate, Session, Trail
from ultramed_rl.records import ChatRequest, Message

_KEY = "set api_key_env to the variable that holds its key"
_MOST_TOKENS = 2**31  # a larger count is no count
_CHARACTERS = 4  # of English to a token, about
_FORM = "Answer with one JSON value that fits this JSON schema, and with nothing else:\n"


@dataclass(frozen=True)
class Answer:
    """A reply as it came. Where the API doesn't count tokens, they are estimated."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass
class ChatTrail(Trail):
    """What one request has taken so far, over all its attempts."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


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
        self.endpoint, self.client = endpoint, client
        self._tokens = Rate(endpoint.tokens_per_minute)

    async def ask(self, request: ChatRequest, trail: ChatTrail) -> Answer:
        """The answer; `trail` is told what it took. Raises Failure as `Session.send`."""
        answer = await self.send(lambda: self._post(request), trail)
        trail.prompt_tokens += answer.prompt_tokens
        trail.completion_tokens += answer.completion_tokens
        return answer

    async def _post(self, request: ChatRequest) -> Answer:
        largest = unused = sum(largest_use(request))
        await self._tokens.take(largest)
        try:
            body = request_body(self.endpoint, request)
            answer = await self.client.post(body, lambda reply: _read(reply, request), "/chat/completions")
            unused = largest - answer.prompt_tokens - answer.completion_tokens
            return answer
        finally:
            self._tokens.give_back(unused)


def _read(reply: Any, request: ChatRequest) -> Answer:
    choices = field_of(reply, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = field_of(choice, "message")
    content = field_of(message, "content") or ""
    if not isinstance(message, dict) or not isinstance(content, str):
        raise ValueError("no chat completion")
    text = redact(_without_surrogates(content), least=LEAST_IN_TEXT)
    asked = "".join(turn["content"] for turn in request.messages)
    usage = field_of(reply, "usage")
    return Answer(
        text,
        str(field_of(choice, "finish_reason") or ""),
        _count(field_of(usage, "prompt_tokens"), asked),
        _count(field_of(usage, "completion_tokens"), text),
    )


def _count(count: Any, text: str) -> int:
    counted = isinstance(count, int) and not isinstance(count, bool) and 0 <= count < _MOST_TOKENS
    return count if counted else estimate_tokens(text)


def _without_surrogates(text: str) -> str:
    """Halves of characters, which no file can hold, as the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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


def correction(request: ChatRequest, text: str, problem: str) -> ChatRequest:
    """The request once more, with the reply that wasn't usable and what is wrong with it."""
    told = f"This answer can't be used: {problem}. Answer again, with the JSON value alone."
    turns = [Message(role="assistant", content=text)] if text.strip() else []
    return replace(request, messages=(*request.messages, *turns, Message(role="user", content=told)))


def estimate_tokens(text: str) -> int:
    """Tokens of a text, where nobody has counted them."""
    return -(-len(text) // _CHARACTERS)


def largest_use(request: ChatRequest) -> tuple[int, int]:
    """Tokens that a request may take: of the prompt, about; of the answer, at most."""
    prompt = request.schema + "".join(message["content"] for message in request.messages)
    return estimate_tokens(prompt), request.max_tokens


def _messages(endpoint: Endpoint, request: ChatRequest) -> tuple[Message, ...]:
    """The chat, with the schema in the last user turn where the endpoint doesn't hold to it by itself."""
    if not request.schema or endpoint.structured == "json_schema":
        return request.messages
    last = max((i for i, turn in enumerate(request.messages) if turn["role"] == "user"), default=None)
    if last is None:
        return (*request.messages, Message(role="user", content=_FORM + request.schema))
    content = f"{request.messages[last]['content']}\n\n{_FORM}{request.schema}"
    asked = Message(role="user", content=content)
    return (*request.messages[:last], asked, *request.messages[last + 1 :])
