"""Multiple-choice questions as a model writes them, {"question", "options", "answer"}: their schema and checks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ultramed_rl.data.factory.asking import Miss, object_schema, read_text
from ultramed_rl.data.factory.instructions import Instruction, split_options
from ultramed_rl.data.vignettes import plain_option

NO_JSON = Miss("unreadable_reply", "it is not a JSON object of the form asked for")
_TEXT = {"type": "string"}


def choice_schema(letters: str, *, needed: bool = True, explained: bool = False) -> str:
    """The JSON schema of a question with these option letters.

    Args:
        needed: all parts must be there; else an empty object fits as well (and so do halves of a question).
        explained: there may be an explanation.
    """
    options = object_schema(dict.fromkeys(letters, _TEXT))
    parts = {"question": _TEXT, "options": options, "answer": {"type": "string", "enum": list(letters)}}
    explanation = {"explanation": _TEXT} if explained else {}
    return json.dumps(object_schema({**parts, **explanation}, list(parts) if needed else []))


def read_question(reply: Mapping[str, Any], letters: str) -> Instruction | Miss:
    """The question in a reply, or the first thing wrong with it: no stem, options that lack or say the same,
    no single letter as the answer, a stem that holds the options, or one that reads differently in a record."""
    stem, options = read_text(reply.get("question")), _options(reply.get("options"), letters)
    key = read_text(reply.get("answer")).rstrip(".")
    if not stem:
        return Miss("no_question", "the question is empty")
    if options is None:
        return Miss("bad_options", f"the options are not texts under the letters {', '.join(letters)}")
    if len({plain_option(text) for text in options.values()}) < len(letters):
        return Miss("same_options", "two of the options say the same")
    if key not in options:
        return Miss("bad_letter", f"the answer is not one letter out of {', '.join(letters)}")
    if split_options(stem)[1]:
        return Miss("options_in_question", "the question repeats the options; they belong under options only")
    question = Instruction(stem, options, key)
    if split_options(question.text) != (stem, options):
        return Miss("bad_form", "question and options cannot be told apart when they are written as lines")
    return question


def _options(value: Any, letters: str) -> dict[str, str] | None:
    """The options, each on one line and without its own letter in front if all have theirs."""
    if not isinstance(value, Mapping) or {*value} != {*letters}:
        return None
    texts = {letter: " ".join(read_text(value[letter]).split()) for letter in letters}
    # "C. difficile" is an option and no label, unless the others have labels too.
    bare = {letter: re.sub(rf"^\(?{letter}[.):]\s*", "", text) for letter, text in texts.items()}
    if all(bare[letter] != texts[letter] for letter in letters):
        texts = bare
    return texts if all(texts.values()) else None
