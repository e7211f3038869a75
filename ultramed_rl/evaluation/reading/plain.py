"""Model output as plain text, ready to be searched for an answer."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise

_THOUGHT = re.compile(r"[<◁](?P<closes>/?)(?:think|thinking|thought|reasoning)[>▷]", re.IGNORECASE)
_PUNCTUATION = str.maketrans(
    dict.fromkeys("’‘´′", "'")
    | dict.fromkeys("“”„«»「」『』", '"')
    | dict.fromkeys("‐‑‒–−", "-")
    | dict.fromkeys("—―", " - ")
    | {"。": ". ", "、": ",", "【": "[", "】": "]", "\x08": "\\b"}
)
_FONT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mbox)\s*\{([^{}]*)\}")
_MARKER = re.compile(r"<\|(?!im_start|start_header_id)[^|<>\n]{1,30}\|>|</?s>|<br ?/?>")
_TURN = re.compile(
    r"^[ #*>-]*(?:question|problem|user|human|q|instruction|input)(?: ?\d+)?[* ]*:"
    r"|^#+ ?question\b|<\|(?:im_start|start_header_id)\|>|\[INST\]",
    re.IGNORECASE | re.MULTILINE,
)


def clean(text: str) -> str:
    """The text without thoughts, fonts and markers, in ASCII punctuation, single spaces, and no empty lines.

    Bold stays, as `**`. Thoughts that never end leave nothing behind them.
    """
    thoughts_end = max([0, *(match.end() for match in _THOUGHT.finditer(text) if match["closes"])])
    said = _THOUGHT.split(text[thoughts_end:], maxsplit=1)[0]
    text = unicodedata.normalize("NFKC", said.translate(_PUNCTUATION)).translate(_PUNCTUATION)
    text = _MARKER.sub("\n", re.sub(r"</?(?:b|strong)>", "**", text))
    text = _FONT.sub(r"\1", _FONT.sub(r"\1", text))
    text = re.sub(r"\\[()\[\],;]|~", " ", text)
    text = re.sub(r"(?<![\\\w])boxed\{|\\fbox\{", r"\\boxed{", text)
    text = re.sub(r"[^\S\n]+", " ", "\n".join(text.splitlines()))
    return re.sub(r"^\* ", "- ", re.sub(r"\n\s+", "\n", text).strip(), flags=re.MULTILINE)


def turns(text: str) -> list[str]:
    """The parts between questions: a small model goes on with questions of its own, and answers them."""
    starts = [0, *(match.start() for match in _TURN.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(starts)]
