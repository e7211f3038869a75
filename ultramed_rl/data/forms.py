"""Chats and prompts in the forms in which they are published: told by their columns, read by a few lines each.

row --> the first form whose columns it has --> turns
    --> what stands beside them and belongs to the prompt: a system turn, earlier turns, alpaca's input

Columns are compared without case, with - and blanks as _. docs/recipe.md says who publishes which form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

from ultramed_rl.data.chats import (
    ROLES,
    Misfit,
    NotedRow,
    Placed,
    as_flag,
    check_order,
    check_plain,
    check_text,
    read_column,
    read_turns,
    unlearnt_turns,
)
from ultramed_rl.data.sources import Row
from ultramed_rl.data.transcripts import parse_printed
from ultramed_rl.data.vignettes import COLUMNS as VIGNETTE_COLUMNS
from ultramed_rl.data.vignettes import read_vignette
from ultramed_rl.records import Message

TURNS = "messages conversations conversation"
QUESTIONS = "instruction prompt question query input"
ANSWERS = "completion output response answer"
LABELS = "label kto_tag"
_SYSTEM = "system system_prompt system_message system_instruction"
_HISTORY = "history chat_history conversation_history dialogue_history dialog_history"
# How tables and data sets write that there is no input, no system message.
_NOTHING = ("", "[]", "{}", "nan", "none", "null", "n/a", "<noinput>", "no input")
# What can only be part of a prompt: a misfit where it isn't read, unless the prompt has its text already.
_PROMPT_ALONE = (
    f"{_SYSTEM} {_HISTORY} question query input context passage passages paragraph article abstract document documents background knowledge "
    "premise tools functions options choices image images video videos audio audios "
    "b opa option_a option_1 option1 choice_a"  # of a question's options one is enough
)
_MESSAGE = {"message_tree_id", "message_id", "parent_id", "role", "text"}
_RATED = {"prompt", "response", "helpfulness"}


@dataclass(frozen=True)
class Chat:
    """A row's turns, and the places of the assistant's that its data keeps from being learnt."""

    turns: list[Message]
    unlearnt: frozenset[int] = frozenset()


class RowForm(NamedTuple):
    """How rows of some columns are read."""

    columns: tuple[str, ...]  # that the row must have, each by any of these names
    read: Callable[..., Any]  # (row, *those names)


def match_form(row: NotedRow, forms: Sequence[RowForm], nothing: str) -> Any:
    """What the first form whose columns the row has reads of it. Raises Misfit, with `nothing` of its columns, where it has
    none's."""
    for form in forms:
        names = [row.find(columns) for columns in form.columns]
        if None not in names:
            return form.read(row, *names)
    columns = (name if dict.get(row, name) is not None else f"{name} (empty)" for name in row)
    raise Misfit(nothing.format(f"its columns {', '.join(columns)}"))


# -- chats and questions -----------------------------------------------------------------------------------


def read_chat(row: NotedRow, column: str | None = None) -> Chat:
    """The row's chat, in whichever form it is, or that of a column. Raises Misfit."""
    nothing = "no chat in {}; one is under messages, conversations, or prompt and completion"
    chat = match_form(row, _CHATS, nothing) if column is None else _read_whole(row, column)
    turns = complete_prompt(row, chat.turns)
    more = len(turns) - len(chat.turns)  # which stand before the others
    return replace(chat, turns=turns, unlearnt=frozenset(place + more for place in chat.unlearnt))


def read_prompt(row: NotedRow, column: str | None = None) -> list[Message]:
    """The turns of a row of prompts: a chat with what answers it, or a question alone, in a column or wherever the columns tell.
    Raises Misfit."""
    if column is not None:
        return complete_prompt(row, with_input(row, read_turns(row, column, "user"), column))
    nothing = "no prompt in {}; one is under messages, conversations, prompt, question or instruction"
    chat: Chat = match_form(row, _PROMPTS, nothing)
    return complete_prompt(row, chat.turns)


def read_question(row: NotedRow, column: str) -> list[Message]:
    """The turns of a prompt whose question is this column's, a text or turns. Raises Misfit."""
    value = read_column(row, column)
    if not isinstance(value, list):
        check_text(value or None, f"column {column!r}")
    turns = complete_prompt(row, with_input(row, read_turns(row, column, "user"), column))
    check_order(turns, "user")
    return turns


def read_text(row: Row, column: str) -> str:
    """A column's text, trimmed. Raises Misfit for what is none."""
    value = read_column(row, column)
    if not isinstance(value, str) or not value.strip():
        raise Misfit(f"column {column!r} holds {value!r:.40}, not text")
    return check_plain(check_text(value.strip(), f"column {column!r}"))


def _read_whole(row: NotedRow, column: str) -> Chat:
    turns = read_turns(row, column)
    name = row.find("mask loss_mask weights loss_weights")  # NeMo's mask says whose turns aren't learnt
    if name is not None and row[name] and ROLES.get(str(row[name]).casefold()) != "user":
        raise Misfit(
            f"column {name!r} holds {row[name]!r:.40}; the assistant's turns are learnt, and a turn's own weight is read",
            name="weight",
        )
    return Chat(turns, _unlearnt(turns, unlearnt_turns(row, column)))


def _unlearnt(turns: Sequence[Message], places: Set[int]) -> frozenset[int]:
    return frozenset(place for place in places if turns[place]["role"] == "assistant")


def _read_answered(row: NotedRow, question: str, answer: str) -> Chat:
    asked = _read_asked(row, question).turns
    turns = asked + read_turns(row, answer, "assistant")
    places = {len(asked) + place for place in unlearnt_turns(row, answer, "assistant")}
    return Chat(turns, _unlearnt(turns, places | unlearnt_turns(row, question, "user")))


def _read_asked(row: NotedRow, question: str) -> Chat:
    return Chat(with_input(row, read_turns(row, question, "user"), question))


def _read_vignette(row: NotedRow, *_: str) -> Chat:
    vignette = read_vignette(row)
    said = {"user": vignette.text, "assistant": vignette.answer}
    return Chat([Message(role=role, content=text) for role, text in said.items()])


def _read_best_path(row: NotedRow, *_: str) -> Chat:
    """Of OASST's tree of replies the chat in which each is the best one."""
    path, node = list[Row](), row["prompt"]
    while node:
        path.append(node)
        node = min(
            read_replies(node), key=lambda r: math.inf if r.get("rank") is None else r["rank"], default={}
        )
    return Chat(read_path(path[: len(path) // 2 * 2]))


def read_replies(node: Row) -> list[Row]:
    """The replies to a message of a tree, without those that were deleted or failed their review."""
    replies = node.get("replies") or []
    return [
        r for r in replies if not as_flag(r.get("deleted")) and as_flag(r.get("review_result")) is not False
    ]


def read_orphan(row: NotedRow, *_: str) -> None:
    """A message of a tree that its tree couldn't be made of."""
    raise Misfit(
        f"a message whose parent {row['parent_id']!r:.40} isn't among the rows of its tree that follow one another; sort "
        "the file by message_tree_id",
        name="parent",
    )


def read_path(path: Sequence[Row]) -> list[Message]:
    """The turns of a path through a tree of replies."""
    turns = [{"role": node.get("role"), "content": node.get("text")} for node in path]
    return read_turns({"prompt": turns}, "prompt")


_CHATS = (
    RowForm((TURNS,), _read_whole),
    RowForm(VIGNETTE_COLUMNS, _read_vignette),
    RowForm(("message_tree_id", "prompt"), _read_best_path),
    RowForm(("message_tree_id", "parent_id", "text"), read_orphan),
    RowForm((QUESTIONS, ANSWERS), _read_answered),
)
_PROMPTS = (*_CHATS, RowForm((QUESTIONS,), _read_asked))


# -- what belongs to a prompt ------------------------------------------------------------------------------


def with_input(row: NotedRow, turns: list[Message], question: str) -> list[Message]:
    """An instruction with its input, as alpaca has it, or its context, as Dolly has it, a paragraph below."""
    name = row.find("input context") if question.casefold() == "instruction" else None
    # What is no text stays unread, and is told as such.
    if name is None or not isinstance(dict.get(row, name), str) or row[name].strip().casefold() in _NOTHING:
        return turns
    (more,) = read_turns(row, name, "user")
    *before, last = turns
    return [*before, Message(role=last["role"], content=f"{last['content']}\n\n{more['content']}")]


def complete_prompt(row: NotedRow, turns: list[Message]) -> list[Message]:
    """The turns with what the row holds of their prompt beside them. Raises Misfit where that cannot be read."""
    told = [turn["content"] for turn in turns]
    history = row.find(_HISTORY)
    if history is not None:
        earlier = dict.get(row, history)
        earlier = parse_printed(earlier) if isinstance(earlier, str) else earlier
        if isinstance(earlier, list):
            row.read.add(history)
        if isinstance(earlier, list) and not is_told(earlier, told):
            place = int(turns[:1] != [] and turns[0]["role"] == "system")
            turns = [*turns[:place], *read_turns({history: earlier}, history), *turns[place:]]
    system = row.find(_SYSTEM)
    if system is not None and not is_told(row[system], told):
        if any(turn["role"] == "system" for turn in turns):
            raise Misfit(f"a system message in its turns, and another in column {system!r}", name="prompt")
        turns = [*read_turns(row, system, "system"), *turns]
    if row.find(_PROMPT_ALONE) is None:
        return turns
    for wanted in _PROMPT_ALONE.split():
        name = row.find(wanted)
        if name is not None and name not in row.read and not is_told(row[name], told):
            raise Misfit(
                f"column {name!r} is part of its prompt and isn't read; put it into the prompt's text, or name it "
                "under the source's ignore",
                name="unread",
            )
    return turns


def is_told(value: Any, told: Sequence[str]) -> bool:
    """Whether texts hold all that a column says."""
    if isinstance(value, dict):
        value = value["content"] if "content" in value else value.get("value", list(value.values()))
    if isinstance(value, list | tuple):
        return all(is_told(one, told) for one in value)
    text = "" if value is None else str(value).strip()
    return text.casefold() in _NOTHING or any(text in one for one in told)


# -- rows that say something only together -----------------------------------------------------------------
# The messages of a tree, the rated answers to a prompt: one row each. They must follow one another, as they do where they are
# published.


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
