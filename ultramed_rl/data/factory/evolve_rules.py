"""What a harder version of a question must be: complete, a few words longer, and free of traces of its making."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ultramed_rl.config.factory import Evolve
from ultramed_rl.data.factory.asking import Miss, read_object, read_text
from ultramed_rl.data.factory.choices import NO_JSON, read_question
from ultramed_rl.data.factory.instructions import Instruction

_REWRITING = re.compile(
    r"\b(?:given|original|rewritten|evolved|initial)\s+(?:question|prompt|instruction)s?\b", re.IGNORECASE
)
_VERDICTS = {"yes", "no", "maybe"}


def fitting_methods(config: Evolve, question: Instruction) -> Sequence[str]:
    """The methods to draw from. Where the options are yes, no and maybe, there are no harder distractors."""
    if not question.options:
        return config.open_methods
    fixed = {text.casefold() for text in question.options.values()} <= _VERDICTS
    return [m for m in config.choice_methods if m != "distractors" or not fixed] or config.choice_methods


def words_allowed(config: Evolve, method: str) -> tuple[int, int]:
    """Fewest and most words that a round may add to the stem. Harder distractors need none."""
    return (0 if method == "distractors" else config.least_words), config.most_words


def read_version(config: Evolve, old: Instruction, method: str, text: str) -> Instruction | Miss:
    """The new version in a reply, or what it misses by itself or measured by the old one."""
    reply = read_object(text)
    if reply is None:
        return NO_JSON
    new: Instruction | Miss
    if old.options:
        new = read_question(reply, "".join(old.options))
    else:
        stem = read_text(reply.get("question"))
        new = Instruction(stem) if stem else Miss("no_question", "the question is empty")
    return new if isinstance(new, Miss) else _compare(old, new, method, words_allowed(config, method))


def count_words(text: str) -> int:
    """Words of a text: what white space parts."""
    return len(text.split())


def _compare(old: Instruction, new: Instruction, method: str, words: tuple[int, int]) -> Instruction | Miss:
    added = count_words(new.stem) - count_words(old.stem)
    least, most = words
    if not least <= added <= most:
        change = f"{added} words more" if added >= 0 else f"{-added} words fewer"
        reason = "too_few_words" if added < least else "too_many_words"
        return Miss(reason, f"the question has {change} than before; it needs {least} to {most} more")
    if method == "distractors" and _wrong(new) <= _wrong(old):
        return Miss("same_distractors", "none of the wrong options is new")
    if _REWRITING.search(new.text) and not _REWRITING.search(old.text):
        return Miss("speaks_of_rewriting", "the question speaks of an earlier version of itself")
    return new


def _wrong(question: Instruction) -> set[str]:
    """The wrong options in plain form, without their letters."""
    wrong = (text for letter, text in question.options.items() if letter != question.key)
    return {" ".join(text.casefold().split()) for text in wrong}
