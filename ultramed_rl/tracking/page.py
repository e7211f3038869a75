"""A page as one HTML file, with no network at reading time.

values --> a template of sections, with html/parts.html.jinja --> html/page.html.jinja, page.css, figures.js --> page

plotly.js is within the file, once and only if there is a figure: compressed (the wheel holds no smaller bundle
than 4.8 MB) and unpacked by the reader's browser. A content security policy forbids every request, and runs
the page's own scripts alone, by their hashes. Light and dark follow the reader's system.
"""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ultramed_rl.tracking.tables import is_known, number, numbered_columns, table_cells

_HTML = Path(__file__).with_name("html")
_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

Figure = Any  # a plotly.graph_objects.Figure


@dataclass(frozen=True)
class Widget:
    """A script of our own, NAME.js beside the page's template, and its data as JSON under the element id NAME-data. The data
    may be foreign: the script must show it as text only."""

    name: str
    script: str
    data: str


class Page:
    """What a template of sections fills: the sections, and their figures and widgets."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.heading = folder, ""
        self.sections: list[tuple[str, str]] = []
        self.figures: list[str] = []
        self.widgets: list[Widget] = []

    def section(self, heading: str, caller: Callable[[], str]) -> str:
        """`{% call page.section(heading) %}`: a further section, left out where nothing stands in it."""
        self.heading = heading
        if content := caller().strip():
            self.sections.append((heading, content))
        return ""

    def add_figure(self, figure: Figure) -> tuple[int, str]:
        """A further figure; returns its place and its height in pixels."""
        from plotly.io import to_json

        # Not orjson, which refuses halves of surrogate pairs. The page's own template, light or dark, is put in place of
        # plotly's; the layout's own title and colours stay.
        content = json.loads(to_json(figure, engine="json", validate=False))
        content["layout"].pop("template", None)
        self.figures.append(script_json({"data": content["data"], "layout": content["layout"]}))
        return len(self.figures) - 1, f"{content['layout'].get('height', 450):.0f}"

    def add_widget(self, name: str, data: Any) -> str:
        """A further widget; its markup stands where this is called."""
        script = (self.folder / f"{name}.js").read_text(encoding="utf-8")
        self.widgets.append(Widget(name, script, script_json(data)))
        return ""


def page_html(template: Path, title: str, subtitle: str = "", footer: str = "", **values: Any) -> str:
    """The page's text, to be written as UTF-8. Every text given is escaped; what UTF-8 or HTML cannot hold becomes U+FFFD.

    Labels within figures are not: plotly reads tags in them, so that whoever builds a figure out of foreign
    texts gives them through `figure_text`.

    Args:
        template: of the page's sections, each in `{% call page.section(heading) %}`; those without a heading stand before the
            list of contents.
        values: what the template names.
    """
    page = Page(template.parent)
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HTML]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: clean_text(value) if type(value) is str else value,
    )
    environment.globals |= {"page": page, **values}  # global, so that macros know them too
    environment.filters |= {"cells": table_cells, "columns": numbered_columns, "number": number}
    environment.tests["known"] = is_known
    environment.get_template(template.name).render()
    library, packed = _library() if page.figures else ("", "")
    css, draw = ((_HTML / name).read_text(encoding="utf-8") for name in ("page.css", "figures.js"))
    own = [*([draw] if page.figures else []), *(widget.script for widget in page.widgets)]
    assert not any("</script" in script.lower() for script in own)
    scripts = [*([library] if page.figures else []), *own]
    digests = [b64encode(sha256(script.encode("utf-8")).digest()).decode() for script in scripts]
    return environment.get_template("page.html.jinja").render(
        title=title,
        subtitle=subtitle,
        footer=footer,
        css=css,
        policy=" ".join(f"'sha256-{digest}'" for digest in digests) or "'none'",
        library=packed,
        draw=draw,
    )


def clean_text(text: str) -> str:
    """The text with U+FFFD for control characters (all but tab and newline), for those that turn the direction of
    reading, and for halves of surrogate pairs."""
    return _UNWRITABLE.sub("\ufffd", text)


def figure_text(text: str, most: int = 120, width: int = 0) -> str:
    """A foreign text as plotly shows it literally: one line, cut to `most` characters, no tags. `width`: break into lines
    of at most about so many characters; 0 for one line."""
    words = " ".join(clean_text(text).split())
    words = words if len(words) <= most else words[: most - 1].rstrip() + "…"
    lines = wrap(words, width) if width else [words]
    return "<br>".join(escape(line, quote=False) for line in lines)


def script_json(value: Any) -> str:
    """JSON in ASCII that holds no tag, so that no text can end the script that it is in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _library() -> tuple[str, str]:
    """plotly.js, and the same compressed in base64; the same bytes at every call."""
    from plotly.offline import get_plotlyjs

    # A script's text, and so its hash, has no carriage returns in the browser.
    library = re.sub(r"\r\n?", "\n", get_plotlyjs())
    return library, b64encode(gzip.compress(library.encode("utf-8"), 9, mtime=0)).decode()
