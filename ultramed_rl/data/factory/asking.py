"""How a step asks: templates filled, requests seeded, replies read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from ultramed_rl.config.factory import Asking
from ultramed_rl.data.factory.step import Ask, Row
from ultramed_rl.data.identity import row_id
from ultramed_rl.data.templates import read_template, without_tags
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.records import ChatReply, ChatRequest, Message


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


def ask(config: Asking, row: Row, turn: int, messages: Sequence[Message], schema: str = "") -> Ask:
    """A request about a record; `turn` counts those before it, so that each draws a reply of its own."""
    seed = derive_seed(config.seed, name_of(row), turn)
    sampling = (config.max_tokens, config.temperature, config.top_p, seed)
    return Ask(ChatRequest(name_of(row), tuple(messages), *sampling, schema))


def once_more(messages: Sequence[Message], reply: ChatReply, miss: Miss) -> list[Message]:
    """The chat that asks again and names what the last reply lacks."""
    # An empty turn is refused by some chat templates and APIs.
    said = after_thoughts(reply.text) or "(empty)"
    return [*messages, assistant(said), user(_RETRY.render(problem=miss.detail))]


def name_of(row: Row) -> str:
    """The record's own id, else a number that stands for its content: what is drawn for it goes by this."""
    content = json.dumps(row, sort_keys=True, default=str)
    return row_id(dict(row), ("id",)) or str(derive_seed(content))


def after_thoughts(text: str) -> str:
    """A reply without its thoughts, trimmed; thoughts that never end leave nothing."""
    return text.rpartition("</think>")[2].partition("<think>")[0].strip()


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
