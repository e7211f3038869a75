"""Documents to passages that a question can be asked about; no model is asked.

document --> parts --> without notes, links, references --> joined or cut to length --> passages
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from math import ceil
from pathlib import PurePosixPath

from ultramed_rl.config.factory import Paragraphs
from ultramed_rl.data.factory.markdown import Part, count_words, cut_front_matter, read_parts
from ultramed_rl.data.factory.step import Row

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
    """Passages {"id", "text", "source"} of documents {"path", "text"}, in order.

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
        path, text = _document(row)
        stem = str(PurePosixPath(path).with_suffix(""))
        if stem in known:
            raise ValueError(
                f"document {path!r}: another one has this path; ids go by it, so give each folder a stage"
            )
        known.add(stem)
        for number, passage in enumerate(_passages(text, config, left_out), start=1):
            yield {"id": f"{config.name},{stem}_{number}", "text": passage, "source": path}


def _document(row: Row) -> tuple[str, str]:
    path, text = row.get("path"), row.get("text")
    if not (isinstance(path, str) and path and isinstance(text, str)):
        raise ValueError(
            f"row {str(dict(row))[:80]}: paragraphs are cut out of rows with a path and a text; read .md or .txt files"
        )
    return path, text


def _passages(text: str, config: Paragraphs, left_out: Counter[str]) -> Iterator[str]:
    """The texts of a document's passages."""
    body, had_front_matter = cut_front_matter(text.replace("\r\n", "\n"))
    left_out.update(["front_matter"] if had_front_matter else [])
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
    units, glue = _units(part)
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


def _units(part: Part) -> tuple[list[str], str]:
    """What a part may be cut into, and what stands between: a table or code block is one."""
    if part.is_table or part.has_code:
        return [part.text], ""
    items = _ITEM.split(part.text)
    return (items, "\n") if len(items) > 1 else (_SENTENCE.split(part.text), " ")


def _join(parts: Iterable[Part], config: Paragraphs) -> list[list[Part]]:
    """Parts to passages: forward while one says too little alone, then a short rest to the one before it."""
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
    ours, theirs = _path(first), _path(second)
    shared = _path([*first, *second])
    beside = bool(shared) and max(len(ours), len(theirs)) - len(shared) <= 1
    return ours == theirs == shared or (config.headings and beside)


def _words(passage: Sequence[Part]) -> int:
    return sum(part.words for part in passage)


def _path(passage: Sequence[Part]) -> tuple[str, ...]:
    """The headings that all parts stand under."""
    return reduce(_shared, (part.path for part in passage))


def _shared(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    while theirs[: len(ours)] != ours:
        ours = ours[:-1]
    return ours


def _render(passage: Sequence[Part], headings: bool) -> str:
    """The headings above all of it, then the parts, each section of them under its own."""
    if not headings:
        return "\n\n".join(part.text for part in passage)
    above = _path(passage)
    shown, texts = above, [" > ".join(above)] if above else []
    for part in passage:
        old = len(_shared(shown, part.path))
        texts += [f"{'#' * level} {title}" for level, title in enumerate(part.path, start=1) if level > old]
        texts.append(part.text)
        shown = part.path
    return "\n\n".join(texts)
