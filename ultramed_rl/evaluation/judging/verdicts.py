"""The verdict in a judge's reply on one statement, and none where that is unclear.

A verdict is one of three words, alone or in a short sentence that holds nothing else ("The answer contradicts
the statement."). It may be marked: "Verdict: neutral", {"label": "entailed"}, a box. The last line with a mark
decides. Without a mark, the reply must end in a verdict, or begin with one: "Neutral. It names no dose."
Whatever hedges, denies or names two is none: "not entailed" may mean either of the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Verdict = Literal["entailed", "neutral", "contradicted"]

_KINDS: dict[str, Verdict] = {"e": "entailed", "n": "neutral", "c": "contradicted"}
_WORD = r"(?P<verdict>entail(?:s|ed|ment|ing)?|contradict(?:s|ed|ion|ory|ing)?|neutral)"
_NOUN = r"(?:answer|response|text|statement|hypothesis)"
_PLAIN = re.compile(
    r"(?:(?:so|thus|hence|therefore|overall|in\s+conclusion|in\s+short),?\s+)?(?:that\s+)?"
    rf"(?:(?:(?:the|this)\s+{_NOUN}|it|this)\s+)?"
    r"(?:(?:is|a|an|clearly|directly|explicitly|fully|entirely|therefore|thus)\s+)*"
    rf"{_WORD}(?:\s+(?:by|with|to|towards?|of|the|this|it|{_NOUN}))*",
    re.IGNORECASE,
)
_FIRST = re.compile(
    r"[\s\"'(\[]*(?P<verdict>entail(?:s|ed)|contradict(?:s|ed)|neutral)[\"')\]]*[.;!]\s", re.I
)
_WITHIN_EDGES = re.compile(r"[\w?](?:.*[\w?])?", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n")
# A judge speaks of "the answer" all the time: that word marks a verdict only where one follows.
_MARK = re.compile(
    r"(?<![\w/])(?:(?:verdict|label|classification|judge?ment|conclusion)(?:\s*\([^)\n]{0,40}\))?"
    r"[\"']?\s*(?:[:：=>]+|[–—-]+(?=\s)|is\b:?)|(?P<weak>answer|relation(?:ship)?)[\"']?\s*[:：=])"
    r"|\\boxed(?=\{)",
    re.IGNORECASE,
)
_OPENING = re.compile(r"(?:[\s\"'(\[{<]|\\text|\\mathrm)*")
# What may follow a verdict: a reason, but no alternative.
_CLOSING = re.compile(
    r"[.;!\n\"')\]}<>]|\((?!\s*(?:or|and)\b)|\s[–—-]+\s|,?\s+(?:because|since|as\s+(?:the|it))\b|,\s*$", re.I
)


def read_verdict(reply: str) -> Verdict | None:
    """The verdict that a judge's reply settles on, or None for none and for several.

    Example: "It names no dose.\\n**Verdict:** Neutral" gives "neutral"; "entailed or neutral" gives None.
    """
    text = _bare(reply.rpartition("</think>")[2].partition("<think>")[0])
    sentences = [_plain(sentence) for sentence in _SENTENCE_END.split(text)]
    closing, marked, first = sentences[-1], _marked(text), _FIRST.match(text)
    if marked:
        return _only([*marked, closing or marked[-1]])
    if first is None and closing is None:
        return None
    # A first word that is a verdict is a sentence, too.
    return _only(verdict for verdict in sentences if verdict is not None)


def _bare(reply: str) -> str:
    """The text without Markdown, empty lines, repeated spaces and curly quotes."""
    plain = re.sub(r"[*_`#]+", "", reply).translate(str.maketrans("“”‘’", "\"\"''"))
    return "\n".join(filter(None, (" ".join(line.split()) for line in plain.splitlines())))


def _marked(text: str) -> list[Verdict | None]:
    """What stands after each mark of the last line that has one; None where that is no verdict."""
    found: dict[int, list[Verdict | None]] = {}
    marks = list(_MARK.finditer(text))
    for index, mark in enumerate(marks):
        end = marks[index + 1].start() if index + 1 < len(marks) else len(text)
        opening = _OPENING.match(text, mark.end(), end)
        start = opening.end() if opening else mark.end()
        closing = _CLOSING.search(text, start, end)
        verdict = _plain(text[start : closing.start() if closing else end])
        if verdict or not mark["weak"]:
            found.setdefault(text.count("\n", 0, mark.start()), []).append(verdict)
    return found[max(found)] if found else []


def _plain(sentence: str) -> Verdict | None:
    """The verdict of a sentence that holds nothing else."""
    words = _WITHIN_EDGES.search(sentence)
    match = _PLAIN.fullmatch(words[0]) if words else None
    return _kind(match) if match else None


def _kind(match: re.Match[str]) -> Verdict:
    return _KINDS[match["verdict"][0].lower()]


def _only(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    kinds = set(verdicts)
    return kinds.pop() if len(kinds) == 1 else None
