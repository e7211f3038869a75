"""The parts of a Markdown document: what stands between headings and blank lines, with the headings above it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

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

    @property
    def has_code(self) -> bool:
        """Whether it holds a code block, blank lines in it included."""
        return any(_FENCE.match(line) for line in self.text.split("\n"))


def count_words(text: str) -> int:
    """Runs of signs with a letter or digit in them."""
    return len(_WORD.findall(text))


def cut_front_matter(text: str) -> tuple[str, bool]:
    """The document without the block of settings that it may begin with, and whether there was one."""
    match = _FRONT.match(text)
    return (text[match.end() :], True) if match else (text, False)


def read_parts(text: str) -> Iterator[Part]:
    """The parts of a document in order; headings, rules and comments are none of them.

    Plain text is read the same: it has parts between blank lines, under no headings.
    """
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
        if self.fence or fence:
            self._fenced(line, fence)
        elif heading := _HEADING.fullmatch(line):
            yield from self.end()
            self._enter(len(heading[1]), heading[2] or "")
        elif self._is_title() and (underline := _UNDERLINE.fullmatch(line)):
            title, self.lines = self.lines[0], []
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

    def _fenced(self, line: str, fence: re.Match[str] | None) -> None:
        self.lines.append(line)
        if not self.fence:
            self.fence = fence[1] if fence else ""
        elif line.strip().startswith(self.fence) and not line.strip(" " + self.fence[0]):
            self.fence = ""

    def _is_title(self) -> bool:
        # Of several lines none is lost: in plain text what follows them is more often a rule.
        return len(self.lines) == 1 and not _NO_TITLE.match(self.lines[0])

    def _enter(self, level: int, title: str) -> None:
        above = [one for one in self.headings if one[0] < level]
        self.headings = [*above, (level, title.strip(" *_"))]
