"""An offline stage's data: sources mixed, split by prompt, tokenised and made to fit, at flat memory.

sources --> rows, each content once --> split by prompt --> token ids --> fit the model --> copies by weight
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from ultramed_rl.config.stages import ConversationData, PreferenceData
from ultramed_rl.data.conversations import read_conversations
from ultramed_rl.data.fitting import fit_chat, fit_group
from ultramed_rl.data.identity import UniqueIds, content_key, prompt_key
from ultramed_rl.data.mixtures import choose_held_out, mixture_copies
from ultramed_rl.data.preferences import ranked_key, read_preferences
from ultramed_rl.data.tokenize import Tokenizer, tokenize_conversation, tokenize_preference
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import PreferenceGroup, RankedAnswers, TokenizedChat

S = TypeVar("S")


def prepare_conversations(
    data: ConversationData, tokenizer: Tokenizer, max_length: int, seed: int
) -> Prepared[TokenizedChat]:
    """The chats to fine-tune on and those held out, of at most `max_length` tokens each.

    All sources are read once here, so that what is wrong with them shows before anything is tokenised.

    Raises:
        ValueError: an unreadable source, one with too many misfits, or no prompt left to train on.
    """
    return Prepared(_CONVERSATIONS, data, tokenizer, max_length, seed)


def prepare_preferences(
    data: PreferenceData, tokenizer: Tokenizer, max_length: int, seed: int, *, pairs: bool = False
) -> Prepared[PreferenceGroup]:
    """The groups to train on and those held out, prompt and any answer of at most `max_length` tokens.

    With `pairs` the best of n ranked answers is paired with one of the worse, drawn by seed, as UltraMedical's
    binarised preferences are; else all of them stay together.

    All sources are read once here, so that what is wrong with them shows before anything is tokenised.

    Raises:
        ValueError: an unreadable source, one with too many misfits, or no prompt left to train on.
    """
    kind = replace(_PREFERENCES, shape=lambda ranked: draw_pair(ranked, seed)) if pairs else _PREFERENCES
    return Prepared(kind, data, tokenizer, max_length, seed)


@dataclass(frozen=True)
class _Kind(Generic[S]):
    """What differs between conversations and preferences."""

    read: Callable[..., Iterator[Any]]
    content: Callable[[Any], str]
    name: Callable[[Any], str]
    tokenize: Callable[[Any, Tokenizer], S]
    fit: Callable[[S, int, bool, Counter[str]], S | None]
    rename: Callable[[S, str], S]
    cut_down: Callable[[Any, S], Any]
    answers: Callable[[Any], Sequence[str]]  # that are not among its messages
    shape: Callable[[Any], Any] = lambda row: row


@dataclass(frozen=True)
class _Used:
    """A row that is used, the key of its prompt, and how often if it is trained on."""

    row: Any
    prompt: str
    evaluated: bool  # of an evaluation source
    copies: int


class Prepared(Generic[S]):
    """A stage's samples, made anew from the sources at each iteration, so that memory holds only keys.

    No prompt is in both splits, and no id is given twice in the two together. A row's further copies have ids
    in @2, @3, ...; held-out rows are used once. The order is that of the sources.
    """

    def __init__(
        self,
        kind: _Kind[S],
        data: ConversationData | PreferenceData,
        tokenizer: Tokenizer,
        max_length: int,
        seed: int,
    ) -> None:
        self._kind, self._data, self._seed = kind, data, seed
        self._tokenizer, self._max_length = tokenizer, max_length
        self._rows = Counter(rows=0, duplicate=0, misfit=0, in_held_out=0, unused=0)
        self._samples: dict[str, Counter[str]] = {}  # by split
        prompts = (used.prompt for used in self._read(self._rows, quiet=False) if not used.evaluated)
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
        found = Counter(self._rows)
        for counts in self._samples.values():
            found.update(counts)
        return dict(found)

    def training(self) -> Iterator[S]:
        """The samples to train on.

        Raises:
            ValueError: one that is too long, where such are refused; at the end, that there was none.
        """
        return self._split("training")

    def held_out(self) -> Iterator[S]:
        """The samples to evaluate on: the held-out prompts' and those of the evaluation sources; perhaps none.

        Raises:
            ValueError: one that is too long, where such are refused; at the end, that none of them was left.
        """
        wanted = self._data.held_out or self._data.evaluation_sources
        return self._split("held_out") if wanted else iter(())

    def training_rows(self) -> Iterator[Any]:
        """The conversations or ranked answers behind `training`, cut down to what fits. Raises as that does."""
        return (row for row, _ in self._pairs("training"))

    def held_out_rows(self) -> Iterator[Any]:
        """Those behind `held_out`."""
        return (row for row, _ in self._pairs("held_out"))

    def _split(self, split: str) -> Iterator[S]:
        return (sample for _, sample in self._pairs(split))

    def _pairs(self, split: str) -> Iterator[tuple[Any, S]]:
        """What fits of each row of a split, as text and as tokens."""
        kind, drop = self._kind, self._data.too_long == "drop"
        counts: Counter[str] = Counter({split: 0, "too_long": 0})
        ids = UniqueIds()
        for used in self._read(Counter(), quiet=True):
            if split == "held_out" and not (used.evaluated or self._chosen):
                break  # evaluation sources come first, and there is nothing else to find
            held_out = used.evaluated or used.prompt in self._chosen
            # Both splits claim all ids, so that they agree on them.
            names = _names(kind.name(used.row), 1 if held_out else used.copies, ids)
            if held_out != (split == "held_out"):
                continue
            shaped = kind.shape(used.row)
            sample = kind.fit(kind.tokenize(shaped, self._tokenizer), self._max_length, drop, counts)
            if sample is not None:
                counts[split] += len(names)
                if self._tokenizer.markers(shaped.messages, kind.answers(shaped)):
                    counts["neutralised"] += 1
                row = kind.cut_down(shaped, sample)
                yield from ((row, kind.rename(sample, name)) for name in names)
        self._samples[split] = counts
        if not counts[split]:
            raise ValueError(
                f"data: nothing left for {split} ({self.counts}); raise model.max_length or add sources"
            )

    def _read(self, counts: Counter[str], *, quiet: bool) -> Iterator[_Used]:
        """The rows that are used, each content once, those of the evaluation sources first."""
        contents: set[int] = set()
        evaluated: set[str] = set()
        for source, training in self._sources():
            for row in self._kind.read(source, counts, quiet=quiet):
                prompt, content = prompt_key(row.messages), self._kind.content(row)
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
                    yield _Used(row, prompt, not training, copies)

    def _sources(self) -> Iterator[tuple[Any, bool]]:
        """Each source, and whether it is one to train on."""
        yield from ((source, False) for source in self._data.evaluation_sources)
        yield from ((source, True) for source in self._data.sources)


def draw_pair(ranked: RankedAnswers, seed: int) -> RankedAnswers:
    """The best answer and a worse one; a pair, or one answer alone, stays as it is."""
    if len(ranked.answers) < 3:
        return ranked
    worse = [place for place, score in enumerate(ranked.scores) if score < ranked.scores[0]]
    other = worse[seeded_number(seed, "pair", ranked.prompt_id) % len(worse)]
    return replace(
        ranked,
        answers=(ranked.answers[0], ranked.answers[other]),
        scores=(ranked.scores[0], ranked.scores[other]),
        desirable=1,
        cut=frozenset(new for new, place in enumerate((0, other)) if place in ranked.cut),
    )


def _names(wanted: str, copies: int, ids: UniqueIds) -> list[str]:
    """An id for each copy of a row."""
    first = ids.claim(wanted)
    return [first, *(ids.claim(f"{first}@{number}") for number in range(2, copies + 1))]


def _rename_chat(chat: TokenizedChat, name: str) -> TokenizedChat:
    return replace(chat, conversation_id=name)


def _rename_group(group: PreferenceGroup, name: str) -> PreferenceGroup:
    completions = tuple(replace(completion, prompt_id=name) for completion in group.completions)
    return replace(group, prompt=replace(group.prompt, prompt_id=name), completions=completions)


def _cut_down(ranked: RankedAnswers, group: PreferenceGroup) -> RankedAnswers:
    """The ranked answers that are left in the group."""
    kept = [completion.sample for completion in group.completions]
    return replace(
        ranked,
        answers=tuple(ranked.answers[place] for place in kept),
        scores=tuple(ranked.scores[place] for place in kept),
        desirable=group.desirable,
        cut=frozenset(new for new, place in enumerate(kept) if place in ranked.cut),
    )


_CONVERSATIONS = _Kind(
    read=read_conversations,
    content=lambda conversation: content_key(conversation.messages),
    name=lambda conversation: conversation.conversation_id,
    tokenize=tokenize_conversation,
    fit=fit_chat,
    rename=_rename_chat,
    cut_down=lambda conversation, _: conversation,
    answers=lambda _: (),
)
_PREFERENCES = _Kind(
    read=read_preferences,
    content=ranked_key,
    name=lambda ranked: ranked.prompt_id,
    tokenize=tokenize_preference,
    fit=fit_group,
    rename=_rename_group,
    cut_down=_cut_down,
    answers=lambda ranked: ranked.answers,
)
