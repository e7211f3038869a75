"""Topics: a field of study to its subfields, and each of those to instructions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ultramed_rl.config.factory import Topics
from ultramed_rl.data.factory.asking import Form, Miss, ask, once_more, read_object, read_text, user
from ultramed_rl.data.factory.instructions import Instruction, new_row
from ultramed_rl.data.factory.step import Ask, Fail, Keep, Move, Row
from ultramed_rl.data.identity import row_id
from ultramed_rl.data.prompts import normalise_text
from ultramed_rl.records import ChatReply, Message

# By mode: what an item is made of; the first part says whether two items are the same.
_PARTS = {"subfields": ("name", "description"), "instructions": ("instruction", "context")}
_FORMS = {mode: Form.read(f"topics_{mode}", "name", "description", "count") for mode in _PARTS}
_NO_ITEMS = Miss("no_items", "it is not the JSON object asked for, or none of its items is complete")


class TopicsStep:
    """A field, {"name", "description"}, to rows of the same form (`subfields`) or Open-End records
    (`instructions`): at most `count`, each once, and never the field itself.

    A subfield's id is "FIELD > NAME", so that equal names under two fields stay apart.
    """

    def __init__(self, config: Topics) -> None:
        self.config = config

    def start(self, row: Row) -> Move:
        """Ask for the items."""
        if not read_text(row.get("name")) or not isinstance(row.get("description", ""), str):
            return Fail("malformed_record", "no text under 'name', or none under 'description'")
        return self._ask(row, 0, self._chat(row))

    def go_on(self, row: Row, replies: Sequence[ChatReply]) -> Move:
        """Keep the items; without any, ask again or give up."""
        items = self._read(row, replies[-1].text)
        if items:
            return Keep(tuple(self._row(row, number, *item) for number, item in enumerate(items, 1)))
        if len(replies) < self.config.attempts:
            return self._ask(row, len(replies), once_more(self._chat(row), replies[-1], _NO_ITEMS))
        return Fail(_NO_ITEMS.reason, replies[-1].text[-200:])

    def _chat(self, row: Row) -> list[Message]:
        name, description = read_text(row["name"]), read_text(row.get("description"))
        form = _FORMS[self.config.mode]
        return [user(form.render(name=name, description=description, count=str(self.config.count)))]

    def _ask(self, row: Row, turn: int, chat: Sequence[Message]) -> Ask:
        return ask(self.config, row, turn, chat, items_schema(self.config))

    def _read(self, row: Row, text: str) -> list[tuple[str, str]]:
        """The complete items, each once; an instruction may go without context."""
        values = (read_object(text) or {}).get("items")
        found: dict[str, tuple[str, str]] = {}
        for value in values if isinstance(values, list) else []:
            first, second = _item(value, _PARTS[self.config.mode])
            if first and (second or self.config.mode == "instructions"):
                # The same task about another text is another task.
                whole = first if self.config.mode == "subfields" else f"{first} {second}"
                found.setdefault(normalise_text(whole), (first, second))
        if self.config.mode == "subfields":
            found.pop(normalise_text(read_text(row["name"])), None)
        return list(found.values())[: self.config.count]

    def _row(self, row: Row, number: int, first: str, second: str) -> Row:
        field = row_id(dict(row), ("id", "name"))
        if self.config.mode == "subfields":
            return {"id": f"{field} > {first}", "name": first, "description": second}
        text = f"{first}\n\n{second}" if second else first
        return new_row(f"{self.config.name},{field}_{number}", "Open-End", Instruction(text))


def items_schema(config: Topics) -> str:
    """The JSON schema of a reply: {"items": [...]}, at most `count`."""
    parts = _PARTS[config.mode]
    item = {
        "type": "object",
        "properties": {part: {"type": "string"} for part in parts},
        "required": list(parts),
        "additionalProperties": False,
    }
    items = {"type": "array", "items": item, "minItems": 1, "maxItems": config.count}
    return json.dumps(
        {
            "type": "object",
            "properties": {"items": items},
            "required": ["items"],
            "additionalProperties": False,
        }
    )


def _item(value: Any, parts: tuple[str, str]) -> tuple[str, str]:
    if not isinstance(value, dict):
        return "", ""
    return read_text(value.get(parts[0])), read_text(value.get(parts[1]))
