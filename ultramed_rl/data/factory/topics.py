"""Topics: a field of study to its subfields, and each of those to instructions."""

from __future__ import annotations

from dataclasses import dataclass

from ultramed_rl.config.factory_steps import Topics
from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.instructions import Instruction, new_row
from ultramed_rl.data.factory.step import (
    Ask,
    End,
    Fail,
    Form,
    Keep,
    Miss,
    Row,
    Schema,
    ask_until,
    object_schema,
    read_object,
    read_text,
    user,
)
from ultramed_rl.data.identity import row_id
from ultramed_rl.data.likeness import normalise_text

# By mode: what an item is made of; the first part says whether two items are the same.
_PARTS = {"subfields": ("name", "description"), "instructions": ("instruction", "context")}
_FORMS = {mode: Form.read(f"topics_{mode}", "name", "description", "count") for mode in _PARTS}
_NO_ITEMS = Miss("no_items", "it is not the JSON object asked for, or none of its items is complete")


@dataclass(frozen=True)
class TopicsStep:
    """A field, {"name", "description"}, to rows of the same form (`subfields`) or Open-End records (`instructions`): at
    most `count`, each once, and never the field itself. A subfield's id is "FIELD > NAME", so that equal names under two
    fields stay apart."""

    config: Topics

    async def __call__(self, row: Row, ask: Ask) -> End:
        name, description = read_text(row.get("name")), row.get("description", "")
        if not name or not isinstance(description, str):
            raise Misfit("no text under 'name', or none under 'description'")
        fields = {"name": name, "description": description.strip(), "count": str(self.config.count)}
        chat = [user(_FORMS[self.config.mode].render(**fields))]
        read = lambda text: self._read(row, text) or _NO_ITEMS
        items = await ask_until(ask, self.config, chat, items_schema(self.config), read)
        if isinstance(items, Fail):
            return items
        return Keep(tuple(self._row(row, number, *item) for number, item in enumerate(items, 1)))

    def _read(self, row: Row, text: str) -> list[tuple[str, str]]:
        """The complete items, each once; an instruction may go without context."""
        values = (read_object(text) or {}).get("items")
        items: dict[str, tuple[str, str]] = {}
        for value in values if isinstance(values, list) else []:
            item = value if isinstance(value, dict) else {}
            first, second = (read_text(item.get(part)) for part in _PARTS[self.config.mode])
            if first and (second or self.config.mode == "instructions"):
                # The same task about another text is another task.
                identity = first if self.config.mode == "subfields" else f"{first} {second}"
                items.setdefault(normalise_text(identity), (first, second))
        if self.config.mode == "subfields":
            items.pop(normalise_text(read_text(row["name"])), None)
        return list(items.values())[: self.config.count]

    def _row(self, row: Row, number: int, first: str, second: str) -> Row:
        field = row_id(dict(row), ("id", "name"))
        if self.config.mode == "subfields":
            return {"id": f"{field} > {first}", "name": first, "description": second}
        text = f"{first}\n\n{second}" if second else first
        return new_row(f"{self.config.name},{field}_{number}", "Open-End", Instruction(text))


def items_schema(config: Topics) -> Schema:
    """The JSON schema of a reply: {"items": [...]}, at most `count`."""
    parts = _PARTS[config.mode]
    item = object_schema({part: {"type": "string"} for part in parts})
    items = {"type": "array", "items": item, "minItems": 1, "maxItems": config.count}
    return object_schema({"items": items})
