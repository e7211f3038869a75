"""Conversations to fine-tune on, out of the formats in which they are published.

UltraMedical, ShareGPT    conversations: [{"from": "human", "value": ...}, {"from": "gpt", ...}]
most others               messages: [{"role": "user", "content": ...}, {"role": "assistant", ...}]
TRL                       prompt and completion, each a text or such a list
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ultramed_rl.config.stages import ConversationSource
from ultramed_rl.data.chats import Misfit, check_text, read_turns
from ultramed_rl.data.identity import content_key, row_id
from ultramed_rl.data.misfits import FittingRows
from ultramed_rl.data.sources import Row
from ultramed_rl.data.vignettes import COLUMNS as VIGNETTE_COLUMNS
from ultramed_rl.data.vignettes import Vignette, answer_sentence, read_vignette, render_vignette
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Conversation, Message

CHAT_COLUMNS = ("messages", "conversations")
PAIR_COLUMNS = {"prompt": "user", "completion": "assistant"}  # and the role of a plain text in each


def read_conversations(
    source: ConversationSource, counts: Counter[str], *, quiet: bool = False
) -> Iterator[Conversation]:
    """The conversations behind a source's URI (see `read_rows`), in order and each once, as they are read.

    A conversation has perhaps a system message first, then user and assistant in turn, and ends with the
    assistant; its texts are trimmed and not empty. Its id is the row's own `id` or `prompt_id`, else a hash of
    the content, the same in every process. Memory holds two numbers a row.

    Args:
        counts: gains rows, duplicate (equal content, whatever the ids), misfit and, by reason, misfit_column,
            misfit_turn, misfit_empty, misfit_rendered, misfit_order, misfit_id (an id that another content has already).
        quiet: don't warn of skipped rows.

    Raises:
        ValueError: an unreadable source; at its end, too many misfits, or no conversation at all.
    """
    counts.update(duplicate=0)
    contents: set[int] = set()
    ids: set[int] = set()

    def parse(row: Row) -> Conversation | None:
        messages = _messages(row, source.column)
        check_order(messages, "assistant")
        key = content_key(messages)
        if int(key, 16) in contents:
            counts["duplicate"] += 1
            return None
        name = row_id(row, ("id", "prompt_id")) or key
        if seeded_number(name) in ids:
            raise Misfit(f"id {name!r:.60} has another content before", name="id")
        found = Conversation(name, tuple(messages), _kind(row))
        contents.add(int(key, 16))
        ids.add(seeded_number(name))
        return found

    fix = "name another column, clean the file, or raise max_misfit_share"
    limits = (source.uri, source.limit, source.max_misfit_share)
    yield from FittingRows(*limits, "hold no conversation", fix, counts, quiet).parse(parse)


def text_or_turns(row: Row, column: str, role: str) -> list[Message]:
    """The column's turns; a plain text is one turn of `role`.

    Raises:
        Misfit: as `read_turns` does.
    """
    if isinstance(row.get(column), str):
        row = {column: [{"role": role, "content": row[column]}]}
    return read_turns(row, column)


def check_order(messages: Sequence[Message], last: str) -> None:
    """Raise Misfit unless user and assistant alternate, after an optional system message, up to role `last`."""
    roles = [m["role"] for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    for place, role in enumerate(turns):
        expected = ("user", "assistant")[place % 2]
        if role != expected:
            turn = len(roles) - len(turns) + place + 1
            raise Misfit(f"turn {turn} is of role {role!r}, not {expected!r}", name="order")
    if not turns or turns[-1] != last:
        raise Misfit(f"it doesn't end with a turn of role {last!r}", name="order")


def _messages(row: Row, column: str | None) -> list[Message]:
    """The row's turns, in whichever format it is."""
    if column is not None:
        return read_turns(row, column)
    if any(row.get(name) is not None for name in CHAT_COLUMNS):
        return read_turns(row, CHAT_COLUMNS[0])
    if all(row.get(name) is not None for name in VIGNETTE_COLUMNS):
        return _vignette(row)
    if any(row.get(name) is None for name in PAIR_COLUMNS):
        raise Misfit(
            f"no chat in its columns {', '.join(row)}; one is under {', '.join(CHAT_COLUMNS)}, "
            f"or {' and '.join(PAIR_COLUMNS)}"
        )
    return [message for name, role in PAIR_COLUMNS.items() for message in text_or_turns(row, name, role)]


def _vignette(row: Row) -> list[Message]:
    """DrugSwap: the question with its lettered options, and the sentence that names the right one."""
    vignette = read_vignette(row)
    if not isinstance(vignette, Vignette):
        raise Misfit(f"a vignette that is left out: {vignette}", name=vignette)
    answer = answer_sentence(vignette.options, vignette.letter)
    return [
        Message(role="user", content=render_vignette(vignette)),
        Message(role="assistant", content=answer),
    ]


def _kind(row: Row) -> str:
    kind = row.get("type")
    return check_text(kind, "its type", name="id") if isinstance(kind, str) and kind else Conversation.kind
