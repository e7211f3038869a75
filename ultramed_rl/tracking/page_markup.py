"""Parts of a page as HTML, every text escaped."""

from __future__ import annotations

import re
from html import escape

from ultramed_rl.tracking.page_parts import Callout, Facts, Heading, Note, PageTable, Part, Text

_UNWRITABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean_text(text: str) -> str:
    """The text with U+FFFD for control characters (all but tab and newline), for those that turn the direction of
    reading, and for halves of surrogate pairs."""
    return _UNWRITABLE.sub("\ufffd", text)


def escaped(text: str) -> str:
    """The text as HTML shows it literally, in an element or in a quoted attribute."""
    return escape(clean_text(text))


def part_html(part: Part) -> str | None:
    """A part that is text or numbers; None for a figure or a widget."""
    if isinstance(part, str):
        return f"<p>{escaped(part)}</p>"
    if isinstance(part, PageTable):
        return _table(part)
    if isinstance(part, Note):
        return f'<p class="note">{escaped(part.text)}</p>'
    if isinstance(part, Heading):
        return f"<h3>{escaped(part.text)}</h3>"
    if isinstance(part, Callout):
        return _callout(part)
    if isinstance(part, Facts):
        return _facts(part)
    if isinstance(part, Text):
        text = f'<pre tabindex="0">{escaped(part.text)}</pre>'
        return f"<details><summary>{escaped(part.heading)}</summary>\n{text}\n</details>"
    return None


def _table(table: PageTable) -> str:
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in table.columns)
    rows = []
    for name, *cells in table.rows:
        rest = "".join(f"<td>{escaped(cell)}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escaped(name)}</th>{rest}</tr>')
    body = "\n".join(rows)
    kind = ' class="words"' if table.words else ""
    return (
        f'<div class="wide" tabindex="0"><table{kind}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _callout(callout: Callout) -> str:
    lines = "\n".join(f"<p>{escaped(line)}</p>" for line in callout.lines)
    return f'<div class="callout {callout.tone}">\n<p class="say">{escaped(callout.heading)}</p>\n{lines}\n</div>'


def _facts(facts: Facts) -> str:
    cells = []
    for fact in facts.facts:
        note = f'<span class="by">{escaped(fact.note)}</span>' if fact.note else ""
        cells.append(f"<div><dt>{escaped(fact.name)}</dt><dd>{escaped(fact.value)}{note}</dd></div>")
    return f'<dl class="facts">{"".join(cells)}</dl>'
