"""An offline stage's data: sources mixed, split by prompt, tokenised and made to fit, at flat memory.

sources --> rows, each content once --> split by prompt --> token ids --> fit the model --> copies by weight
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ultramed_rl.config.stages import ConversationData, PreferenceData
from ultramed_rl.data.chats import SourceNotes
from ultramed_rl.data.conversations import conversation_key, read_conversations
from ultramed_rl.data.identity import UniqueIds, choose_held_out, mixture_copies, prompt_key
from ultramed_rl.data.preferences import ranked_key, read_preferences
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import (
    Completion,
    Conversation,
    Message,
    PreferenceGroup,
    Prompt,
    RankedAnswers,
    TokenizedChat,
)
from ultramed_rl.token_ids import TokenIds

S = TypeVar("S")


class _Used(NamedTuple):
    """A row that is used, its own id, the key of its prompt, and how often it is used if it is trained on."""

    row: Any
    name: str
    prompt: str
    evaluated: bool  # of an evaluation source
    copies: int


class Prepared(ABC, Generic[S]):
    """A stage's samples, made anew from the sources at each iteration, so that memory holds only keys.

    No prompt is in both splits, and no id is given twice in the two together. A row's further copies have ids
    in @2, @3, ...; held-out rows are used once. The order is that of the sources.
    """

    def __init__(
        self, data: ConversationData | PreferenceData, tokenizer: Tokenizer, max_length: int, seed: int
    ) -> None:
        """Reads all sources once, so that what is wrong with them shows before anything is tokenised.

        Raises:
            ValueError: an unreadable source, one with too many misfits, or no prompt left to train on.
        """
        self._data, self._tokenizer, self._max_length, self._seed = data, tokenizer, max_length, seed
        self._rows = Counter(rows=0, duplicate=0, misfit=0, in_held_out=0, unused=0)
        self._samples: dict[str, Counter[str]] = {}  # by split
        prompts = (used.prompt for used in self._used_rows(self._rows) if not used.evaluated)
        self._chosen = choose_held_out(prompts, data.held_out, seed)

    @property
    def counts(self) -> dict[str, int]:
        """What became of the rows.

        rows; misfit and by reason misfit_NAME; duplicate (equal content, also of another source); in_held_out
        (left out because an evaluation source has their prompt); unused (left out by a weight below 1). Of each
        split, once it was iterated to its end: training or held_out (samples, copies included), too_long and
        equal_tokens (rows), answers_too_long and answers_equal (see `fit_group`), and neutralised (rows in which
        control tokens stand as letters, and stay letters).
        """
        total = Counter(self._rows)
        for counts in self._samples.values():
            total.update(counts)
        return dict(total)

    def training(self) -> Iterator[S]:
        """The samples to train on.

        Raises:
            ValueError: one that is too long, where such are refused; at the end, that there was none.
        """
        return (sample for _, sample in self._pairs("training"))

    def held_out(self) -> Iterator[S]:
        """The samples to evaluate on: the held-out prompts' and those of the evaluation sources; perhaps none.

        Raises:
            ValueError: one that is too long, where such are refused; at the end, that none of them was left.
        """
        wanted = self._data.held_out or self._data.evaluation_sources
        return (sample for _, sample in self._pairs("held_out")) if wanted else iter(())

    def training_rows(self) -> Iterator[Any]:
        """The conversations or ranked answers behind `training`, cut down to what fits. Raises as that does."""
        return (row for row, _ in self._pairs("training"))

    def held_out_rows(self) -> Iterator[Any]:
        """Those behind `held_out`."""
        return (row for row, _ in self._pairs("held_out"))

    def _pairs(self, split: str) -> Iterator[tuple[Any, S]]:
        """What fits of each row of a split, as text and as tokens."""
        counts: Counter[str] = Counter({split: 0, "too_long": 0})
        ids = UniqueIds()
        for used in self._used_rows(Counter(), SourceNotes()):
            if split == "held_out" and not (used.evaluated or self._chosen):
                break  # evaluation sources come first, and there is nothing else to find
            held_out = used.evaluated or used.prompt in self._chosen
            # Both splits claim all ids, so that they agree on them.
            names = [ids.claim(used.name)]
            further = range(2, 1 if held_out else used.copies + 1)
            names += [ids.claim(f"{names[0]}@{number}") for number in further]
            if held_out == (split == "held_out"):
                for pair in self._fit(used.row, names, counts):
                    counts[split] += 1
                    yield pair
        self._samples[split] = counts
        if not counts[split]:
            raise ValueError(
                f"data: nothing left for {split} ({self.counts}); raise model.max_length or add sources"
            )

    def _used_rows(self, counts: Counter[str], notes: SourceNotes | None = None) -> Iterator[_Used]:
        """The rows that are used, each content once, those of the evaluation sources first."""
        contents: set[int] = set()
        evaluated: set[str] = set()
        sources = [(source, False) for source in self._data.evaluation_sources]
        for source, training in [*sources, *((source, True) for source in self._data.sources)]:
            for row in self._read(source, counts, notes):
                prompt, (content, name) = prompt_key(row.messages), self._keys(row)
                copies = mixture_copies(source.weight, content, self._seed)
                if training and prompt in evaluated:
                    counts["in_held_out"] += 1
                elif int(content, 16) in contents:
                    counts["duplicate"] += 1
                elif not copies:
                    counts["unused"] += 1
                else:
                    contents.add(int(content, 16))
                    if not training:
                        evaluated.add(prompt)
                    yield _Used(row, name, prompt, not training, copies)

    # -- what differs between conversations and preferences ------------------------------------------------

    @abstractmethod
    def _read(self, source: Any, counts: Counter[str], notes: SourceNotes | None) -> Iterator[Any]:
        """A source's rows."""

    @abstractmethod
    def _keys(self, row: Any) -> tuple[str, str]:
        """The key of a row's content, which is used once, and its own id."""

    @abstractmethod
    def _fit(self, row: Any, names: Sequence[str], counts: Counter[str]) -> Iterator[tuple[Any, S]]:
        """What fits the model, as text and as tokens, under each of the names; perhaps nothing."""


class PreparedConversations(Prepared[TokenizedChat]):
    """The chats to fine-tune on and those held out, of at most `max_length` tokens each."""

    def _read(self, source: Any, counts: Counter[str], notes: SourceNotes | None) -> Iterator[Conversation]:
        return read_conversations(source, counts, notes)

    def _keys(self, row: Conversation) -> tuple[str, str]:
        return conversation_key(row.messages, row.unlearnt), row.conversation_id

    def _fit(
        self, row: Conversation, names: Sequence[str], counts: Counter[str]
    ) -> Iterator[tuple[Conversation, TokenizedChat]]:
        chat = tokenize_conversation(row, self._tokenizer)
        tokens = len(chat.token_ids)
        if tokens <= self._max_length:
            counts.update(["neutralised"] if self._tokenizer.markers(row.messages) else [])
            yield from ((row, replace(chat, conversation_id=name)) for name in names)
        elif self._data.too_long == "drop":
            counts["too_long"] += 1
        else:
            raise ValueError(
                f"conversation {chat.conversation_id!r:.60}: {tokens} tokens, over model.max_length={self._max_length}; "
                "raise that, or set data.too_long=drop"
            )


class PreparedPreferences(Prepared[PreferenceGroup]):
    """The groups to train on and those held out, prompt and any answer of at most `max_length` tokens."""

    def __init__(
        self, data: PreferenceData, tokenizer: Tokenizer, max_length: int, seed: int, *, pairs: bool = False
    ) -> None:
        """With `pairs` the best of n ranked answers is paired with one of the worse, drawn by seed, as UltraMedical's
        binarised preferences are; else all of them stay together. Raises as `Prepared`."""
        super().__init__(data, tokenizer, max_length, seed)
        self._as_pairs = pairs

    def _read(self, source: Any, counts: Counter[str], notes: SourceNotes | None) -> Iterator[RankedAnswers]:
        return read_preferences(source, counts, notes)

    def _keys(self, row: RankedAnswers) -> tuple[str, str]:
        return ranked_key(row), row.prompt_id

    def _fit(
        self, row: RankedAnswers, names: Sequence[str], counts: Counter[str]
    ) -> Iterator[tuple[RankedAnswers, PreferenceGroup]]:
        if self._as_pairs and len(row.answers) > 2:
            worse = [place for place, score in enumerate(row.scores) if score < row.scores[0]]
            other = worse[seeded_number(self._seed, "pair", row.prompt_id) % len(worse)]
            row = _only(row, (0, other), desirable=1)
        tokenized = tokenize_preference(row, self._tokenizer)
        group = fit_group(tokenized, self._max_length, self._data.too_long == "drop", counts)
        if group is None:
            return
        counts.update(["neutralised"] if self._tokenizer.markers(row.messages, row.answers) else [])
        left = _only(row, [completion.sample for completion in group.completions], group.desirable)
        for name in names:
            completions = tuple(replace(completion, prompt_id=name) for completion in group.completions)
            prompt = replace(group.prompt, prompt_id=name)
            yield left, replace(group, prompt=prompt, completions=completions)


def _only(ranked: RankedAnswers, kept: Sequence[int], desirable: int) -> RankedAnswers:
    """These of the answers alone."""
    return replace(
        ranked,
        answers=tuple(ranked.answers[place] for place in kept),
        scores=tuple(ranked.scores[place] for place in kept),
        desirable=desirable,
        cut=frozenset(new for new, place in enumerate(kept) if place in ranked.cut),
    )


# -- token ids: exactly those that a rollout of the same texts would have ----------------------------------


class Tokenizer(Protocol):
    """What is asked of `models.tokenizer.ChatTokenizer`, which says more."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]: ...

    def encode_conversation(
        self, messages: Sequence[Message], unlearnt: Collection[int] = ()
    ) -> tuple[list[int], list[bool]]: ...

    def encode_answers(
        self, messages: Sequence[Message], answers: Sequence[str], cut: Collection[int] = ()
    ) -> tuple[list[int], list[list[int]]]: ...

    def markers(self, messages: Sequence[Message], answers: Sequence[str] = ()) -> int: ...

    def without_end(self, text: str) -> str: ...


def tokenize_conversation(conversation: Conversation, tokenizer: Tokenizer) -> TokenizedChat:
    """The chat up to its last answer's end-of-turn token, with the assistant's turns learned that its data lets be.

    Raises:
        ValueError: a chat that the template refuses or doesn't keep as it is.
    """
    token_ids, learned = tokenizer.encode_conversation(conversation.messages, conversation.unlearnt)
    return TokenizedChat(conversation.conversation_id, TokenIds(token_ids), tuple(learned), conversation.kind)


def tokenize_preference(ranked: RankedAnswers, tokenizer: Tokenizer) -> PreferenceGroup:
    """The prompt with the generation prompt, and each answer with its end-of-turn token unless it was cut off;
    scores are rewards.

    The answers are the data's own: `finish_reason` "reference", no sampling logprob, policy version 0.

    Raises:
        ValueError: a chat that the template refuses or doesn't keep as it is.
    """
    token_ids, encoded = tokenizer.encode_answers(ranked.messages, ranked.answers, ranked.cut)
    prompt = Prompt(ranked.prompt_id, ranked.messages, TokenIds(token_ids), kind=ranked.kind)
    completions = tuple(
        Completion(ranked.prompt_id, place, tokenizer.without_end(text), tuple(ids), "reference", 0.0, 0)
        for place, (text, ids) in enumerate(zip(ranked.answers, encoded, strict=True))
    )
    return PreferenceGroup(prompt, completions, ranked.scores, ranked.desirable)


def fit_group(group: PreferenceGroup, limit: int, drop: bool, counts: Counter[str]) -> PreferenceGroup | None:
    """The answers that have at most `limit` tokens with their prompt, and not another's very tokens.

    A group that had several answers needs two that differ in score, or is None. `counts` gains answers_too_long
    and answers_equal (left out of a group that stays), too_long and equal_tokens (groups that don't stay).

    Raises:
        ValueError: an answer is too long, and isn't to be dropped.
    """
    lengths = [len(group.prompt.token_ids) + len(c.token_ids) for c in group.completions]
    if max(lengths) > limit and not drop:
        raise ValueError(
            f"preference {group.prompt.prompt_id!r:.60}: {max(lengths)} tokens, its prompt and longest answer, over "
            f"model.max_length={limit}; raise that, or set data.too_long=drop"
        )
    short = [i for i, length in enumerate(lengths) if length <= limit]
    # Tokenizers that normalise text give different texts the same tokens; the better one stays.
    first = {group.completions[i].token_ids: i for i in reversed(short)}
    kept = sorted(first.values())
    long, equal = len(lengths) - len(short), len(short) - len(kept)
    rewards = tuple(group.rewards[i] for i in kept)
    if not kept or (len(lengths) > 1 and rewards[0] == rewards[-1]):
        counts["too_long" if long else "equal_tokens"] += 1
        return None
    counts.update(answers_too_long=long, answers_equal=equal)
    desirable = sum(i < group.desirable for i in kept)
    if len(kept) > 1 and group.desirable:
        desirable = max(desirable, 1)  # the best of those that are left takes the place of the best
    completions = tuple(group.completions[i] for i in kept)
    return replace(group, completions=completions, rewards=rewards, desirable=desirable)


def fit_pairs(
    pairs: Sequence[PreferenceGroup], limit: int, drop: bool
) -> tuple[list[PreferenceGroup], Counter[str]]:
    """The pairs of which no side has more than `limit` tokens with its prompt, and those left out by subset.

    Raises:
        ValueError: some are too long and aren't to be dropped, or all are.
    """
    lengths = [len(pair.prompt.token_ids) + max(len(c.token_ids) for c in pair.completions) for pair in pairs]
    measured = list(zip(pairs, lengths, strict=True))
    fitting = [pair for pair, length in measured if length <= limit]
    left_out = Counter(pair.prompt.kind for pair, length in measured if length > limit)
    if left_out and not (drop and fitting):
        by_subset = ", ".join(f"{subset} {count}" for subset, count in left_out.items())
        fix = "" if drop else ", or set data.too_long=drop"
        raise ValueError(
            f"data: {left_out.total()} of {len(pairs)} pairs are over model.max_length={limit} ({by_subset}), the "
            f"longest has {max(lengths)} tokens; raise model.max_length{fix}"
        )
    return fitting, left_out
