"""The option that an answer settles on, by its letter, its text, or both; none where that is unclear.

A wrong reading is worse than none: an option's text counts only where an answer is stated, and only if it is
all that is stated there. "Aspirin" isn't read out of "aspirin and clopidogrel", nor "no" out of "no longer".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ultramed_rl.evaluation.items import AnswerReading
from ultramed_rl.evaluation.reading.letters import is_denied, letters_at
from ultramed_rl.evaluation.reading.plain import clean
from ultramed_rl.evaluation.reading.settling import decide, unite

_JUDGEMENTS = {"yes", "no", "maybe", "true", "false"}
_START = re.compile(r"(?:[\s:\"'(\[{]|- )*(?:an? |the |to |that )?")
_LIKELY = re.compile(r"(?:most likely|likely|probably|clearly|definitely|indeed|therefore|simply) ")
_FULL_END = re.compile(r"[\s.,;:!)\]\"'}]*$|,? (?:because|since)\b")
_END = re.compile(
    r"[\s\"'}]*(?:$|[.;:!)\]](?![\w.])| ?\(| - (?=[a-z])"
    r"|,? (?:because|since|as|which|given|due to|based on|so|rather than|instead of|option|choice|in this"
    r"|is (?:the )?(?:correct|best|right))\b|, not\b)"
)
_JUDGEMENT_END = re.compile(r"\s*[,:;.!-](?!\w)")
_TORN = re.compile(r"[,.;:!]? ?(?:(?:but|or|and|/) ?)?(?:yes|no|maybe|possibly)\b")
_LABEL = re.compile(
    r"[\s,\"']*(?:[(\[](?:(?:option|choice|answer) )?|(?:option|choice|answer) [(\[]?)"
    r"(?P<letter>[a-z])\b(?!['+-])"
)
_AND = re.compile(r"[\s,\"')]*(?:,|/|&|;|\band\b|\bor\b)\s?(?:(?:and|or|maybe) )?(?:the |an? )?")
_OR = re.compile(r"(?:and|or) ")
# Says that it is none of the options; no option has it as its letter.
_NEITHER = "-"
_REFUSAL = re.compile(
    r"(?:none of (?:the|these|them|those)|not (?:given|listed|known|clear)|unclear|unknown|uncertain|neither"
    r"|cannot be|impossible to)\b"
)


def read_choice(text: str, options: Mapping[str, str], *, truncated: bool = False) -> AnswerReading:
    """The letter of the option that a model's answer gives.

    Where a text is given alone, it must be all of an option's; an option that is a single letter (a blood
    group) goes by its own letter only. Several letters are a contradiction, and so is a letter with another
    option's text.

    Args:
        options: the texts by letter, as the model was shown them.
        truncated: whether the generation ended at its token limit.
    """
    letters = decide(text, _Options(options), truncated)
    if len(letters) > 1:
        return AnswerReading((), "contradiction")
    if letters in options:
        return AnswerReading((letters,))
    return AnswerReading((), "truncated" if truncated and not letters else "none")


class _Options:
    """The options of one question, as a `Resolve`."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.texts = {letter: clean(text) for letter, text in options.items()}
        self.letters: dict[str, str] = {}
        for letter, text in self.texts.items():
            key = _normalised(text).rstrip(" .,;:!\"'")
            if key and not (len(key) == 1 and key.isalpha()):
                self.letters[key] = self.letters.get(key, "") + letter
        self.longest_first = sorted(self.letters, key=len, reverse=True)

    def __call__(self, said: str, alone: bool = False) -> str:
        groups = self._groups(said, alone)
        if groups:
            return unite(*groups)
        letters, label = letters_at(said, self.texts, alone)
        if letters:
            return self._with_label(letters, label, alone)
        return _NEITHER if not alone and _REFUSAL.match(_normalised(said)) else ""

    def _groups(self, said: str, alone: bool = False) -> list[str]:
        """For each option's text that `said` starts with (one, or two joined by "and"), who has that text."""
        text = _normalised(said)
        for key in self.longest_first:
            if text.startswith(key):
                groups = self._ended(key, text[len(key) :], alone)
                if groups:
                    return groups
        return []

    def _ended(self, key: str, after: str, alone: bool) -> list[str]:
        """Who has the text `key`, and others that `after` adds; nobody where it goes on as another text."""
        if is_denied(after):
            return []
        letters = self.letters[key]
        label = _LABEL.match(after)
        if label and label["letter"].upper() in self.texts:
            letter = label["letter"].upper()
            return [letter] if letter in letters else [letters, letter]
        joint = _AND.match(after)
        other = self._joined(after[joint.end() :]) if joint else ""
        if other:
            return [letters, other]
        if key in _JUDGEMENTS and _JUDGEMENT_END.match(after):
            return [] if _TORN.match(after) else [letters]
        return [letters] if (_FULL_END if alone else _END).match(after) else []

    def _joined(self, text: str) -> str:
        """Who has the text that an "and" adds."""
        for key in self.longest_first:
            after = text[len(key) :]
            if text.startswith(key) and (_END.match(after) or _AND.match(after)):
                return self.letters[key]
        return ""

    def _with_label(self, letters: str, label: str, alone: bool) -> str:
        """The letters, once the text behind the first is compared with the options'."""
        own = self.texts.get(letters[0], "")
        groups = self._groups(label)
        if len(groups) == 1 and letters[0] in groups[0]:
            # "D. Both A and C" is one option.
            several = [letter for letter in letters[1:] if not re.search(rf"\b{letter}\b", own)]
            return letters[0] + "".join(several)
        joint = _OR.match(label)
        groups = groups or (self._groups(label[joint.end() :]) if joint else [])
        if groups:
            return unite(letters, *groups)
        if alone and label and len(letters) == 1 and not _fits(label, own):
            return ""
        return letters


def _fits(label: str, own: str) -> bool:
    """Whether a line's text begins as the option does, or holds it."""
    if re.match(r"because|since", label):
        return True
    said, expected = _normalised(label), _normalised(own).rstrip(" .")
    return said.split()[:1] == expected.split()[:1] or (bool(expected) and expected in said)


def _normalised(text: str) -> str:
    """In small letters, without markup, quotes, brackets and articles at the start."""
    plain = " ".join(re.sub(r"[*`$_]+", "", text).casefold().split())
    plain = plain[_START.match(plain).end() :]  # type: ignore[union-attr]
    likely = _LIKELY.match(plain)
    return plain[likely.end() :] if likely else plain
