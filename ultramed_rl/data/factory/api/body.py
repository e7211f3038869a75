"""What is sent to a chat completions API for a request, and about how many tokens that is."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ultramed_rl.config.generation import Endpoint
from ultramed_rl.records import ChatRequest, Message

_CHARACTERS = 4  # of English to a token, about
_FORM = "Answer with one JSON value that fits this JSON schema, and with nothing else:\n"


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
