"""A map of what texts are about: a sample's vectors in the plane, in clusters named by their own words.

texts --> sample --> vectors --> principal components --> t-SNE, k-means --> places, clusters, labels
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt
from random import Random

import numpy as np

from ultramed_rl.data.factory.report.labels import label_clusters
from ultramed_rl.data.likeness import Embed
from ultramed_rl.tracking.page import clean_text

MOST_CLUSTERS = 12  # as many as a map has room to label
_COMPONENTS, _FEW = 50, 10
_SAME = 6  # decimals in which equal vectors agree


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
    found = _cluster(vectors, clusters or cluster_count(len(points)), seed)
    labels = label_clusters([point.text for point in points], found)
    return TopicMap(points, seen, _place(vectors, seed), found, labels)


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
    found = np.asarray(vectors, dtype=np.float64)
    if found.ndim != 2 or len(found) != count or not np.isfinite(found).all():
        raise ValueError(f"embed gave shape {found.shape} for {count} texts; give one finite vector a text")
    return found


def _components(vectors: np.ndarray, seed: int) -> np.ndarray:
    """[n, d] -> [n, at most 50] principal components; equal vectors are at 0."""
    from sklearn.decomposition import PCA

    if len(np.unique(vectors.round(_SAME), axis=0)) == 1:
        return np.zeros((len(vectors), 2))
    width = min(_COMPONENTS, *vectors.shape)
    found: np.ndarray = PCA(width, random_state=seed).fit_transform(vectors)
    return found if width > 1 else np.pad(found, ((0, 0), (0, 1)))


def _place(vectors: np.ndarray, seed: int) -> np.ndarray:
    """[n, k] -> [n, 2]."""
    from sklearn.manifold import TSNE

    if len(vectors) < _FEW or not vectors.any():
        return vectors[:, :2].copy()
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    found: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)
    return found.astype(np.float64)


def _cluster(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The cluster of each text, numbered by size, then by the first text."""
    from sklearn.cluster import KMeans

    count = min(count, len(np.unique(vectors.round(_SAME), axis=0)))
    raw = KMeans(count, n_init=4, random_state=seed).fit_predict(vectors)
    names, first, sizes = np.unique(raw, return_index=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    number = np.empty(len(names), dtype=np.int64)
    number[order] = np.arange(len(names))
    found: np.ndarray = number[np.searchsorted(names, raw)]
    return found
