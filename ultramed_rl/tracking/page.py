"""A report as one HTML file, with no network at reading time.

plotly.js is within the file, once and only if there is a figure: compressed (the wheel holds no smaller bundle
than 4.8 MB) and unpacked by the reader's browser. A content security policy forbids every request, and runs
the page's own scripts alone, by their hashes. Light and dark follow the reader's system.
"""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from html import escape
from textwrap import wrap
from typing import Any

from ultramed_rl.tracking.page_markup import clean_text, escaped, part_html
from ultramed_rl.tracking.page_parts import Figure, PageTable, Part, Section, Widget
from ultramed_rl.tracking.page_script import SCRIPT
from ultramed_rl.tracking.page_style import CSS

__all__ = ["Figure", "PageTable", "Part", "Section", "clean_text", "figure_text", "page_html"]

_NAVIGATION_FROM = 5  # sections that are worth a list of links
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src {scripts}; \
style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
"""


def page_html(title: str, sections: Sequence[Section], subtitle: str = "", footer: str = "") -> str:
    """The page's text, to be written as UTF-8. Every text given is escaped; what UTF-8 or HTML cannot hold
    becomes U+FFFD.

    Labels within figures are not: plotly reads tags in them, so that whoever builds a figure out of foreign
    texts gives them through `figure_text`. A section without a heading stands before the list of contents.
    """
    figures: list[str] = []
    widgets: list[Widget] = []
    bodies = [_section(place, section, figures, widgets) for place, section in enumerate(sections)]
    opening = "".join(body for section, body in zip(sections, bodies, strict=True) if not section.heading)
    rest = "".join(body for section, body in zip(sections, bodies, strict=True) if section.heading)
    scripts = _Scripts()
    tail = _figure_scripts(figures, scripts) + _widget_scripts(widgets, scripts)
    needs = (
        "<noscript><p>Figures and samples need JavaScript; nothing is fetched.</p></noscript>\n"
        if tail
        else ""
    )
    line = f'<p class="subtitle">{escaped(subtitle)}</p>\n' if subtitle else ""
    end = f"<footer>{escaped(footer)}</footer>\n" if footer else ""
    head = _HEAD.format(scripts=scripts.policy)
    return (
        f"{head}<title>{escaped(title)}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{escaped(title)}</h1>\n{line}</header>\n{needs}{opening}{_navigation(sections)}{rest}{end}"
        f"</main>\n{tail}</body>\n</html>\n"
    )


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


class _Scripts:
    """The scripts that the page runs, and the policy that allows these."""

    def __init__(self) -> None:
        self._hashes: list[str] = []

    def allow(self, script: str) -> None:
        digest = b64encode(sha256(script.encode("utf-8")).digest()).decode()
        self._hashes.append(f"'sha256-{digest}'")

    def inline(self, script: str) -> str:
        assert "</script" not in script.lower()
        self.allow(script)
        return f"<script>{script}</script>\n"

    @property
    def policy(self) -> str:
        return " ".join(self._hashes) or "'none'"


def _section(place: int, section: Section, figures: list[str], widgets: list[Widget]) -> str:
    heading = escaped(section.heading)
    parts = [f'<section id="section-{place}">', *([f"<h2>{heading}</h2>"] if heading else ())]
    label = heading
    for part in section.parts:
        html = part_html(part)
        if html is not None:
            parts.append(html)
        elif isinstance(part, Widget):
            parts.append(part.markup)
            widgets.append(part)
        else:
            figure = _figure_json(part)
            height = json.loads(figure)["layout"].get("height", 450)
            parts.append(
                f'<div class="figure" id="figure-{len(figures)}" role="img" aria-label="{label}" '
                f'style="min-height: {height:.0f}px"></div>'
            )
            figures.append(figure)
    return "\n".join([*parts, "</section>\n"])


def _navigation(sections: Sequence[Section]) -> str:
    links = [
        f'<a href="#section-{place}">{escaped(section.heading)}</a>'
        for place, section in enumerate(sections)
        if section.heading
    ]
    if len(links) < _NAVIGATION_FROM:
        return ""
    return f'<nav aria-label="Contents">{" ".join(links)}</nav>\n'


def _figure_json(figure: Figure) -> str:
    """Data and layout without the template (the page's own, light or dark, takes its place)."""
    from plotly.io import to_json

    # Not orjson, which refuses halves of surrogate pairs. The layout's own title and colours stay.
    found = json.loads(to_json(figure, engine="json", validate=False))
    found["layout"].pop("template", None)
    return script_json({"data": found["data"], "layout": found["layout"]})


@cache
def _library() -> tuple[str, str]:
    """plotly.js, and the same compressed in base64; the same bytes at every call."""
    from plotly.offline import get_plotlyjs

    # A script's text, and so its hash, has no carriage returns in the browser.
    library = re.sub(r"\r\n?", "\n", get_plotlyjs())
    return library, b64encode(gzip.compress(library.encode("utf-8"), 9, mtime=0)).decode()


def _figure_scripts(figures: Sequence[str], scripts: _Scripts) -> str:
    if not figures:
        return ""
    library, packed = _library()
    scripts.allow(library)
    return (
        f'<script type="application/json" id="figures">[{",".join(figures)}]</script>\n'
        f'<script type="application/gzip" id="library">{packed}</script>\n{scripts.inline(SCRIPT)}'
    )


def _widget_scripts(widgets: Sequence[Widget], scripts: _Scripts) -> str:
    return "".join(
        f'<script type="application/json" id="{widget.name}-data">{script_json(widget.data)}</script>\n'
        f"{scripts.inline(widget.script)}"
        for widget in widgets
    )
