"""Names of clusters: the words in their own texts that tell them from the other clusters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import log

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

WORDLESS = "(no words)"
_WORD = re.compile(r"[^\W\d_](?:[\w'’-]*\w)?")
_CURLY = str.maketrans("’", "'")
# The list's words that say something of a patient, and what it lacks.
_MEDICAL = {"back", "bottom", "cry", "fire", "side", "system", "thick", "thin"}
_STOP = (ENGLISH_STOP_WORDS - _MEDICAL) | {
    "don't",
    "does",
    "did",
    "doesn't",
    "it's",
    "i'm",
    "what's",
    "isn't",
}
_LONGEST = 24
_SHORT = 2  # letters; a word of so many counts if it stands in capitals: CT, TB


def label_clusters(texts: Sequence[str], clusters: np.ndarray, words: int = 3) -> tuple[str, ...]:
    """For each cluster its most typical words, best first, joined by commas.

    tf-idf with clusters for documents: the share p of the cluster's texts that hold a word, times
    log(p / (q + 1 / n)), q its share in the other cluster that holds it most, n all texts. So what two clusters
    share names neither. A text counts a word once, and a word of one text alone names a cluster only where it has
    no other. One cluster: its most frequent words.

    Args:
        clusters: int [n], the cluster of each text, 0 to k - 1.
    """
    held = [Counter[str]() for _ in range(int(clusters.max()) + 1)]
    for text, cluster in zip(texts, clusters, strict=True):
        held[cluster].update(_words(text))
    sizes = np.bincount(clusters)
    shares = [{word: n / size for word, n in one.items()} for one, size in zip(held, sizes, strict=True)]
    highest: dict[str, list[float]] = {}
    for one in shares:
        for word, share in one.items():
            highest[word] = sorted([share, *highest.get(word, [0.0])], reverse=True)[:2]

    def rank(cluster: int, word: str) -> tuple[bool, float, str]:
        share, (first, second) = shares[cluster][word], highest[word]
        other = second if share == first else first
        return held[cluster][word] == 1, -share * log(share / (other + 1 / len(texts))), word

    return tuple(_label(sorted(one, key=partial(rank, n)), words) for n, one in enumerate(held))


def _label(ranked: Sequence[str], most: int) -> str:
    """The first words of which none is another's plural."""
    chosen: list[str] = []
    for word in ranked:
        if len(chosen) < most and all(word.rstrip("s") != other.rstrip("s") for other in chosen):
            chosen.append(word)
    return ", ".join(chosen) or WORDLESS


def _words(text: str) -> set[str]:
    """The text's words in small letters, each once, stop words left out."""
    found = set()
    for word in _WORD.findall(text):
        small = word.casefold().translate(_CURLY).removesuffix("'s")
        if len(small) > _SHORT or (len(small) == _SHORT and word.isupper()):
            found.add(small[:_LONGEST])
    return found - _STOP
