"""A row's id and instruction, wherever its columns are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultramed_rl.config.factory_cleaning import Columns
from ultramed_rl.data.chats import Misfit, read_turns


def named_instruction(row: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    """(id, instruction) of a row. Of a chat the instruction is its first user turn.

    Raises:
        ValueError: no id, or neither a text nor a chat in the instruction's column.
    """
    name, value = row.get(columns.id), row.get(columns.instruction)
    if name in (None, ""):
        raise ValueError(
            f"row {str(dict(row))[:80]}: nothing in column {columns.id!r}; name the ids' column in columns.id"
        )
    if isinstance(value, str):
        return str(name), value
    try:
        turns = read_turns(dict(row), columns.instruction)
        return str(name), next(turn["content"] for turn in turns if turn["role"] == "user")
    except (Misfit, StopIteration) as error:
        why = f" ({error})" if isinstance(error, Misfit) else ""
        raise ValueError(
            f"row {name}: column {columns.instruction!r} holds {value!r:.40}, neither a text nor a chat with a user "
            f"turn{why}; name the instructions' column in columns.instruction"
        ) from None
