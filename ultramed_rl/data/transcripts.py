"""Chats that stand in one text: transcripts, which are read; printed lists of turns; and what a template rendered."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from ultramed_rl.records import Message

# A turn or a list of them, in JSON or not.
PRINTED = re.compile(
    r"\s*(\[\s*)?\{(?=.*['\"](role|from)['\"]\s*:)\s*['\"](role|from|content|value)['\"]", re.DOTALL
)
# hh-rlhf's turns; Baize's, as of Medical-Instruction-120k; HelpSteer2's, whose first one has no header.
_TRANSCRIPTS = (
    (re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ \n]?"), True),
    (re.compile(r"(?:\A(?:The conversation between [^\n]*\n)?\s*|\s)\[\|(Human|AI)\|\][ \n]?"), True),
    (re.compile(r"\n?<extra_id_1>(User|Assistant)\n"), False),
)
# How the chats of one family or another begin once a template has rendered them.
_RENDERED = re.compile(
    r"\s*(<s>|<bos>|<BOS_TOKEN>|\[gMASK\]<sop>)?\s*"
    r"(<(?P<bar>[|｜])[^<>|｜]{1,40}(?P=bar)>|\[\|\w+\|\]|<start_of_turn>|<\|turn>|\[INST\]|<extra_id_[01]>"
    r"|### ?(Instruction|Human|User):|Below is an instruction that describes a task|<<SYS>>"
    r"|(?i:(system ?:.{0,4000}?\n\s*)?(?P<cue><?(GPT4 Correct )?)(human|user)>? ?:(?=.*\s(?P=cue)(assistant|ai|bot)>? ?:))"
    r"|(system\n.{0,4000}?\n)?user\n(?=.*\nassistant\b))",
    re.DOTALL,
)
_VICUNA = "USER: ", "ASSISTANT: "  # after whatever introduces them
# And how they end where an answer is to follow; a dialogue that is told ends otherwise.
_SPEAKER = re.compile(
    r"(?:^|\s)(?:human|user|patient|client|(?:### ?)?instruction|q|用户|患者|问) ?[:：]", re.IGNORECASE
)
_AWAITS = re.compile(
    r"\s(?:assistant|ai|bot|doctor|(?:### ?)?response|a|助手|医生|答) ?[:：]\Z", re.IGNORECASE
)


def read_transcript(text: str, role: str) -> list[Message]:
    """The turns of a text with its speakers' names in it; none where it isn't one."""
    for pattern, begins in _TRANSCRIPTS:
        first, *parts = pattern.split(text)
        if parts and bool(first.strip()) != begins:
            parts = parts if begins else ["Human", first, *parts]
            roles = ["assistant" if name in ("Assistant", "AI") else "user" for name in parts[::2]]
            turns = [Message(role=r, content=t) for r, t in zip(roles, parts[1::2], strict=True)]
            asked = not turns[-1]["content"].strip()
            # One turn alone is told by the blank lines before it, or as an answer that says whose it is.
            if len(turns) > 1 or (roles == [role] and (role == "assistant" or text[0] == "\n")):
                return turns[:-1] if asked else turns
    return []


def parse_printed(text: str) -> Any:
    """The list or object that a text is, in JSON or as Python prints it, which is what pandas writes to a table of texts;
    None where it is none."""
    parsers: Sequence[Callable[[str], Any]] = (json.loads, ast.literal_eval)
    for parse in parsers if text.lstrip()[:1] in ("[", "{") else ():
        try:
            return parse(text.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            pass
    return None


def rendered_mark(text: str) -> str | None:
    """What shows that a text is a chat that was rendered before, which a template would render again; None where nothing
    does."""
    if (
        text.endswith((":", "："))
        and (awaits := _AWAITS.search(text[-20:]))
        and (first := _SPEAKER.search(text))
    ):
        return f"{first[0].strip()} ... {awaits[0].strip()}"
    if (asked := text.find(_VICUNA[0])) >= 0 and text.find(_VICUNA[1], asked) >= 0:
        return " ... ".join(name.strip() for name in _VICUNA)
    rendered = _RENDERED.match(text)
    return rendered[0].strip() if rendered else None
