"""Rows become chats, chats become prompts without duplicates, and rounds share these out.

rows --> drafts --> normalised, de-duplicated, tokenised --> the pool --> held out | training --> each round's prompts
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ultramed_rl.config.rounds import (
    RUBRIC_COLUMNS,
    MessagesSource,
    Prompts,
    PromptSource,
    QuestionSource,
)
from ultramed_rl.data.chats import (
    FittingRows,
    Misfit,
    NotedRow,
    SourceNotes,
    check_order,
    read_column,
)
from ultramed_rl.data.forms import gather_messages, read_prompt, read_question, read_text
from ultramed_rl.data.likeness import normalise_text
from ultramed_rl.data.stage_data import Tokenizer
from ultramed_rl.data.vignettes import COLUMNS, read_vignette
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Message, Prompt
from ultramed_rl.store.digests import key_number
from ultramed_rl.store.tables import LazySequence
from ultramed_rl.store.work_directory import Asked
from ultramed_rl.token_ids import TokenIds
from ultramed_rl.tracking import Progress

Encode = Callable[[Sequence[Message]], list[int]]
Markers = Callable[[Sequence[Message]], int]
_Draft = tuple[list[Message], str | None, str]  # a chat as the row has it, the answer to it, other columns


@dataclass(frozen=True)
class PromptPool:
    """The prompts to train on, those held out, and counts of rows by what became of them."""

    training: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


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
        for messages, answer, extra in read_prompt_rows(source, counts):
            # A chat's identity. Earlier turns count: "And in children?" asks something else in each chat.
            key = "\n".join(normalise_text(m["content"]) for m in messages if m["role"] != "system")
            if key in seen:
                counts["duplicate"] += 1
                continue
            seen.add(key)
            name = hashlib.sha256(f"{source.type}\n{key}".encode()).hexdigest()[:16]
            chat = _complete(messages, config)
            prompt = Prompt(name, tuple(chat), TokenIds(encode(chat)), answer, source.type, place, extra)
            tokens, limit = len(prompt.token_ids), config.max_prompt_tokens
            if tokens <= limit:
                counts.update(["neutralised"] if markers(prompt.messages) else [])
                prompts.append(prompt)
            elif config.too_long == "drop":
                counts["too_long"] += 1
            else:
                raise ValueError(
                    f"prompt {prompt.prompt_id} ({prompt.messages[-1]['content'][:60]!r}): {tokens} tokens, over prompts."
                    f"max_prompt_tokens={limit}; raise that, or set prompts.too_long=drop"
                )
    if not prompts:
        raise ValueError(
            f"prompts: none left ({dict(counts)}); raise prompts.max_prompt_tokens or add a source"
        )
    return PromptPool(tuple(prompts), counts=dict(counts))


def read_prompt_rows(
    source: PromptSource, counts: Counter[str], notes: SourceNotes | None = None
) -> Iterator[_Draft]:
    """The source's chats and answers; misfits are counted, and too many of them raise ValueError once it is read."""
    unfit, fix = f"don't fit type {source.type!r}", "name another column, or clean the file"
    by_reason: Counter[str] = Counter()  # a pool counts misfits without their reasons
    rows = FittingRows.of(source, unfit, fix, by_reason, notes)
    drafts: Iterator[_Draft | str] = rows.parse(partial(_draft, source), gather_messages)
    for draft in drafts:
        if isinstance(draft, str):
            counts[f"vignette_{draft}"] += 1
        else:
            yield draft
    counts.update(rows=by_reason["rows"], misfit=by_reason["misfit"])


def _draft(source: PromptSource, row: NotedRow) -> _Draft | str:
    """The row's chat; for a vignette that cleaning drops on purpose, the reason instead."""
    columns = {name: read_column(row, name) for name in _kept(source, row)}
    extra = json.dumps(columns, ensure_ascii=False, default=str) if columns else ""
    if isinstance(source, MessagesSource):
        # Up to its last user turn; what the assistant says after it is the answer.
        messages, answers = read_prompt(row, source.column), list[str]()
        while messages and messages[-1]["role"] == "assistant":
            answers.insert(0, messages.pop()["content"])
        if not messages or messages[-1]["role"] != "user":
            raise Misfit("no turn of role 'user' before the answer")
        check_order(messages, "user")
        return messages, "\n\n".join(answers) or None, extra
    if isinstance(source, QuestionSource):
        messages, answer = read_question(row, source.column), None
        # Answers may be absent row by row, but not of another type.
        if source.answer_column is not None and read_column(row, source.answer_column) not in (None, ""):
            answer = read_text(row, source.answer_column)
        return messages, answer, extra
    for column in COLUMNS:
        read_text(row, column)
    try:
        vignette = read_vignette(row)
    except Misfit as misfit:
        if misfit.name == "malformed":
            raise
        return misfit.name
    return [Message(role="user", content=vignette.text)], vignette.answer, extra


def _kept(source: PromptSource, row: NotedRow) -> list[str]:
    """The columns that scorers read: those that are named, and rubrics by their usual names."""
    return [*source.columns, *(name for name in RUBRIC_COLUMNS if name in row and name not in source.columns)]


def _complete(messages: Sequence[Message], config: Prompts) -> list[Message]:
    """The chat with the config's suffix and system message."""
    chat = [Message(role=m["role"], content=m["content"]) for m in messages]
    if config.suffix is not None:
        # It continues a line of text; after several lines it is a paragraph, or it would join option D.
        text, suffix = chat[-1]["content"], config.suffix
        chat[-1]["content"] = f"{text}\n\n{suffix.lstrip()}" if "\n" in text else text + suffix
    if config.system is not None:
        # Chat templates take one system message, and the run's own is meant for every prompt.
        chat = [m for m in chat if m["role"] != "system"]
        chat.insert(0, Message(role="system", content=config.system))
    return chat


# -- the pool ----------------------------------------------------------------------------------------------


@dataclass
class PoolSlice(LazySequence[Prompt]):
    """Prompts of a pool by their places in it."""

    pool: Sequence[Prompt]
    places: list[int]

    def __len__(self) -> int:
        return len(self.places)

    def _at(self, place: int) -> Prompt:
        return self.pool[self.places[place]]


def prepare_pool(config: Prompts, tokenizer: Tokenizer, seed: int, progress: Progress) -> PromptPool:
    """Load, split, and say what became of the rows."""
    pool = load_prompts(config, tokenizer.encode_chat, tokenizer.markers)
    pool = split_pool(pool, config.held_out, seed)
    counts = ", ".join(f"{name} {count}" for name, count in pool.counts.items() if count)
    progress.say(f"prompts: {len(pool.training)} to train on, {len(pool.held_out)} held out ({counts})")
    return pool


def split_pool(pool: PromptPool, held_out: int, seed: int) -> PromptPool:
    """The pool with `held_out` of its prompts set aside. Each id's own hash decides, so file order doesn't.

    Raises:
        ValueError: no training prompt would be left.
    """
    prompts = (*pool.training, *pool.held_out)
    if held_out >= len(prompts):
        raise ValueError(
            f"prompts.held_out={held_out} leaves none of {len(prompts)} prompts; lower it or add sources"
        )
    chosen = set(_shuffled(PoolSlice(prompts, list(range(len(prompts)))), seed, "held out")[:held_out])
    training = tuple(p for i, p in enumerate(prompts) if i not in chosen)
    return PromptPool(training, tuple(prompts[i] for i in sorted(chosen)), dict(pool.counts))


def check_rounds(pool: PromptPool, config: Prompts, rounds: int) -> None:
    """Make sure, before anything is started, that the training prompts last for all rounds.

    Raises:
        ValueError: they don't, with the arithmetic.
    """
    for stratum in _strata(pool.training, config):
        stratum.check_supply(rounds, stratum.per_round * (rounds - 1), config.reuse)


@dataclass(frozen=True)
class _Stratum:
    """What a round draws from: all prompts or those of one source."""

    places: list[int]  # in the pool
    per_round: int  # how many of them a round asks
    spare: int  # further ones that may be asked where prompts give no pair
    source: int | None  # None for all sources
    name: str

    def check_supply(self, rounds: int, used: int, reuse: bool) -> None:
        pool, per_round = len(self.places), self.per_round
        if per_round > pool:
            raise ValueError(
                f"{self.name}prompts.per_round={per_round} is more than the {pool} training prompts; lower it or add "
                "sources"
            )
        if not reuse and used + per_round > pool:
            raise ValueError(
                f"{self.name}{rounds} rounds x prompts.per_round={per_round} = {rounds * per_round} prompts, but there "
                f"are {pool} to train on; set run.rounds to {pool // per_round} or fewer, add sources, or set "
                "prompts.reuse=true"
            )


def prompts_for_round(
    training: Sequence[Prompt], config: Prompts, asked: Sequence[Asked], seed: int, later: int = 0
) -> PoolSlice:
    """A round's prompts, without replacement; where sources have shares, each source's part after the other. With `refill`
    those come after them that are asked in the place of prompts without a pair, in the same shares.

    It follows from what it is given alone, so that a resumed run asks the same.

    Args:
        asked: what each round before has asked.
        later: rounds that come after this one, for which prompts are left.

    Raises:
        ValueError: the pool, or a source with a share, is used up or smaller than a round.
    """
    first: list[int] = []
    spare: list[int] = []
    for stratum in _strata(training, config):
        pool, per_round = len(stratum.places), stratum.per_round
        by_source = [one.by_source for one in asked]
        used = sum(sum(n.values()) if stratum.source is None else n.get(stratum.source, 0) for n in by_source)
        stratum.check_supply(len(asked) + 1, used, config.reuse)
        most = per_round + min(stratum.spare, pool - per_round)
        size = most if config.reuse else max(per_round, min(most, pool - used - per_round * later))
        part = PoolSlice(training, stratum.places)
        drawn = _first_due(part, asked, config.unpaired_every or 1, size, seed)
        first += drawn[:per_round]
        spare += drawn[per_round:]
    return PoolSlice(training, first + spare)


def _strata(training: Sequence[Prompt], config: Prompts) -> list[_Stratum]:
    total = 0 if config.refill is None else int(config.per_round * config.refill) - config.per_round
    if config.shares is None:
        return [_Stratum(list(range(len(training))), config.per_round, total, None, "")]
    counts, spares = (split_count(number, config.shares) for number in (config.per_round, total))
    places: list[list[int]] = [[] for _ in counts]
    for place, prompt in enumerate(training):
        places[prompt.source].append(place)
    return [
        _Stratum(places[i], counts[i], spares[i], i, f"source {source.uri!r}: ")
        for i, source in enumerate(config.sources)
        if counts[i]
    ]


def split_count(total: int, shares: Sequence[float]) -> list[int]:
    """`total` in whole parts as near to the shares as can be: the largest remainders are rounded up."""
    exact = [total * share for share in shares]
    counts = [int(part) for part in exact]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for place in order[: total - sum(counts)]:
        counts[place] += 1
    return counts


def _first_due(part: PoolSlice, asked: Sequence[Asked], every: int, size: int, seed: int) -> list[int]:
    """The `size` places of a part of the pool that are due in the earliest passes, those of each pass in a seeded order: without
    results every pass holds every prompt once, and a round that spans two passes holds no prompt twice.

    Nobody is passed over for ever: a prompt is asked when all that are due before it have been.
    """
    due, places, drawn = _next_passes(part, asked, every), np.array(part.places), list[int]()
    for number in np.unique(due).tolist():
        if len(drawn) < size:
            drawn += _shuffled(PoolSlice(part.pool, places[due == number].tolist()), seed, number)
    return drawn[:size]


def _next_passes(part: PoolSlice, asked: Sequence[Asked], every: int) -> np.ndarray:
    """[prompts] the pass, from 0, in which each is due: the one after that in which it was asked last, or `every` after it
    where it gave no pair. Who is asked before its pass, since a round has room, counts from the next pass."""
    if not asked:
        return np.zeros(len(part), dtype=np.int64)
    names = (part.pool[place].prompt_id for place in part.places)
    numbers = np.fromiter(map(key_number, names), dtype=np.uint64, count=len(part))
    order = np.argsort(numbers)
    due = np.zeros(len(part), dtype=np.int64)
    for one in asked:
        places = order[np.searchsorted(numbers, one.numbers, sorter=order) % len(part)]
        own = numbers[places] == one.numbers  # others are of other sources
        places, unpaired = places[own], one.unpaired[own]
        due[places] = np.minimum(due[places], due.min() + 1) + np.where(unpaired, every, 1)
    return due


def _shuffled(part: PoolSlice, seed: int, occasion: object) -> list[int]:
    names = (part.pool[place].prompt_id for place in part.places)
    drawn = (seeded_number(seed, occasion, name) for name in names)
    numbers, places = np.fromiter(drawn, dtype=np.uint64, count=len(part)), np.array(part.places)
    shuffled: list[int] = places[np.lexsort((places, numbers))].tolist()
    return shuffled
