"""What a question asks, by the structure of its text, and when two ask the same: one rule for training data and evaluations.

text --> stem | options --> words without signs: the key of equal texts
                        --> words that carry content, each with its role --> what is in one text and not in the other

Two texts are near by what no word list knows, and differ by what carries content: a number, a negation, a name, a
letter. So a near pair is a candidate alone, and the same question if nothing of content is left over.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase

import numpy as np

from ultramed_rl.data.content import (
    Content,
    is_telling,
    left_over,
    one_slip,
    read_content,
    same_content,
    same_weak,
    word_marks,
)
from ultramed_rl.data.vignettes import last_run

Embed = Callable[[Sequence[str]], np.ndarray]  # texts to float32 unit vectors [n, d]
TELLING_WORDS = 13  # so many equal words in a row are no chance (GPT-3, arXiv 2005.14165, appendix C)
_OPTION = re.compile(r"[\s*>-]*\(?([A-Za-z]|\d\d?)\s*[.):]\s*(\S.*)")
_FEW = 2  # words of content, beside which what is asked of them counts
_TELLING_CONTENT = 8  # words of content that don't come together by chance
_LABEL = re.compile(
    r"^[ \t]*(?:question|context|abstract|passage|options|choices|answer)[ \t]*(?:\(?\d+\)?)?[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<=[.?!:])\s+|\n+")
_WORD = re.compile(r"\.?\d+(?:[.,]\d+)*|[^\W\d_]+")


def normalise_text(text: str) -> str:
    """Casefolded, whitespace collapsed, without the punctuation around words.

    Punctuation inside words and before numbers stays: "1.5 mg" isn't "15 mg", ".5 mg" isn't "5 mg".
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    bare = (word.lstrip("\"'([{").rstrip("\"')]}.,;:?!") for word in words)
    return " ".join(word for word in bare if word)


def read_words(text: str) -> tuple[str, ...]:
    """A text's words and numbers in plain form; "1.5" is one, and none of the signs around them matter."""
    return tuple(_WORD.findall(normalise_text(text)))


@dataclass(frozen=True)
class Stem:
    """What a text asks: the text without labels and options, its words in plain form, the options' texts."""

    text: str
    words: tuple[str, ...]
    choices: tuple[str, ...]
    answer: str = ""  # the text of the right option, or a short answer; empty where unknown

    @cached_property
    def key(self) -> str:
        """The words as one text."""
        return " ".join(self.words)

    @cached_property
    def options(self) -> frozenset[str]:
        """The options in plain form."""
        return frozenset(" ".join(read_words(option)) for option in self.choices)

    @cached_property
    def content(self) -> Content:
        """What the stem says."""
        return read_content(self.text)

    @cached_property
    def option_contents(self) -> tuple[Content, ...]:
        """What each option says."""
        return tuple(map(read_content, self.choices))


def read_stem(text: str, answer: str | None = None) -> Stem:
    """The stem of a question.

    Its last run of lines A., B., ... (a, 1) are the options. What comes after them, if it is shorter than what comes
    before, asks for the form of the answer and goes too; context before the question stays.
    """
    lines = text.splitlines()
    run = last_run(lines, _OPTION, over="blank", least=2)
    options = run.texts
    before, after = "\n".join(lines[: run.start]), "\n".join(lines[run.end :])
    asks_two = len(options) == 2 and "1" in lines[run.start][:4]  # "which states 1) ..., 2) ...?"
    if not options or asks_two or len(read_words(after)) >= len(read_words(before)):
        before, options = text, ()
    stem = _LABEL.sub("", before).strip()
    answer = (answer or "").strip()
    if len(answer) == 1 and answer in ascii_uppercase[: len(options)]:
        answer = options[ascii_uppercase.index(answer)]
    return Stem(stem, read_words(stem), tuple(options), answer)


@dataclass(frozen=True)
class NearRule:
    """Which embeddings are near: squared L2 distance and relative difference of lengths (characters of the
    normalised stem) at most so much. Stems of fewer than `words` words are left out: their embeddings say little.
    """

    squared_l2: float = 0.05
    length: float = 0.20
    words: int = 5


PAPER_RULE = NearRule()


def equal_keys(prompt: Stem) -> Iterator[str]:
    """Keys of the questions that a prompt holds: its own and, of a short one, those of runs of whole sentences that are
    at least half of it."""
    yield prompt.key
    if len(prompt.words) > 2 * TELLING_WORDS:
        return
    parts = [read_words(part) for part in _SENTENCE_END.split(prompt.text)]
    for first in range(len(parts)):
        for last in range(first + 1, len(parts) + 1):
            words = [word for part in parts[first:last] for word in part]
            if 2 * len(words) >= len(prompt.words):
                yield " ".join(words)


def options_meet(item: Stem, prompt: Stem) -> bool:
    """Whether a likeness of words counts: a short stem says too little where both have options and none in common."""
    telling = len(item.words) >= TELLING_WORDS or not (item.options and prompt.options)
    return telling or bool(item.options & prompt.options)


def same_question(a: Stem, b: Stem) -> bool:
    """Whether two texts ask the same: they differ in nothing that carries content, offer the same options, and have the
    same answer where both are known.

    Inflection, one slip in a word, spelling, words of grammar and asking, saying twice, order, names and order of options
    don't count; numbers, signs, letters, negations, names and who does what to whom do. Where options and answer are
    the same, one text may have up to a third more words than the other, at other places.
    """
    if len(a.choices) != len(b.choices):
        return False
    known = bool(a.answer and b.answer)
    told = known and bool(a.choices)
    if not one_slip(a.content, b.content):
        if not same_content(a.content, b.content, 3 if told else None, places=not told):
            return False
        few = min(len(set(a.content.words)), len(set(b.content.words))) <= _FEW
        if few and not a.choices and not same_weak(a.content, b.content):
            return False
    theirs = list(b.option_contents)
    for choice in a.option_contents:
        twin = next((other for other in theirs if same_content(choice, other, 1)), None)
        if twin is None:
            return False
        theirs.remove(twin)
    return not known or same_content(read_content(a.answer), read_content(b.answer), 1)


def shared_content(a: Stem, b: Stem) -> float:
    """The part of the content of two texts that is in both, 0 to 1: of the shorter one, as a cut text is the question still.

    Short texts are another question by one word: 0 where each says what the other doesn't, or one has a number, sign,
    letter or negation more, or more than half as many words more.
    """
    if not (a.content.words and b.content.words):
        return 0.0
    only = left_over(a.content, b.content)[:2]
    sizes = [len(set(stem.content.words)) for stem in (a, b)]
    more = [*only[0], *only[1]]
    if min(sizes) < _TELLING_CONTENT and (
        all(only) or any(map(is_telling, more)) or 3 * len(more) > min(sizes)
    ):
        return 0.0
    return max(1.0 - len(set(own)) / size for own, size in zip(only, sizes, strict=True))


def content_marks(*contents: Content) -> list[str]:
    """Parts of words of content, by which texts are looked up that may ask the same."""
    return [mark for content in contents for word in content.words for mark in word_marks(word)]


def check_unit_vectors(vectors: np.ndarray, texts: int) -> np.ndarray:
    """What an embedder gave for so many texts, as float32.

    Raises:
        ValueError: other than one vector of length 1 a text.
    """
    unit = np.asarray(vectors, dtype=np.float32)
    if unit.ndim != 2 or len(unit) != texts:
        raise ValueError(f"embed gave shape {unit.shape} for {texts} texts; give one vector a text")
    lengths = np.linalg.norm(unit, axis=1)
    if not np.allclose(lengths, 1.0, atol=1e-3):
        raise ValueError(
            f"embed gave vectors of length {lengths.min():.3g} to {lengths.max():.3g}; scale them to 1"
        )
    return unit
