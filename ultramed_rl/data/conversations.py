"""Conversations to fine-tune on, out of the formats in which they are published.

UltraMedical, ShareGPT    conversations: [{"from": "human", "value": ...}, {"from": "gpt", ...}]
most others               messages: [{"role": "user", "content": ...}, {"role": "assistant", ...}]
TRL                       prompt and completion, each a text or such a list
DrugSwap                  a vignette with its options and key, see `vignettes`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ultramed_rl.config.stages import ConversationSource
from ultramed_rl.data.chats import FittingRows, Misfit, check_order, check_text, read_turns
from ultramed_rl.data.identity import content_key, row_id
from ultramed_rl.data.sources import Row
from ultramed_rl.data.vignettes import COLUMNS as VIGNETTE_COLUMNS
from ultramed_rl.data.vignettes import Vignette, answer_sentence, read_vignette, render_vignette
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Conversation, Message


def read_conversations(
    source: ConversationSource, counts: Counter[str], *, quiet: bool = False
) -> Iterator[Conversation]:
    """The conversations behind a source's URI (see `read_rows`), in order and each once, as they are read.

    A conversation has perhaps a system message first, then user and assistant in turn, and ends with the
    assistant; its texts are trimmed and not empty. Its id is the row's own `id` or `prompt_id`, else a hash of
    the content, the same in every process. Memory holds two numbers a row.

    Args:
        counts: gains rows, duplicate (equal content, whatever the ids), misfit and, by reason, misfit_NAME.
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
        kind = Conversation.kind
        if isinstance(row.get("type"), str) and row["type"]:
            kind = check_text(row["type"], "its type", name="id")
        contents.add(int(key, 16))
        ids.add(seeded_number(name))
        return Conversation(name, tuple(messages), kind)

    fix = "name another column, clean the file, or raise max_misfit_share"
    limits = (source.uri, source.limit, source.max_misfit_share)
    yield from FittingRows(*limits, "hold no conversation", fix, counts, quiet).parse(parse)


def _messages(row: Row, column: str | None) -> list[Message]:
    """The row's turns, in whichever format it is."""
    present = {name for name, value in row.items() if value is not None}
    if column is not None or present & {"messages", "conversations"}:
        return read_turns(row, column or "messages")
    if present.issuperset(VIGNETTE_COLUMNS):
        vignette = read_vignette(row)
        if not isinstance(vignette, Vignette):
            raise Misfit(f"a vignette that is left out: {vignette}", name=vignette)
        answer = answer_sentence(vignette.options, vignette.letter)
        return [
            Message(role="user", content=render_vignette(vignette)),
            Message(role="assistant", content=answer),
        ]
    if not present.issuperset(("prompt", "completion")):
        raise Misfit(
            f"no chat in its columns {', '.join(row)}; one is under messages, conversations, or prompt and completion"
        )
    return [*read_turns(row, "prompt", "user"), *read_turns(row, "completion", "assistant")]
