"""When two questions are alike: by their words, or nearly so. One rule for training data and for evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ultramed_rl.data.stems import Stem, sentence_runs

Embed = Callable[[Sequence[str]], np.ndarray]  # texts to float32 unit vectors [n, d]
TELLING_WORDS = 13  # so many equal words in a row are no chance (GPT-3, arXiv 2005.14165, appendix C)


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
    """Keys of the questions that a prompt holds: its own and, of a short prompt, those of its sentences."""
    yield prompt.key
    if len(prompt.words) <= 2 * TELLING_WORDS:
        yield from sentence_runs(prompt)


def same_question(item: Stem, prompt: Stem) -> bool:
    """Whether a likeness counts: a short stem says too little where both have options and none in common."""
    telling = len(item.words) >= TELLING_WORDS or not (item.options and prompt.options)
    return telling or bool(item.options & prompt.options)


def check_unit_vectors(vectors: np.ndarray, texts: int) -> np.ndarray:
    """What an embedder gave for so many texts, as float32.

    Raises:
        ValueError: other than one vector of length 1 a text.
    """
    found = np.asarray(vectors, dtype=np.float32)
    if found.ndim != 2 or len(found) != texts:
        raise ValueError(f"embed gave shape {found.shape} for {texts} texts; give one vector a text")
    lengths = np.linalg.norm(found, axis=1)
    if not np.allclose(lengths, 1.0, atol=1e-3):
        raise ValueError(
            f"embed gave vectors of length {lengths.min():.3g} to {lengths.max():.3g}; scale them to 1"
        )
    return found
