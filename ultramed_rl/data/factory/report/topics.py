"""A map of what texts are about: a sample's vectors in the plane, in clusters named by their own words.

texts --> sample --> vectors --> principal components --> t-SNE, k-means --> places, clusters, labels
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from math import log, sqrt
from random import Random

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from ultramed_rl.data.likeness import Embed
from ultramed_rl.tracking.page import clean_text

MOST_CLUSTERS = 12  # as many as a map has room to label
_COMPONENTS, _FEW = 50, 10
_SAME = 6  # decimals in which equal vectors agree
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


@dataclass(frozen=True)
class Point:
    """One text, where it came from, and the set that it is of."""

    id: str
    group: str
    text: str


@dataclass(frozen=True)
class TopicMap:
    """n texts in the plane.

    Args:
        points: in the order of the stream, a sample of `seen`.
        places: float64 [n, 2]; only nearness means something, not the axes.
        clusters: int [n], 0 the largest. labels[c]: the words most typical of cluster c.
    """

    points: tuple[Point, ...]
    seen: int
    places: np.ndarray
    clusters: np.ndarray
    labels: tuple[str, ...]


def map_topics(
    texts: Iterable[tuple[str, str, str]],
    embed: Embed,
    *,
    seed: int,
    most: int = 5000,
    clusters: int | None = None,
) -> TopicMap:
    """The map of a seeded uniform sample of (id, set, text), in one pass; memory holds the sample alone.

    Places are those of t-SNE (JMLR 9:2579, 2008) over the first 50 principal components, clusters those of k-means
    there. Below 10 texts places are the first two components.

    Args:
        clusters: how many; None for half the square root of the sample's size, 1 to 12.

    Raises:
        ValueError: no texts, `most` or `clusters` below 1, or other than one finite vector a text.
    """
    if most < 1 or (clusters is not None and clusters < 1):
        raise ValueError(f"a topic map of {most} texts in {clusters} clusters: give at least 1 of each")
    points, seen = sample_points(texts, most, seed)
    if not points:
        raise ValueError("0 texts: a topic map needs at least one; check the stage's input")
    vectors = _components(_checked(embed([point.text for point in points]), len(points)), seed)
    members = _cluster(vectors, clusters or cluster_count(len(points)), seed)
    labels = label_clusters([point.text for point in points], members)
    return TopicMap(points, seen, _place(vectors, seed), members, labels)


def sample_points(
    texts: Iterable[tuple[str, str, str]], most: int, seed: int
) -> tuple[tuple[Point, ...], int]:
    """At most `most` texts, each as likely (reservoir sampling, algorithm R, ACM TOMS 11:37, 1985), and how many
    there were."""
    random, seen = Random(seed), 0
    kept: list[tuple[int, tuple[str, str, str]]] = []
    for seen, item in enumerate(texts, 1):
        if len(kept) < most:
            kept.append((seen, item))
        elif (place := random.randrange(seen)) < most:
            kept[place] = (seen, item)
    return tuple(Point(*map(clean_text, item)) for _, item in sorted(kept)), seen


def cluster_count(texts: int) -> int:
    """Clusters for so many texts: half their square root, rounded, 1 to `MOST_CLUSTERS`."""
    return max(1, min(MOST_CLUSTERS, round(sqrt(texts) / 2)))


def _checked(vectors: np.ndarray, count: int) -> np.ndarray:
    array = np.asarray(vectors, dtype=np.float64)
    if array.ndim != 2 or len(array) != count or not np.isfinite(array).all():
        raise ValueError(f"embed gave shape {array.shape} for {count} texts; give one finite vector a text")
    return array


def _components(vectors: np.ndarray, seed: int) -> np.ndarray:
    """[n, d] -> [n, at most 50] principal components; equal vectors are at 0."""
    from sklearn.decomposition import PCA

    if len(np.unique(vectors.round(_SAME), axis=0)) == 1:
        return np.zeros((len(vectors), 2))
    width = min(_COMPONENTS, *vectors.shape)
    plane: np.ndarray = PCA(width, random_state=seed).fit_transform(vectors)
    return plane if width > 1 else np.pad(plane, ((0, 0), (0, 1)))


def _place(vectors: np.ndarray, seed: int) -> np.ndarray:
    """[n, k] -> [n, 2]."""
    from sklearn.manifold import TSNE

    if len(vectors) < _FEW or not vectors.any():
        return vectors[:, :2].copy()
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    places: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)
    return places.astype(np.float64)


def _cluster(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The cluster of each text, numbered by size, then by the first text."""
    from sklearn.cluster import KMeans

    count = min(count, len(np.unique(vectors.round(_SAME), axis=0)))
    raw = KMeans(count, n_init=4, random_state=seed).fit_predict(vectors)
    names, first, sizes = np.unique(raw, return_index=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    number = np.empty(len(names), dtype=np.int64)
    number[order] = np.arange(len(names))
    ranked: np.ndarray = number[np.searchsorted(names, raw)]
    return ranked


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
    words = set()
    for word in _WORD.findall(text):
        small = word.casefold().translate(_CURLY).removesuffix("'s")
        if len(small) > _SHORT or (len(small) == _SHORT and word.isupper()):
            words.add(small[:_LONGEST])
    return words - _STOP
