"""Rows become chats, and chats become prompts without duplicates. `pool.py` shares them out.

rows --> drafts --> normalised, de-duplicated, tokenised
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ultramed_rl.config.rounds import MessagesSource, Prompts, PromptSource, QuestionSource
from ultramed_rl.data.chats import Misfit, check_plain, check_text, read_column, read_turns
from ultramed_rl.data.misfits import FittingRows
from ultramed_rl.data.sources import Row
from ultramed_rl.data.vignettes import COLUMNS, Vignette, answer_sentence, read_vignette, render_vignette
from ultramed_rl.records import Message, Prompt
from ultramed_rl.token_ids import TokenIds

Encode = Callable[[Sequence[Message]], list[int]]
Markers = Callable[[Sequence[Message]], int]
MISFITS_ALLOWED = 0.05  # share of a source's rows; above it the source is misread rather than dirty


@dataclass(frozen=True)
class PromptPool:
    """The prompts to train on, those held out, and counts of rows by what became of them."""

    training: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Draft:
    """A chat as the row has it, before system message, suffix and tokens."""

    messages: list[Message]
    answer: str | None
    kind: str


def load_prompts(config: Prompts, encode: Encode, markers: Markers = lambda _: 0) -> PromptPool:
    """All usable prompts of all sources, in order, under `training`; `held_out` is empty until `split_pool`.

    `encode` renders a chat with the generation prompt to token ids, `markers` counts control tokens that stand in
    its texts as letters. `counts` holds rows, duplicate, too_long, misfit, neutralised (prompts with such letters)
    and, for vignettes, vignette_figure, vignette_wrong_key.

    Raises:
        ValueError: an unreadable source, more than 5 % of its rows unfit, a prompt over `max_prompt_tokens`
            where the config refuses those, or nothing left.
    """
    counts: Counter[str] = Counter(rows=0, duplicate=0, too_long=0, misfit=0)
    seen: set[str] = set()
    prompts: list[Prompt] = []
    for place, source in enumerate(config.sources):
        for draft in _read_drafts(source, counts):
            key = _normalised_chat(draft.messages)
            if key in seen:
                counts["duplicate"] += 1
                continue
            seen.add(key)
            prompt = _build_prompt(draft, key, place, config, encode)
            if len(prompt.token_ids) > config.max_prompt_tokens:
                _refuse_unless_dropped(prompt, config)
                counts["too_long"] += 1
            else:
                counts.update(["neutralised"] if markers(prompt.messages) else [])
                prompts.append(prompt)
    if not prompts:
        raise ValueError(
            f"prompts: none left ({dict(counts)}); raise prompts.max_prompt_tokens or add a source"
        )
    return PromptPool(tuple(prompts), counts=dict(counts))


# -- rows to drafts ----------------------------------------------------------------------------------------


def _read_drafts(source: PromptSource, counts: Counter[str]) -> Iterator[_Draft]:
    """The source's drafts; misfits are counted, and too many of them raise once the source is read."""
    unfit, fix = f"don't fit type {source.type!r}", "name another column, or clean the file"
    found: Counter[str] = Counter()  # a pool counts misfits without their reasons
    rows = FittingRows(source.uri, source.limit, MISFITS_ALLOWED, unfit, fix, found)
    for draft in rows.parse(lambda row: _draft(source, row)):
        if isinstance(draft, _Draft):
            yield draft
        else:
            counts[f"vignette_{draft}"] += 1
    counts.update(rows=found["rows"], misfit=found["misfit"])


def _draft(source: PromptSource, row: Row) -> _Draft | str:
    """The row's chat; for a vignette that cleaning drops on purpose, the reason instead."""
    if isinstance(source, QuestionSource):
        question = _text(row, source.column)
        answer = None if source.answer_column is None else _answer(row, source.answer_column)
        return _Draft([Message(role="user", content=question)], answer, source.type)
    if isinstance(source, MessagesSource):
        return _chat_draft(row, source.column)
    for column in COLUMNS:
        _text(row, column)
    vignette = read_vignette(row)
    if vignette == "malformed":
        raise Misfit("not a stem with lettered options")
    if not isinstance(vignette, Vignette):
        return vignette
    answer = answer_sentence(vignette.options, vignette.letter)
    return _Draft([Message(role="user", content=render_vignette(vignette))], answer, source.type)


def _chat_draft(row: Row, column: str) -> _Draft:
    """A chat up to its last user turn; what the assistant says after it is the answer."""
    messages = read_turns(row, column)
    answers: list[str] = []
    while messages and messages[-1]["role"] == "assistant":
        answers.insert(0, messages.pop()["content"])
    if not messages or messages[-1]["role"] != "user":
        raise Misfit(f"column {column!r} has no turn of role 'user' before the answer")
    return _Draft(messages, "\n\n".join(answers) or None, "messages")


def _text(row: Row, column: str) -> str:
    value = read_column(row, column)
    if not isinstance(value, str) or not value.strip():
        raise Misfit(f"column {column!r} holds {value!r:.40}, not text")
    return check_plain(check_text(value.strip(), f"column {column!r}"))


def _answer(row: Row, column: str) -> str | None:
    """Answers may be absent row by row, but not of another type."""
    return None if read_column(row, column) in (None, "") else _text(row, column)


# -- drafts to prompts -------------------------------------------------------------------------------------


def normalise_text(text: str) -> str:
    """Casefolded, whitespace collapsed, without the punctuation around words.

    Punctuation inside words and before numbers stays: "1.5 mg" isn't "15 mg", ".5 mg" isn't "5 mg".
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    bare = (word.lstrip("\"'([{").rstrip("\"')]}.,;:?!") for word in words)
    return " ".join(word for word in bare if word)


def _normalised_chat(messages: Sequence[Message]) -> str:
    """A chat's identity. Earlier turns count: "And in children?" asks something else in each chat."""
    turns = [normalise_text(m["content"]) for m in messages if m["role"] != "system"]
    return "\n".join(turns)


def _build_prompt(draft: _Draft, key: str, place: int, config: Prompts, encode: Encode) -> Prompt:
    messages = [Message(role=m["role"], content=m["content"]) for m in draft.messages]
    if config.suffix is not None:
        messages[-1]["content"] = _with_suffix(messages[-1]["content"], config.suffix)
    if config.system is not None:
        # Chat templates take one system message, and the run's own is meant for every prompt.
        messages = [m for m in messages if m["role"] != "system"]
        messages.insert(0, Message(role="system", content=config.system))
    prompt_id = hashlib.sha256(f"{draft.kind}\n{key}".encode()).hexdigest()[:16]
    return Prompt(prompt_id, tuple(messages), TokenIds(encode(messages)), draft.answer, draft.kind, place)


def _with_suffix(text: str, suffix: str) -> str:
    """A suffix continues a line of text; after several lines it is a paragraph, or it would join option D."""
    return f"{text}\n\n{suffix.lstrip()}" if "\n" in text else text + suffix


def _refuse_unless_dropped(prompt: Prompt, config: Prompts) -> None:
    if config.too_long == "refuse":
        tokens, limit, text = (
            len(prompt.token_ids),
            config.max_prompt_tokens,
            prompt.messages[-1]["content"],
        )
        raise ValueError(
            f"prompt {prompt.prompt_id} ({text[:60]!r}): {tokens} tokens, over prompts."
            f"max_prompt_tokens={limit}; raise that, or set prompts.too_long=drop"
        )
