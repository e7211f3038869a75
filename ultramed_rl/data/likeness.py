"""What a question asks, by the structure of its text, and when two are alike: by their words, or nearly so.

One rule for training data and for evaluations.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ultramed_rl.data.vignettes import last_run

Embed = Callable[[Sequence[str]], np.ndarray]  # texts to float32 unit vectors [n, d]
TELLING_WORDS = 13  # so many equal words in a row are no chance (GPT-3, arXiv 2005.14165, appendix C)
_OPTION = re.compile(r"[\s*>-]*\(?([A-Z])\s*[.):]\s*(\S.*)")
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
    """What a text asks: the text without labels and options, its words in plain form, its options in such."""

    text: str
    words: tuple[str, ...]
    options: frozenset[str]

    @cached_property
    def key(self) -> str:
        """The words as one text."""
        return " ".join(self.words)


def read_stem(text: str) -> Stem:
    """The stem of a question.

    Its last run of lines A., B., ... are the options. What comes after them, if it is shorter than what comes
    before, asks for the form of the answer and goes too; context before the question stays.
    """
    lines = text.splitlines()
    run = last_run(lines, _OPTION, over="blank", least=2)
    options = run.texts
    before, after = "\n".join(lines[: run.start]), "\n".join(lines[run.end :])
    if not options or len(read_words(after)) >= len(read_words(before)):
        before, options = text, ()
    stem = _LABEL.sub("", before).strip()
    return Stem(stem, read_words(stem), frozenset(" ".join(read_words(option)) for option in options))


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


def same_question(item: Stem, prompt: Stem) -> bool:
    """Whether a likeness counts: a short stem says too little where both have options and none in common."""
    telling = len(item.words) >= TELLING_WORDS or not (item.options and prompt.options)
    return telling or bool(item.options & prompt.options)


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
