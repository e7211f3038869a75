"""A map of what texts are about: a sample's vectors in the plane, in clusters named by their own words.

texts --> sample --> vectors --> principal components --> t-SNE, k-means --> places, clusters, labels
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from random import Random
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from ultramed_rl.data.likeness import Embed
from ultramed_rl.tracking.page import clean_text, figure_text

MOST_CLUSTERS = 12  # as many as a map has room to label
_COMPONENTS, _FEW = 50, 10
_SAME = 6  # decimals in which equal vectors agree
WORDLESS = "(no words)"
_WORD = re.compile(r"[^\W\d_](?:[\w'’-]*\w)?")
_CURLY = str.maketrans("’", "'")
# The list's words that say something of a patient, and what it lacks.
_MEDICAL = {"back", "bottom", "cry", "fire", "side", "system", "thick", "thin"}
_STOP = ENGLISH_STOP_WORDS - _MEDICAL | {"does", "doesn't", "did", "don't", "it's", "isn't", "i'm", "what's"}
_LONGEST = 24
_SHORT = 2  # letters; a word of so many counts if it stands in capitals: CT, TB


class Point(NamedTuple):
    """One text, where it came from, and the set that it is of."""

    id: str
    group: str
    text: str


@dataclass(frozen=True)
class TopicMap:
    """n texts in the plane."""

    points: tuple[Point, ...]  # in the order of the stream, a sample of `seen`
    seen: int
    places: np.ndarray  # float64 [n, 2]; only nearness means something, not the axes
    clusters: np.ndarray  # int [n], 0 the largest
    labels: tuple[str, ...]  # of each cluster the words most typical of it


class PointSample:
    """At most `most` of a stream's texts, each as likely (reservoir sampling, algorithm R, ACM TOMS 11:37, 1985)."""

    def __init__(self, most: int, seed: int) -> None:
        self.seen, self._most, self._random = 0, most, Random(seed)
        self._kept: list[tuple[int, Point]] = []

    def add(self, point: Point) -> None:
        """Take the next text, or pass it by."""
        self.seen += 1
        if len(self._kept) < self._most:
            self._kept.append((self.seen, point))
        elif (place := self._random.randrange(self.seen)) < self._most:
            self._kept[place] = (self.seen, point)

    @property
    def points(self) -> tuple[Point, ...]:
        """Those that are kept, in the order of the stream, fit to be shown."""
        return tuple(Point(*map(clean_text, point)) for _, point in sorted(self._kept))


def map_topics(sample: PointSample, embed: Embed, *, seed: int, clusters: int | None = None) -> TopicMap:
    """The map of a sample of texts.

    Places are those of t-SNE (JMLR 9:2579, 2008) over the first 50 principal components, clusters those of k-means
    there. Below 10 texts places are the first two components.

    Args:
        clusters: how many; None for half the square root of the sample's size, 1 to 12.

    Raises:
        ValueError: no texts, `clusters` below 1, or other than one finite vector a text.
    """
    points = sample.points
    if not points or (clusters is not None and clusters < 1):
        raise ValueError(
            f"a topic map of {len(points)} texts in {clusters} clusters: give at least 1 of each"
        )
    given = np.asarray(embed([point.text for point in points]), dtype=np.float64)
    if given.ndim != 2 or len(given) != len(points) or not np.isfinite(given).all():
        raise ValueError(
            f"embed gave shape {given.shape} for {len(points)} texts; give one finite vector a text"
        )
    vectors = _components(given)
    members = _cluster(vectors, clusters or cluster_count(len(points)), seed)
    labels = label_clusters([point.text for point in points], members)
    return TopicMap(points, sample.seen, _place(vectors, seed), members, labels)


def cluster_count(texts: int) -> int:
    """Clusters for so many texts: half their square root, rounded, 1 to `MOST_CLUSTERS`."""
    return max(1, min(MOST_CLUSTERS, round(sqrt(texts) / 2)))


def _components(vectors: np.ndarray) -> np.ndarray:
    """[n, d] -> [n, at most 50] principal components; equal vectors are at 0."""
    from sklearn.decomposition import PCA

    if len(np.unique(vectors.round(_SAME), axis=0)) == 1:
        return np.zeros((len(vectors), 2))
    width = min(_COMPONENTS, *vectors.shape)
    solver = "covariance_eigh" if len(vectors) > vectors.shape[1] else "full"  # both exact; the default draws
    plane: np.ndarray = PCA(width, svd_solver=solver).fit_transform(vectors)
    return plane if width > 1 else np.pad(plane, ((0, 0), (0, 1)))


def _place(vectors: np.ndarray, seed: int) -> np.ndarray:
    """[n, k] -> [n, 2]."""
    from sklearn.manifold import TSNE

    if len(vectors) < _FEW or not vectors.any():
        return vectors[:, :2].copy()
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    # Half of the usual passes: they are nearly all of a report's time, and 2,000 points have their places by then.
    tsne = TSNE(perplexity=perplexity, init="pca", max_iter=500, random_state=seed)
    places: np.ndarray = tsne.fit_transform(vectors)
    return places.astype(np.float64)


def _cluster(vectors: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The cluster of each text, numbered by size, then by the first text."""
    from sklearn.cluster import KMeans

    count = min(count, len(np.unique(vectors.round(_SAME), axis=0)))
    raw = KMeans(count, n_init=4, random_state=seed).fit_predict(vectors)
    _, first, places, sizes = np.unique(raw, return_index=True, return_inverse=True, return_counts=True)
    ranks: np.ndarray = np.argsort(np.lexsort((first, -sizes)))
    return ranks[places]


def label_clusters(texts: Sequence[str], clusters: np.ndarray, words: int = 3) -> tuple[str, ...]:
    """For each cluster its most typical words, best first, joined by commas.

    tf-idf with clusters for documents: the share p of the cluster's texts that hold a word, times
    log(p / (q + 1 / n)), q its share in the other cluster that holds it most, n all texts. So what two clusters
    share names neither. A text counts a word once, and a word of one text alone names a cluster only where it has
    no other. One cluster: its most frequent words.

    Args:
        clusters: int [n], the cluster of each text, 0 to k - 1.
    """
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer(sparse_output=True)
    holds = binarizer.fit_transform([_words(text) for text in texts])  # [texts, words], words in their order
    counts = np.stack(
        [np.asarray(holds[clusters == c].sum(axis=0)).ravel() for c in range(clusters.max() + 1)]
    )
    shares = counts / np.bincount(clusters)[:, None]
    second, first = np.sort(np.vstack([np.zeros_like(shares[:1]), shares]), axis=0)[-2:]
    others = np.where(shares == first, second, first)
    with np.errstate(divide="ignore", invalid="ignore"):
        telling = np.where(counts, shares * np.log(shares / (others + 1 / len(texts))), -np.inf)
    names = []
    for own, score in zip(counts, telling, strict=True):
        chosen: list[str] = []
        held = np.flatnonzero(own)
        for place in held[np.lexsort((-score[held], own[held] == 1))]:
            word = str(binarizer.classes_[place])
            # None is another's plural.
            if len(chosen) < words and all(word.rstrip("s") != other.rstrip("s") for other in chosen):
                chosen.append(word)
        names.append(", ".join(chosen) or WORDLESS)
    return tuple(names)


def _words(text: str) -> set[str]:
    """The text's words in small letters, each once, stop words left out."""
    words = set()
    for word in _WORD.findall(text):
        small = word.casefold().translate(_CURLY).removesuffix("'s")
        if len(small) > _SHORT or (len(small) == _SHORT and word.isupper()):
            words.add(small[:_LONGEST])
    return words - _STOP


# -- the figure --------------------------------------------------------------------------------------------

_COLOURS = 8  # of the page, see html/figures.js; then other marks
_MARKS = ("circle", "diamond", "cross", "square")


def topic_figure(topics: TopicMap) -> go.Figure:
    """A point for each text, its first 120 characters on hover; a click on a label hides its cluster."""
    figure = go.Figure()
    for cluster, label in enumerate(topics.labels):
        members = np.flatnonzero(topics.clusters == cluster)
        points = [topics.points[member] for member in members]
        dots = go.Scatter(
            x=topics.places[members, 0].tolist(),
            y=topics.places[members, 1].tolist(),
            mode="markers",
            name=f"{cluster + 1} {figure_text(label)} ({len(members):,})",
            text=[
                f"{figure_text(one.group, 40)} · {figure_text(one.id, 40)}<br>{figure_text(one.text, 120, 60)}"
                for one in points
            ],
            hoverinfo="text",
            marker={"symbol": _MARKS[cluster // _COLOURS % len(_MARKS)], "size": 6, "opacity": 0.75},
        )
        figure.add_trace(dots)
        x, y = _centre(topics.places[members])
        figure.add_annotation(x=x, y=y, text=f"<b>{cluster + 1}</b>", showarrow=False, font_size=18)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    legend = {"orientation": "h", "yanchor": "top", "y": 0}
    return figure.update_layout(height=700, showlegend=True, legend=legend, margin={"t": 10, "l": 0, "r": 0})


def _centre(places: np.ndarray) -> tuple[float, float]:
    """The place with a third of them nearest: where they are dense, not between two halves of them."""
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=len(places) // 3 + 1).fit(places).kneighbors(places)
    x, y = places[np.argmin(distances[:, -1])]
    return float(x), float(y)
