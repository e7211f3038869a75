"""What a stage of the factory does with one record: a coroutine that asks and says how the record ends.

record --> step(row, ask) --> Keep | Drop | Fail
               |   ^
         request   reply: sent, cached and resumed by the runner and its generator
"""

from __future__ import annotations

import json
import types
from collections.abc import Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ultramed_rl.config.factory_steps import Asking
from ultramed_rl.data.identity import row_id
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.records import ChatReply, ChatRequest, Message

Row = Mapping[str, Any]


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


class Step(Protocol):
    """A stage's logic: the same for the same record and replies, so that a killed run goes on with it."""

    def __call__(self, row: Row, ask: Ask) -> Coroutine[Any, Any, End]:
        """How the record ends. It awaits `ask` alone; a request that can't be answered ends the record there."""
        ...


class Ask:
    """Asks a model about one record; each question draws a reply of its own, and the same one in every run."""

    def __init__(self, row: Row) -> None:
        self._name, self._asked = name_of(row), 0

    async def __call__(self, config: Asking, messages: Sequence[Message], schema: str = "") -> ChatReply:
        """The reply, which has no error; `schema` is that of the JSON asked for."""
        seed = derive_seed(config.seed, self._name, self._asked)
        self._asked += 1
        sampling = (config.max_tokens, config.temperature, config.top_p, seed)
        return await send(ChatRequest(self._name, tuple(messages), *sampling, schema))


@types.coroutine
def send(request: ChatRequest) -> Generator[ChatRequest, ChatReply, ChatReply]:
    """The reply of whoever drives the step; `request.key` is free, the runner gives its own."""
    return (yield request)


def name_of(row: Row) -> str:
    """The record's own id, else a number that stands for its content: what is drawn for it goes by this."""
    return row_id(dict(row), ("id",)) or str(derive_seed(json.dumps(row, sort_keys=True, default=str)))
