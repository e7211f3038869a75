"""A topic map as a figure that tells each text, and as a picture to print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import plotly.graph_objects as go

from ultramed_rl.data.factory.report.topics import TopicMap
from ultramed_rl.tracking.page import clean_text, figure_text

# Colours that the colour-blind tell apart (Okabe and Ito, 2008), without black and yellow; then other marks.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKS = (("circle", "o"), ("diamond", "D"), ("cross", "P"), ("square", "s"))
_INCHES, _DPI = (11.0, 7.5), 150
_SHOWN, _LINE = 120, 60  # characters


def topic_figure(topics: TopicMap) -> go.Figure:
    """A point for each text, its first 120 characters on hover; a click on a label hides its cluster."""
    figure = go.Figure()
    for cluster, label in enumerate(topics.labels):
        members = np.flatnonzero(topics.clusters == cluster)
        color, (mark, _) = _style(cluster)
        dots = go.Scatter(
            x=topics.places[members, 0].tolist(),
            y=topics.places[members, 1].tolist(),
            mode="markers",
            name=f"{cluster + 1} {figure_text(label)} ({len(members):,})",
            text=[_hover(topics, member) for member in members],
            hoverinfo="text",
            marker={"color": color, "symbol": mark, "size": 6, "opacity": 0.75},
        )
        figure.add_trace(dots)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    legend = {"orientation": "h", "yanchor": "top", "y": 0}
    for cluster, (x, y) in enumerate(_centres(topics)):
        figure.add_annotation(x=x, y=y, text=f"<b>{cluster + 1}</b>", showarrow=False, font_size=18)
    return figure.update_layout(height=700, showlegend=True, legend=legend, margin={"t": 10, "l": 0, "r": 0})


def draw_topics(topics: TopicMap, path: Path, title: str = "") -> None:
    """Write the map as PNG, 1650 x 1125 pixels: numbered clusters, and what their numbers mean beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_axis_off()
    for cluster, label in enumerate(topics.labels):
        members = topics.clusters == cluster
        color, (_, mark) = _style(cluster)
        name = f"{cluster + 1}  {label} ({members.sum():,})"
        x, y = topics.places[members].T
        axes.scatter(
            x,
            y,
            s=_dot_area(len(topics.points)),
            c=color,
            marker=mark,
            alpha=0.7,
            linewidths=0,
            label=name,
        )
    _number(axes, topics)
    legend = axes.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=10, markerscale=2
    )
    for text in (*legend.get_texts(), axes.set_title(clean_text(title))):
        text.set_parse_math(False)
    figure.savefig(path, format="png", metadata={"Software": None})


def _number(axes: object, topics: TopicMap) -> None:
    from matplotlib.patheffects import withStroke

    for cluster, (x, y) in enumerate(_centres(topics)):
        axes.annotate(  # type: ignore[attr-defined]
            str(cluster + 1),
            (x, y),
            ha="center",
            va="center",
            fontsize=16,
            fontweight="bold",
            path_effects=[withStroke(linewidth=4, foreground="white")],
        )


def _centres(topics: TopicMap) -> Iterator[tuple[float, float]]:
    """Of each cluster the text with a third of it nearest: where it is dense, not between two halves of it."""
    from sklearn.neighbors import NearestNeighbors

    for cluster in range(len(topics.labels)):
        own = topics.places[topics.clusters == cluster]
        distances, _ = NearestNeighbors(n_neighbors=len(own) // 3 + 1).fit(own).kneighbors(own)
        x, y = own[np.argmin(distances[:, -1])]
        yield float(x), float(y)


def _hover(topics: TopicMap, member: int) -> str:
    point = topics.points[member]
    head = f"{figure_text(point.group, 40)} · {figure_text(point.id, 40)}"
    return f"{head}<br>{figure_text(point.text, _SHOWN, _LINE)}"


def _style(cluster: int) -> tuple[str, tuple[str, str]]:
    return PALETTE[cluster % len(PALETTE)], _MARKS[cluster // len(PALETTE) % len(_MARKS)]


def _dot_area(points: int) -> float:
    """Square points of ink for a dot: large where there are few."""
    return float(np.clip(9000 / points, 8, 60))
