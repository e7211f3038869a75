"""Conversations to fine-tune on, out of every form in which they are published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from ultramed_rl.config.stages import ConversationSource
from ultramed_rl.data.chats import (
    REASONING,
    FittingRows,
    Misfit,
    NotedRow,
    SourceNotes,
    as_flag,
    check_order,
    check_text,
)
from ultramed_rl.data.forms import LABELS, gather_messages, read_chat
from ultramed_rl.data.identity import content_key, row_id
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Conversation, Message

_WANTED = f"{LABELS} is_correct is_chosen accepted"  # false: an answer that is not to be learnt


def read_conversations(
    source: ConversationSource, counts: Counter[str], notes: SourceNotes | None = None
) -> Iterator[Conversation]:
    """The conversations behind a source's URI (see `read_rows`), in order and each once, as they are read.

    A conversation has perhaps a system message first, then user and assistant in turn, and ends with the
    assistant; its texts are trimmed and not empty. Its id is the row's own `id` or `prompt_id`, else a hash of
    the content, the same in every process. Memory holds two numbers a row.

    Args:
        counts: gains rows, duplicate (equal content, whatever the ids), misfit and, by reason, misfit_NAME.
        notes: gains what is noted of rows and columns; None: warnings say it.

    Raises:
        ValueError: an unreadable source; at its end, too many misfits, or no conversation at all.
    """
    counts.update(duplicate=0)
    contents: set[int] = set()
    ids: set[int] = set()

    def parse(row: NotedRow) -> Conversation | None:
        chat = read_chat(row, source.column)
        check_order(chat.turns, "assistant")
        _check_wanted(row)
        if chat.unlearnt and len(chat.unlearnt) == len([t for t in chat.turns if t["role"] == "assistant"]):
            raise Misfit("its data keeps all of its answers from being learnt", name="weight")
        key = conversation_key(chat.turns, chat.unlearnt)
        if (content := int(key, 16)) in contents:
            counts["duplicate"] += 1
            return None
        name = row_id(row, ("id", "prompt_id", "message_tree_id")) or key
        if (number := seeded_number(name)) in ids:
            raise Misfit(f"id {name!r:.60} has another content before", name="id")
        kind = Conversation.kind
        if isinstance(row.get("type"), str) and row["type"]:
            kind = check_text(row["type"], "its type", name="id")
        contents.add(content)
        ids.add(number)
        return Conversation(name, tuple(chat.turns), kind, chat.unlearnt)

    fix = "clean the file, or raise max_misfit_share"
    fix = fix if source.column is None else f"name another column, {fix}"
    rows = FittingRows.of(source, "hold no conversation", fix, counts, notes)
    yield from rows.parse(parse, gather_messages)


def _check_wanted(row: NotedRow) -> None:
    """Raise Misfit for a row that its data keeps from being learnt, or whose answer is more than its text. Where a column says
    neither yes nor no, it is of a class, and not read."""
    for name in row.find_all(_WANTED):
        if as_flag(dict.get(row, name)) is False:
            raise Misfit(f"column {name!r}: an unwanted answer, of which only kto learns", name="label")
    for name in row.find_all("weight loss_weight train trainable"):
        if as_flag(dict.get(row, name)) is False:
            raise Misfit(f"column {name!r} keeps the row from being learnt", name="weight")
    for name in row.find_all(REASONING):
        if name not in row.read and dict.get(row, name) not in ("", []):
            raise Misfit(
                f"column {name!r} holds the reasoning before its answer, which isn't read; put it into the answer's text, or name it "
                "under the source's ignore",
                name="unread",
            )


def conversation_key(messages: Sequence[Message], unlearnt: Collection[int]) -> str:
    """16 hexadecimal digits that stand for a chat and what of it isn't learnt."""
    return content_key(messages, (sorted(unlearnt),) if unlearnt else ())
