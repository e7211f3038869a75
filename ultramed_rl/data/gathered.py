"""Rows that say something only together, as one row: the messages of a tree, the rated answers to a prompt.

They must follow one another, as they do where they are published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from itertools import groupby

from ultramed_rl.data.chats import Placed
from ultramed_rl.data.files import Row

_MESSAGE = {"message_tree_id", "message_id", "parent_id", "role", "text"}
_RATED = {"prompt", "response", "helpfulness"}


def gather_messages(rows: Placed) -> Placed:
    """OASST's messages as their trees, a row each; a message whose parent is missing, and any other row, as it is."""
    return _gather(rows, _MESSAGE, "message_tree_id", _trees)


def gather_answers(rows: Placed) -> Placed:
    """As `gather_messages`; and HelpSteer's and HelpSteer2's answers, which helpfulness orders, with their prompt."""
    return _gather(gather_messages(rows), _RATED, "prompt", _rated_answers)


def _gather(
    rows: Placed, columns: Set[str], key: str, merge: Callable[[Sequence[Row]], Sequence[Row]]
) -> Placed:
    for name, group in groupby(rows, lambda placed: placed[1][key] if columns <= placed[1].keys() else None):
        if name is None:
            yield from group
        else:
            placed = list(group)
            yield from ((placed[0][0], row) for row in merge([row for _, row in placed]))


def _trees(messages: Sequence[Row]) -> list[Row]:
    nodes: dict[str, Row] = {row["message_id"]: {**row, "replies": []} for row in messages}
    rows = []
    for row in messages:
        node, parent = nodes[row["message_id"]], nodes.get(row["parent_id"])
        if parent is not None:
            parent["replies"].append(node)
        else:
            tree = {"message_tree_id": row["message_tree_id"], "prompt": node}
            rows.append(row if row["parent_id"] else tree)
    return rows


def _rated_answers(rows: Sequence[Row]) -> list[Row]:
    answers = [{"response": row["response"], "score": row["helpfulness"]} for row in rows]
    beside = {name: value for name, value in rows[0].items() if name not in ("response", "helpfulness")}
    return [{**beside, "completions": answers}]
