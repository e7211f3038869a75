"""Documents to passages that a question can be asked about; no model is asked.

document --> parts --> without notes, links, references --> joined or cut to length --> passages
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from math import ceil
from pathlib import PurePosixPath

from ultramed_rl.config.factory import Paragraphs
from ultramed_rl.data.factory.step import Row

# -- Markdown: what stands between headings and blank lines, with the headings above it ---------------------

_FRONT = re.compile(r"\A(---|\+\+\+)[ \t]*\n[\w\"'-]+[ \t]*[:=].*\n(?:.*\n)*?\1[ \t]*(?:\n|\Z)")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")
_RULE = re.compile(r" {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_NO_TITLE = re.compile(r"\s*(?:[-*+>|]\s|\||\d+[.)]\s)")
_DELIMITER = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")
_WORD = re.compile(r"\S*\w\S*")


@dataclass(frozen=True)
class Part:
    """A paragraph, list, quotation, table or code block, and the headings that it stands under, outermost first."""

    text: str
    path: tuple[str, ...] = ()

    @cached_property
    def words(self) -> int:
        """How many; a table's lines and a list's signs are none."""
        return count_words(self.text)

    @cached_property
    def is_table(self) -> bool:
        """Whether it is a table and nothing else."""
        lines = self.text.split("\n")
        return all("|" in line for line in lines) and any(_DELIMITER.fullmatch(line) for line in lines[1:])


def count_words(text: str) -> int:
    """Runs of signs with a letter or digit in them."""
    return len(_WORD.findall(text))


def read_parts(text: str) -> Iterator[Part]:
    """The parts of a document in order; headings, rules and comments are none of them. Plain text is read the same: it has
    parts between blank lines, under no headings."""
    reader = _Reader()
    for line in _COMMENT.sub("", text).splitlines():
        yield from reader.read(line.expandtabs(4).rstrip())
    yield from reader.end()


@dataclass
class _Reader:
    lines: list[str] = field(default_factory=list)  # of the part under way
    headings: list[tuple[int, str]] = field(default_factory=list)
    fence: str = ""  # that closes the code block under way

    def read(self, line: str) -> Iterator[Part]:
        """One more line, and the part that it ends."""
        fence = _FENCE.match(line)
        # Of several lines none is a title: in plain text what follows them is more often a rule.
        title = self.lines[0] if len(self.lines) == 1 and not _NO_TITLE.match(self.lines[0]) else None
        if self.fence:
            self.lines.append(line)
            if line.strip().startswith(self.fence) and not line.strip(" " + self.fence[0]):
                self.fence = ""
        elif fence:
            self.lines.append(line)
            self.fence = fence[1]
        elif heading := _HEADING.fullmatch(line):
            yield from self.end()
            self._enter(len(heading[1]), heading[2] or "")
        elif title is not None and (underline := _UNDERLINE.fullmatch(line)):
            self.lines = []
            self._enter(1 if underline[1][0] == "=" else 2, title)
        elif not line or _RULE.fullmatch(line):
            yield from self.end()
        else:
            self.lines.append(line)

    def end(self) -> Iterator[Part]:
        """The part under way, if there is one."""
        text, self.lines = "\n".join(self.lines).strip("\n"), []
        if text.strip():
            yield Part(text, tuple(title for _, title in self.headings if title))

    def _enter(self, level: int, title: str) -> None:
        above = [one for one in self.headings if one[0] < level]
        self.headings = [*above, (level, title.strip(" *_"))]


# -- passages ----------------------------------------------------------------------------------------------

_REFERENCES = re.compile(
    r"(?:[\d.]+\s+)?(?:references?(?: list)?|bibliography|works cited|literature(?: cited)?|citations|sources"
    r"|further reading|suggested reading|external links|see also)\W*",
    re.IGNORECASE,
)
# "Ann Intern Med. 2009;150(9):604", a DOI or a PubMed number: a line that names a publication.
_CITATION = re.compile(r"\b(?:19|20)\d\d;\s*\d+|\bdoi:|\bdoi\.org/|\bPMID\b|\barXiv:\s*\d", re.IGNORECASE)
_LINK = re.compile(r"!?\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])|<?https?://\S+|\[[^\]]+\]:\s*\S+")
_SIGNS = " \t\n>*_#`-"
_ITEM = re.compile(r"\n(?=\s*(?:[-*+]|\d+[.)])\s)")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'(*“A-Z])")


def cut_paragraphs(rows: Iterable[Row], config: Paragraphs, left_out: Counter[str]) -> Iterator[Row]:
    """Passages {"id", "text", "source"} of documents {"path", "text"}, or {"id", "content"} as UltraMedical has, in order.

    A passage has `least_words` to `most_words` words. A part that is short, ends in a colon, or is a table is
    joined with its neighbour, if both stand under the same heading; and where headings are shown, if their headings
    stand next to each other under the same one. With `headings` the text begins "Title > Chapter > Section". The
    nth passage of a/b.md has the id NAME,a/b_n.

    Args:
        left_out: counts what is left out, by reason: front_matter, references, links and note (by `notes`);
            too_long (a table, code block or sentence that cannot be cut); table (no text beside it) and too_short.

    Raises:
        ValueError: a row without a path or a text, or two of the same path.
    """
    known: set[str] = set()
    for row in rows:
        path, text = row.get("path", row.get("id")), row.get("text", row.get("content"))
        if not (isinstance(path, str) and path and isinstance(text, str)):
            raise ValueError(
                f"row {str(dict(row))[:80]}: paragraphs are cut out of rows with an id and a content, or a path and a "
                "text; read .md or .txt files"
            )
        stem = str(PurePosixPath(path).with_suffix("")) if "path" in row else path
        if stem in known:
            raise ValueError(
                f"document {path!r}: another one has this path; ids go by it, so give each folder a stage"
            )
        known.add(stem)
        for number, passage in enumerate(_passages(text, config, left_out), start=1):
            yield {"id": f"{config.name},{stem}_{number}", "text": passage, "source": path}


def _passages(text: str, config: Paragraphs, left_out: Counter[str]) -> Iterator[str]:
    """The texts of a document's passages."""
    body, settings = _FRONT.subn("", text.replace("\r\n", "\n"))
    left_out.update(["front_matter"] * settings)
    notes = [re.compile(pattern, re.IGNORECASE) for pattern in config.notes]
    parts: list[Part] = []
    for part in read_parts(body):
        reason = _useless(part, notes)
        left_out.update([reason] if reason else [])
        parts += [] if reason else _fitting(part, config, left_out)
    for passage in _join(parts, config):
        if all(part.is_table for part in passage):
            left_out["table"] += 1
        elif _words(passage) < config.least_words:
            left_out["too_short"] += 1
        else:
            yield _render(passage, config.headings)


def _useless(part: Part, notes: Sequence[re.Pattern[str]]) -> str:
    """Why a part is no text to learn from, or nothing."""
    lines = part.text.split("\n")
    if any(_REFERENCES.fullmatch(title) for title in part.path) or all(map(_CITATION.search, lines)):
        return "references"
    if not count_words(_LINK.sub("", part.text)):
        return "links" if part.words else "too_short"
    plain = part.text.lstrip(_SIGNS)
    return "note" if any(pattern.match(plain) for pattern in notes) else ""


def _fitting(part: Part, config: Paragraphs, left_out: Counter[str]) -> list[Part]:
    """The part itself, or if it is too long runs of its items or sentences, of about the same length."""
    if part.words <= config.most_words:
        return [part]
    units, glue = _ITEM.split(part.text), "\n"
    if part.is_table or any(map(_FENCE.match, part.text.split("\n"))):  # blank lines of code included
        units = [part.text]
    elif len(units) == 1:
        units, glue = _SENTENCE.split(part.text), " "
    even = part.words / ceil(part.words / config.most_words)
    runs: list[list[str]] = []
    room, wanted = 0, 0.0
    for unit in units:
        words = count_words(unit)
        if words > config.most_words:
            left_out["too_long"] += 1
            room = 0
        elif words <= room and wanted > 0:
            runs[-1].append(unit)
            room, wanted = room - words, wanted - words
        else:
            runs.append([unit])
            room, wanted = config.most_words - words, even - words
    return [Part(glue.join(run), part.path) for run in runs]


def _join(parts: Iterable[Part], config: Paragraphs) -> list[list[Part]]:
    """Parts to passages: forward while one says too little alone, then a short one to the one before it."""
    passages: list[list[Part]] = []
    for part in parts:
        last = passages[-1] if passages else []
        if (not _stands_alone(last, config) or part.is_table) and _may_join(last, [part], config):
            last.append(part)
        else:
            passages.append([part])
    joined: list[list[Part]] = []
    for passage in passages:
        if not _stands_alone(passage, config) and joined and _may_join(joined[-1], passage, config):
            joined[-1] += passage
        else:
            joined.append(passage)
    return joined


def _stands_alone(passage: Sequence[Part], config: Paragraphs) -> bool:
    told = _words(passage) >= config.least_words and not all(part.is_table for part in passage)
    return told and not passage[-1].text.rstrip(_SIGNS).endswith(":")


def _may_join(first: Sequence[Part], second: Sequence[Part], config: Paragraphs) -> bool:
    """Whether they fit in length, and stand under the same heading or under two side by side."""
    if not first or _words(first) + _words(second) > config.most_words:
        return False
    ours, theirs, shared = _path(first), _path(second), _path([*first, *second])
    beside = bool(shared) and max(len(ours), len(theirs)) - len(shared) <= 1
    return ours == theirs == shared or (config.headings and beside)


def _words(passage: Sequence[Part]) -> int:
    return sum(part.words for part in passage)


def _path(passage: Sequence[Part]) -> tuple[str, ...]:
    """The headings that all parts stand under."""
    return _shared(*(part.path for part in passage))


def _shared(*paths: tuple[str, ...]) -> tuple[str, ...]:
    levels = zip(*paths, strict=False)
    return tuple(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _render(passage: Sequence[Part], headings: bool) -> str:
    """The headings above all of it, then the parts, each section of them under its own."""
    if not headings:
        return "\n\n".join(part.text for part in passage)
    shown = _path(passage)
    texts = [" > ".join(shown)] if shown else []
    for part in passage:
        known = len(_shared(shown, part.path))
        texts += [f"{'#' * level} {title}" for level, title in enumerate(part.path, start=1) if level > known]
        texts.append(part.text)
        shown = part.path
    return "\n\n".join(texts)
