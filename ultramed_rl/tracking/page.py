"""A report as one HTML file: paragraphs, tables and plotly figures, with no network at reading time.

plotly.js is within the file (4.8 MB; the wheel holds no smaller bundle), once and only if there is a figure. A
content security policy forbids every request. Light and dark follow the reader's system.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from textwrap import wrap
from typing import Any

from ultramed_rl.tracking.page_style import CSS, SCRIPT

Figure = Any  # a plotly.graph_objects.Figure

_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
"""


@dataclass(frozen=True)
class PageTable:
    """Rows of text under column headings. The first column names the row, the others hold numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.columns


Part = str | PageTable | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in order; a text is a paragraph."""

    heading: str
    parts: tuple[Part, ...]


def page_html(title: str, sections: Sequence[Section]) -> str:
    """The page's text, to be written as UTF-8. Every text given is escaped; what UTF-8 or HTML cannot hold becomes U+FFFD.

    Labels within figures are not: plotly reads tags in them, so that whoever builds a figure out of foreign
    texts gives them through `figure_text`.
    """
    figures: list[str] = []
    body = "\n".join(_section(section, figures) for section in sections)
    pieces = [_HEAD, f"<title>{_escaped(title)}</title>\n<style>\n{CSS}</style>\n</head>\n<body>"]
    pieces += [
        f"<main>\n<h1>{_escaped(title)}</h1>\n{body}\n</main>\n",
        *_scripts(figures),
        "</body>\n</html>\n",
    ]
    return "".join(pieces)


def clean_text(text: str) -> str:
    """The text with U+FFFD for control characters (all but tab and newline), for those that turn the direction of
    reading, and for halves of surrogate pairs."""
    return _UNWRITABLE.sub("\ufffd", text)


def figure_text(text: str, most: int = 120, width: int = 0) -> str:
    """A foreign text as plotly shows it literally: one line, cut to `most` characters, no tags.

    Args:
        width: break into lines of at most about so many characters; 0 for one line.
    """
    words = " ".join(clean_text(text).split())
    words = words if len(words) <= most else words[: most - 1].rstrip() + "…"
    lines = wrap(words, width) if width else [words]
    return "<br>".join(escape(line, quote=False) for line in lines)


def _section(section: Section, figures: list[str]) -> str:
    heading = _escaped(section.heading)
    parts = [f"<section>\n<h2>{heading}</h2>"]
    for part in section.parts:
        if isinstance(part, str):
            parts.append(f"<p>{_escaped(part)}</p>")
        elif isinstance(part, PageTable):
            parts.append(_table(part))
        else:
            parts.append(f'<div class="figure" id="figure-{len(figures)}" aria-label="{heading}"></div>')
            figures.append(_figure_json(part))
    return "\n".join([*parts, "</section>"])


def _table(table: PageTable) -> str:
    head = "".join(f'<th scope="col">{_escaped(name)}</th>' for name in table.columns)
    rows = []
    for name, *cells in table.rows:
        rest = "".join(f"<td>{_escaped(cell)}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{_escaped(name)}</th>{rest}</tr>')
    body = "\n".join(rows)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _figure_json(figure: Figure) -> str:
    """Data and layout without the template (the page's own, light or dark, takes its place)."""
    from plotly.io import to_json  # type: ignore[import-untyped]

    # Not orjson, which refuses halves of surrogate pairs. The layout's own title and colours stay.
    found = json.loads(to_json(figure, engine="json", validate=False))
    found["layout"].pop("template", None)
    return _script_json({"data": found["data"], "layout": found["layout"]})


def _script_json(value: Any) -> str:
    """JSON in ASCII that holds no tag, so that no text can end the script that it is in."""
    text = json.dumps(value, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _scripts(figures: Sequence[str]) -> list[str]:
    if not figures:
        return []
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    library = get_plotlyjs()
    assert "</script" not in library.lower()
    data = f'<script type="application/json" id="figures">[{",".join(figures)}]</script>\n'
    return [data, f"<script>{library}</script>\n", f"<script>\n{SCRIPT}</script>\n"]


def _escaped(text: str) -> str:
    return escape(clean_text(text))
