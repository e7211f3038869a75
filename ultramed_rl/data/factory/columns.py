"""A row's id and instruction, wherever its columns are; and rows told apart by what a search says to remove."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from ultramed_rl.config.factory import Columns
from ultramed_rl.data.chats import Misfit, read_turns

AnyRow = TypeVar("AnyRow", bound=Mapping[str, Any])
Removal = TypeVar("Removal")  # Contaminated, Repeated, or any other record of why


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


def split_removed(
    rows: Iterable[AnyRow], columns: Columns, removals: Mapping[str, Removal]
) -> Iterator[tuple[AnyRow, Removal | None]]:
    """The rows in order, each with its removal, or with None if it stays.

    Args:
        rows: those that were searched, again.
        columns: where the rows' ids are; the ones that the search was given.
        removals: by the id of a row to remove, why. Each must be met once: rows and search belong together.

    Raises:
        ValueError: two rows of one id of `removals`; at the end, an id that no row has; or a row without an id or
            an instruction.
    """
    met: set[str] = set()
    for row in rows:
        name, _ = named_instruction(row, columns)
        if name in met:
            raise ValueError(f"id {name!r}: is to be removed and two rows have it; give every row its own id")
        if name in removals:
            met.add(name)
        yield row, removals.get(name)
    if len(met) < len(removals):
        missing = next(name for name in removals if name not in met)
        raise ValueError(
            f"id {missing!r}: is to be removed ({len(removals) - len(met)} such ids) and no row has it; give the "
            "rows that were searched, or search again"
        )
