"""What a page is made of: sections of paragraphs, notes, tables, figures, foldings and widgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Figure = Any  # a plotly.graph_objects.Figure
Tone = Literal["good", "bad", "plain", "warning"]


@dataclass(frozen=True)
class PageTable:
    """Rows of text under column headings. The first column names the row, the others hold numbers.

    With `words` they hold words, and break where they are long.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
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
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fact:
    """One number with its name, and what it is measured by."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Facts:
    """Numbers side by side."""

    facts: tuple[Fact, ...]


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


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in order; a text is a paragraph."""

    heading: str
    parts: tuple[Part, ...]
