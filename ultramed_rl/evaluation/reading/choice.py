"""The option that an answer settles on, by its letter, its text, or both; none where that is unclear.

Medicine is full of letters that are no answer: vitamin C, hepatitis B, E. coli, B cells. A letter counts where an answer
is stated (see `settling`), and only with a mark, the end, or a word of reasoning after it. An option's text counts only if
it is all that is stated there: "aspirin" isn't read out of "aspirin and clopidogrel", nor "no" out of "no longer".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ultramed_rl.evaluation.items import AnswerReading
from ultramed_rl.evaluation.reading.settling import REJECTED, decide, unite
from ultramed_rl.evaluation.reading.text import clean

_USUAL = "ABCDEFGH"  # I would be the pronoun
_PLACEHOLDERS = "XYZ"  # "So, the answer is X." is how a prompt asks for it.
_PREFIX = re.compile(
    r"(?:(?:most likely|likely|probably|clearly|obviously|certainly|therefore|thus|indeed|definitely"
    r"|actually|simply|the|correct|best|single|options?|choices?|letter|answers?|statements?|both"
    r"|either)\b[\s:\"'(\[<-]*|选项 ?){0,4}",
    re.IGNORECASE,
)
_OPENING = " \n:\"'([{<-=#>.|"
_LETTER = re.compile(r"(?P<letter>[A-Za-z])(?P<close>[)\]}\"'>]*)")
_END = re.compile(
    r"\s*$| ?[.:](?!\w)|[.:](?=[A-Z][a-z]{2})|[,;!|\n]| ?- | ?[(\[]| ?/ ?[A-Z]\b|选项|项| &| (?:because|since"
    r"|as|given|due|for this|which|based|rather|instead|over|not|and|or|but|in this|it|this|the|so|here"
    r"|remains|fits|matches|is left)\b| is (?:the )?(?:correct|right|best|most)\b"
)
_SMALL_END = re.compile(r"\s*$|[.:,;](?!\w)| (?:because|since)\b")
_PRONOUN_END = re.compile(r"\s*$|[.:](?!\w)")
_WHOLE_END = re.compile(r"[.!,;:]*\s*$|[.:]? ?\(|[.:] |[.:](?=[A-Z][a-z]{2})| - ")
_ANOTHER = re.compile(
    r"(?: ?\([^()\n]{1,80}\))?[)\]\"'.]*\s?(?:,|/|&|;|\||\bor\b|\band\b|\bplus\b)\s?(?:(?:or|and|both) )?"
    r"(?:(?i:option|choice|answer) )?[(\[\"']*(?P<letter>[A-Z])"
    r"(?=[)\].,;:|\"']|\s*$| \(| (?:and|or|are|because|since|both|seem|fit)\b| ?[/&])"
)
_EPITHETS = (
    r"(?i:coli|diff|difficile|albicans|trachomatis|botulinum|perfringens|tetani|burnetii|faecalis|faecium"
    r"|histolytica|granulosus|henselae|burgdorferi|pertussis|anthracis|cereus|fragilis|abortus|neoformans"
    r"|jejuni|diphtheriae|fumigatus|baumannii|lumbricoides|israelii|latum|cloacae|tularensis|lamblia"
    r"|vaginalis|pylori|influenzae|ducreyi|capsulatum|gondii)\b"
)
# A second label further on: an echo of options in one line, or "A. Aspirin and C. Warfarin".
_LABELLED = re.compile(
    rf"[.):]? ?[^.\n]{{1,80}}? \(?(?P<letter>[A-Z])[).] (?=\w)(?!{_EPITHETS}|(?:is|was|are|would|does)\b)"
)
_ONLY_LETTERS = re.compile(r"(?:\W|\b(?:and|or|both|option)\b|\b[A-Z]\b)*")
_MARKS = re.compile(r"^(?:[ :(),!]|\.(?!\d)|-(?= ))*")
_DENIED = re.compile(
    r"(?: ?\([^()\n]{1,80}\))?,?(?: which)? (?:is|are|was|were)(?:n't| not| wrong| incorrect| false)\b"
    r"|[\s.,(:-]+(?:wrong|incorrect|false)\b(?! ?(?:options?|answers?|choices?|ones)?:)",
    re.IGNORECASE,
)
# "A. Aspirin is an NSAID" describes an option.
_PREDICATE = re.compile(r" (?:is|are|was|were|has|have|can|may|would|could|should|will|does|[a-z]{3,}s)\b")
_SPECIES = re.compile(r"\. ?(?P<name>[a-z][\w-]*)")
_EPITHET = re.compile(rf"\. ?{_EPITHETS}")
_COMMON_WORD = re.compile(r"yes|no|maybe|true|false|the|it|this|because|since|in|as|an?")

# What may stand before, after and between options' texts.
_JUDGEMENTS = {"yes", "no", "maybe", "true", "false"}
_START = re.compile(r"(?:[\s:\"'(\[{]|- )*(?:an? |the |to |that )?")
_LIKELY = re.compile(r"(?:most likely|likely|probably|clearly|definitely|indeed|therefore|simply) ")
_FULL_END = re.compile(r"[\s.,;:!)\]\"'}]*$|,? (?:because|since)\b")
_TEXT_END = re.compile(
    r"[\s\"'}]*(?:$|[.;:!)\]](?![\w.])| ?\(| - (?=[a-z])|,? (?:because|since|as|which|given|due to|based on"
    r"|so|rather than|instead of|option|choice|in this|is (?:the )?(?:correct|best|right))\b|, not\b)"
)
_JUDGEMENT_END = re.compile(r"\s*[,:;.!-](?!\w)")
_TORN = re.compile(r"[,.;:!]? ?(?:(?:but|or|and|/) ?)?(?:yes|no|maybe|possibly)\b")
_LABEL = re.compile(
    r"[\s,\"']*(?:[(\[](?:(?:option|choice|answer) )?|(?:option|choice|answer) [(\[]?)"
    r"(?P<letter>[a-z])\b(?!['+-])"
)
_AND = re.compile(r"[\s,\"')]*(?:,|/|&|;|\band\b|\bor\b)\s?(?:(?:and|or|maybe) )?(?:the |an? )?")
_OR = re.compile(r"(?:and|or) ")
_NEITHER = "-"  # says that it is none of the options; no option has it as its letter
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


def read_letter(answer: str, options: Mapping[str, str] | None = None) -> str | None:
    """The letter that an answer gives, or None for none and for contradictions.

    Args:
        options: the question's own, by letter, where they are known; others are then no answer.
    """
    known = options or dict.fromkeys(_USUAL, "")
    letters = decide(answer, lambda said, alone=False: _letters_at(said, known, alone)[0])
    return letters if len(letters) == 1 and letters in known else None


# -- letters -----------------------------------------------------------------------------------------------


def _letters_at(said: str, options: Mapping[str, str], alone: bool) -> tuple[str, str]:
    """The letters that `said` starts with, and what follows the first: its option's text, or a reason.

    ("", "") where a word starts, or a letter that means something else. See `Resolve` for `alone`.
    """
    said = said.lstrip(_OPENING)
    prefix = _PREFIX.match(said)
    match = _LETTER.match(said, prefix.end() if prefix else 0)
    if match is None:
        return "", ""
    letter, after = match["letter"].upper(), said[match.end() :]
    own, label = options.get(letter, ""), _MARKS.sub("", after, count=1)
    if not _is_answer(match, after, label, own, letter in options):
        return "", ""
    # A second letter stands beside the first, or labels a second option after the first one's text.
    beside, labelled = (form.match(said, match.end("letter")) for form in (_ANOTHER, _LABELLED))
    another = ""
    if beside and (not alone or _ONLY_LETTERS.fullmatch(said, beside.end())):
        another = beside["letter"]
    elif labelled and labelled["letter"] in options:
        another = labelled["letter"]
    if alone and not another and not _stands_alone(match, after, label, own):
        return "", ""
    return unite(letter, another), label


def _is_answer(match: re.Match[str], after: str, label: str, own: str, known: bool) -> bool:
    """Whether the letter ends as an answer's does, and is no pronoun, genus ("E. coli") or placeholder."""
    letter, closed = match["letter"], match["close"].strip("'")
    if (not known and letter.upper() in _PLACEHOLDERS + "I") or re.match(r"[A-Za-z0-9_]", after):
        return False
    if _DENIED.match(after) and not (own and _starts(label, own)):
        return False
    name = _SPECIES.match(after)
    species = _EPITHET.match(after) or (name and not _COMMON_WORD.fullmatch(name["name"]))
    # After "A. " the option's own text may stand in small letters.
    if species and not (own and _starts(after.lstrip(" ."), own.split()[0])):
        return False
    if closed or (own and after[:1] == " " and _starts(after[1:], own)):
        return True
    end = _PRONOUN_END if letter in "Ii" else _END if letter.isupper() else _SMALL_END
    return end.match(after) is not None


def _stands_alone(match: re.Match[str], after: str, label: str, own: str) -> bool:
    """Whether no more than the letter and its option's text stands there, and nothing rejects it."""
    if not label:
        return True
    if label.split()[0] in ("and", "or", "is", "are"):
        return False
    if own and _starts(label, own):
        return not (REJECTED.match(label, len(own)) or _PREDICATE.match(label, len(own.strip(" ."))))
    if match["letter"].isupper() and re.match(r"[,.]? (?:- )?(?:because|since)\b", after):
        return True
    labelled = match["close"].strip("'\"") or (match["letter"].isupper() and _WHOLE_END.match(after))
    return bool(labelled) and not REJECTED.match(label)


def _starts(text: str, own: str) -> bool:
    return text.casefold().startswith(own.strip(" .").casefold())


# -- texts -------------------------------------------------------------------------------------------------


class _Options:
    """The options of one question, as a `Resolve`."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.texts = {letter: clean(text) for letter, text in options.items()}
        self.letters: dict[str, str] = {}  # by text, whose it is
        for letter, text in self.texts.items():
            key = _normalised(text).rstrip(" .,;:!\"'")
            if key and not (len(key) == 1 and key.isalpha()):
                self.letters[key] = self.letters.get(key, "") + letter
        self.longest_first = sorted(self.letters, key=len, reverse=True)

    def __call__(self, said: str, alone: bool = False) -> str:
        groups = self._groups(said, alone)
        if groups:
            return unite(*groups)
        letters, label = _letters_at(said, self.texts, alone)
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
        if _DENIED.match(after):
            return []
        letters = self.letters[key]
        label = _LABEL.match(after)
        if label and label["letter"].upper() in self.texts:
            letter = label["letter"].upper()
            return [letter] if letter in letters else [letters, letter]
        if joint := _AND.match(after):
            added = after[joint.end() :]
            for other in self.longest_first:
                beyond = added[len(other) :]
                if added.startswith(other) and (_TEXT_END.match(beyond) or _AND.match(beyond)):
                    return [letters, self.letters[other]]
        if key in _JUDGEMENTS and _JUDGEMENT_END.match(after):
            return [] if _TORN.match(after) else [letters]
        return [letters] if (_FULL_END if alone else _TEXT_END).match(after) else []

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
        if alone and label and len(letters) == 1 and not re.match(r"because|since", label):
            # The line's text must begin as the option does, or hold it.
            said, expected = _normalised(label), _normalised(own).rstrip(" .")
            if said.split()[:1] != expected.split()[:1] and not (expected and expected in said):
                return ""
        return letters


def _normalised(text: str) -> str:
    """In small letters, without markup, quotes, brackets and articles at the start."""
    plain = " ".join(re.sub(r"[*`$_]+", "", text).casefold().split())
    plain = plain[_START.match(plain).end() :]  # type: ignore[union-attr]
    likely = _LIKELY.match(plain)
    return plain[likely.end() :] if likely else plain
