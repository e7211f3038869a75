"""What a question asks, by the structure of its text: the stem without labels, options and answer instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ultramed_rl.data.prompts import normalise_text
from ultramed_rl.data.vignettes import last_run

_OPTION = re.compile(r"[\s*>-]*\(?([A-Z])\s*[.):]\s*(\S.*)")
_LABEL = re.compile(
    r"^[ \t]*(?:question|context|abstract|passage|options|choices|answer)[ \t]*(?:\(?\d+\)?)?[ \t]*:",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"(?<=[.?!:])\s+|\n+")
_WORD = re.compile(r"\.?\d+(?:[.,]\d+)*|[^\W\d_]+")


@dataclass(frozen=True)
class Stem:
    """What a text asks: the text without labels and options, its words in plain form, its options in such."""

    text: str
    words: tuple[str, ...]
    options: frozenset[str]

    @cached_property
    def key(self) -> str:
        """The words as one text."""
        return " ".join(self.words)


def read_stem(text: str) -> Stem:
    """The stem of a question.

    Its last run of lines A., B., ... are the options. What comes after them, if it is shorter than what comes
    before, asks for the form of the answer and goes too; context before the question stays.
    """
    lines = text.splitlines()
    run = last_run(lines, _OPTION, over="blank", least=2)
    options = run.texts
    before, after = "\n".join(lines[: run.start]), "\n".join(lines[run.end :])
    if not options or len(read_words(after)) >= len(read_words(before)):
        before, options = text, ()
    stem = _LABEL.sub("", before).strip()
    return Stem(stem, read_words(stem), frozenset(" ".join(read_words(option)) for option in options))


def read_words(text: str) -> tuple[str, ...]:
    """A text's words and numbers in plain form; "1.5" is one, and none of the signs around them matter."""
    return tuple(_WORD.findall(normalise_text(text)))


def sentence_runs(stem: Stem) -> Iterator[str]:
    """The words of every run of whole sentences or lines that is at least half of the stem."""
    parts = [read_words(part) for part in _SENTENCE_END.split(stem.text)]
    for first in range(len(parts)):
        for last in range(first + 1, len(parts) + 1):
            words = [word for part in parts[first:last] for word in part]
            if 2 * len(words) >= len(stem.words):
                yield " ".join(words)
