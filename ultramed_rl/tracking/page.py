"""A report as one HTML file, with no network at reading time.

parts --> sections --> html/page.html.jinja, with html/page.css and html/figures.js --> page

plotly.js is within the file, once and only if there is a figure: compressed (the wheel holds no smaller bundle
than 4.8 MB) and unpacked by the reader's browser. A content security policy forbids every request, and runs
the page's own scripts alone, by their hashes. Light and dark follow the reader's system.
"""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader

_HTML = Path(__file__).with_name("html")
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

Figure = Any  # a plotly.graph_objects.Figure
Tone = Literal["good", "bad", "plain", "warning"]


@dataclass(frozen=True)
class PageTable:
    """Rows of text under column headings. The first column names the row; the others hold numbers, or with
    `words` words, which break where they are long."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.columns


@dataclass(frozen=True)
class Note:
    """A caption: how to read what stands beside it."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Callout:
    """A statement set apart, and what supports it."""

    tone: Tone
    heading: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """Numbers side by side, each with its name before it and what it is measured by after it."""

    facts: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Text:
    """A text as it is, line by line, folded away under its heading."""

    heading: str
    text: str


@dataclass(frozen=True)
class Widget:
    """Markup and a script of our own around data, which may be foreign: the script must show it as text only.

    `data` is in the page as JSON under the element id `name`-data; `markup` and `script` go in as they are.
    """

    name: str
    markup: str
    script: str
    data: Any


Part = str | PageTable | Note | Heading | Callout | Facts | Text | Widget | Figure
Parts = Iterator[Part]


@dataclass(frozen=True)
class PageSection:
    """A heading and what stands under it, in order; a text is a paragraph."""

    heading: str
    parts: Sequence[Part]


def page_html(title: str, sections: Sequence[PageSection], subtitle: str = "", footer: str = "") -> str:
    """The page's text, to be written as UTF-8. Every text given is escaped; what UTF-8 or HTML cannot hold
    becomes U+FFFD.

    Labels within figures are not: plotly reads tags in them, so that whoever builds a figure out of foreign
    texts gives them through `figure_text`. A section without a heading stands before the list of contents.
    """
    figures: list[str] = []
    bodies = []
    for place, section in enumerate(sections):
        parts: list[tuple[str, Any]] = []
        for part in section.parts:
            if hasattr(part, "to_plotly_json"):
                content, height = _figure_json(part)
                parts.append(("Figure", {"place": len(figures), "height": height}))
                figures.append(content)
            else:
                parts.append((type(part).__name__, part))
        bodies.append({"place": place, "heading": section.heading, "parts": parts})
    widgets = [part for section in sections for part in section.parts if isinstance(part, Widget)]
    library, packed = _library() if figures else ("", "")
    css, draw = ((_HTML / name).read_text(encoding="utf-8") for name in ("page.css", "figures.js"))
    own = [*([draw] if figures else []), *(widget.script for widget in widgets)]
    assert not any("</script" in script.lower() for script in own)
    digests = [sha256(script.encode("utf-8")).digest() for script in [*([library] if figures else []), *own]]
    environment = Environment(
        loader=FileSystemLoader(_HTML),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: clean_text(value) if type(value) is str else value,
    )
    return environment.get_template("page.html.jinja").render(
        title=title,
        subtitle=subtitle,
        footer=footer,
        css=css,
        policy=" ".join(f"'sha256-{b64encode(digest).decode()}'" for digest in digests) or "'none'",
        sections=bodies,
        headed=[body for body in bodies if body["heading"]],
        figures=figures,
        library=packed,
        draw=draw,
        widgets=widgets,
        script_json=script_json,
    )


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


def script_json(value: Any) -> str:
    """JSON in ASCII that holds no tag, so that no text can end the script that it is in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _figure_json(figure: Figure) -> tuple[str, str]:
    """Data and layout without the template (the page's own, light or dark, takes its place); and the height in pixels."""
    from plotly.io import to_json

    # Not orjson, which refuses halves of surrogate pairs. The layout's own title and colours stay.
    content = json.loads(to_json(figure, engine="json", validate=False))
    content["layout"].pop("template", None)
    height = f"{content['layout'].get('height', 450):.0f}"
    return script_json({"data": content["data"], "layout": content["layout"]}), height


@cache
def _library() -> tuple[str, str]:
    """plotly.js, and the same compressed in base64; the same bytes at every call."""
    from plotly.offline import get_plotlyjs

    # A script's text, and so its hash, has no carriage returns in the browser.
    library = re.sub(r"\r\n?", "\n", get_plotlyjs())
    return library, b64encode(gzip.compress(library.encode("utf-8"), 9, mtime=0)).decode()
