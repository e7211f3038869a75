"""What a stage of the factory does with one record: a coroutine that asks and says how the record ends.

record --> step(row, ask) --> Keep | Drop | Fail
               |   ^
         request   reply: sent, cached and resumed by the runner and its generator
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Callable, Coroutine, Mapping, Sequence
from collections.abc import Generator as Yields
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Protocol, TypeVar

from ultramed_rl.config.factory_steps import Asking, Evolve, Score, Textbook, Topics, WriteRubric
from ultramed_rl.data.identity import row_id
from ultramed_rl.data.templates import read_template, without_tags
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.records import ChatReply, ChatRequest, Message
from ultramed_rl.thoughts import after_thoughts

Row = Mapping[str, Any]
Schema = Mapping[str, Any]  # of JSON
T = TypeVar("T")


@dataclass(frozen=True)
class Keep:
    """The record is done; what it became: one row, or several."""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Drop:
    """The record is done and left out on purpose: below a threshold, not worth a question. Counted by reason."""

    reason: str


@dataclass(frozen=True)
class Fail:
    """The record could not be done: it goes to the failures with the reason, a name and perhaps a detail."""

    reason: str
    detail: str = ""


End = Keep | Drop | Fail


class Generator(Protocol):
    """Answers chats: an HTTP API, or our own engines. For one event loop."""

    async def reply(self, request: ChatRequest) -> ChatReply:
        """The reply, with an error where there is none; any number may be awaited at once. Raises BudgetSpent: no more is
        answered."""
        ...

    async def close(self) -> None:
        """Let go of what belongs to the loop."""
        ...


class Ask:
    """Asks a model about one record; each question draws a reply of its own, and the same one in every run."""

    def __init__(self, row: Row) -> None:
        self._name, self._asked = name_of(row), 0

    async def __call__(
        self, config: Asking, messages: Sequence[Message], schema: Schema | None = None
    ) -> ChatReply:
        """The reply, which has no error; `schema` is that of the JSON asked for."""
        seed = derive_seed(config.seed, self._name, self._asked)
        self._asked += 1
        sampling = (config.max_tokens, config.temperature, config.top_p, seed)
        form = "" if schema is None else json.dumps(schema)
        return await send(ChatRequest(self._name, tuple(messages), *sampling, form))


# A stage's logic: how a record ends, the same for the same record and replies, so that a killed run goes on with it. It awaits
# `ask` alone; a request that can't be answered ends the record there. A record that it doesn't read is a Misfit.
Step = Callable[[Row, Ask], Coroutine[Any, Any, End]]


@types.coroutine
def send(request: ChatRequest) -> Yields[ChatRequest, ChatReply, ChatReply]:
    """The reply of whoever drives the step; `request.key` is free, the runner gives its own."""
    return (yield request)


def name_of(row: Row) -> str:
    """The record's own id, else a number that stands for its content: what is drawn for it goes by this."""
    return row_id(dict(row), ("id",)) or str(derive_seed(json.dumps(row, sort_keys=True, default=str)))


# -- templates filled, replies read, and asked for again ----------------------------------------------------


@dataclass(frozen=True)
class Miss:
    """What a reply lacks: a name to count it by, and a sentence for the model, all in our words."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Form:
    """A prompt template. What fills it cannot close the tags that the template frames it in."""

    template: Template
    tags: tuple[str, ...]

    @classmethod
    def read(cls, name: str, *fields: str) -> Form:
        """The template in the file NAME.txt beside this one; it holds exactly these fields."""
        template = read_template(Path(__file__).with_name(f"{name}.txt"), fields, (), name)
        return cls(template, tuple(sorted({*re.findall(r"</(\w+)>", template.template)})))

    def render(self, **fields: str) -> str:
        """The prompt; the fields' texts stand in it verbatim but for tags of ours."""
        if self.tags:
            fields = {name: without_tags(text, *self.tags) for name, text in fields.items()}
        return self.template.substitute(fields).strip()


_RETRY = Form.read("retry", "problem")


def user(text: str) -> Message:
    """A chat turn of the asking side."""
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    """A chat turn of the answering side."""
    return Message(role="assistant", content=text)


async def ask_until(
    ask: Ask,
    config: Textbook | Topics | Evolve | Score | WriteRubric,
    messages: Sequence[Message],
    schema: Schema | None,
    read: Callable[[str], T | Miss],
) -> T | Fail:
    """What `read` makes of a reply. One with a miss is asked for again with the miss named, until all of
    `config.attempts` are used up."""
    chat = list(messages)
    for _ in range(config.attempts):
        reply = await ask(config, chat, schema)
        value = read(reply.text)
        if not isinstance(value, Miss):
            return value
        miss = value
        chat = once_more(messages, reply.text, miss)
    return Fail(miss.reason, reply.text[-200:])


def once_more(messages: Sequence[Message], text: str, miss: Miss) -> list[Message]:
    """The chat that asks again and names what the last reply lacks."""
    said = after_thoughts(text) or "(empty)"  # an empty turn is refused by some chat templates and APIs
    return [*messages, assistant(said), user(_RETRY.render(problem=miss.detail))]


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a reply is, or None; so for text that cannot be written again."""
    try:
        value = json.loads(after_thoughts(text))
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def read_text(value: Any) -> str:
    """A JSON value that should be text, trimmed; empty if it is something else."""
    return value.strip() if isinstance(value, str) else ""


def read_methods(name: str) -> dict[str, str]:
    """What to do, by the method's name, out of the file NAME.txt beside this one."""
    lines = Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8").splitlines()
    parts = [line.partition(": ") for line in lines if line.strip()]
    assert all(before and after for before, _, after in parts), f"{name}.txt: a line without a name"
    return {before: after for before, _, after in parts}


def object_schema(properties: Schema, required: Sequence[str] | None = None) -> Schema:
    """The JSON schema of an object with these properties and no others; all are required unless named."""
    needed = list(properties if required is None else required)
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
