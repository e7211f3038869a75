"""The letter of the option that an answer settles on, and none where that is unclear.

Medicine is full of letters that are no answer: vitamin C, hepatitis B, E. coli, B cells. A letter counts
where an answer is stated (see `settling`), and only with a mark, the end, or a word of reasoning after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ultramed_rl.evaluation.reading.settling import REJECTED, decide, unite

# I would be the pronoun.
_USUAL = "ABCDEFGH"
# "So, the answer is X." is how a prompt asks for it.
_PLACEHOLDERS = "XYZ"
_PREFIX = re.compile(
    r"(?:(?:most likely|likely|probably|clearly|obviously|certainly|therefore|thus|indeed|definitely|actually"
    r"|simply|the|correct|best|single|options?|choices?|letter|answers?|statements?"
    r"|both|either)\b[\s:\"'(\[<-]*"
    r"|选项 ?){0,4}",
    re.IGNORECASE,
)
_OPENING = " \n:\"'([{<-=#>.|"
_LETTER = re.compile(r"(?P<letter>[A-Za-z])(?P<close>[)\]}\"'>]*)")
_END = re.compile(
    r"\s*$| ?[.:](?!\w)|[.:](?=[A-Z][a-z]{2})|[,;!|\n]| ?- | ?[(\[]| ?/ ?[A-Z]\b|选项|项| &"
    r"| (?:because|since|as|given|due|for this|which|based|rather|instead|over|not|and|or|but|in this|it"
    r"|this|the|so|here|remains|fits|matches|is left)\b"
    r"| is (?:the )?(?:correct|right|best|most)\b"
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
    r"|jejuni|diphtheriae|fumigatus|baumannii|lumbricoides|israelii|latum"
    r"|cloacae|tularensis|lamblia|vaginalis"
    r"|pylori|influenzae|ducreyi|capsulatum|gondii)\b"
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


def read_letter(answer: str, options: Mapping[str, str] | None = None) -> str | None:
    """The letter that an answer gives, or None for none and for contradictions.

    Args:
        options: the question's own, by letter, where they are known; others are then no answer.
    """
    known = options or dict.fromkeys(_USUAL, "")

    def resolve(said: str, alone: bool = False) -> str:
        return letters_at(said, known, alone)[0]

    letters = decide(answer, resolve)
    return letters if len(letters) == 1 and letters in known else None


def letters_at(said: str, options: Mapping[str, str], alone: bool = False) -> tuple[str, str]:
    """The letters that `said` starts with, and what follows the first: its option's text, or a reason.

    ("", "") where a word starts, or a letter that means something else. See `Resolve` for `alone`.
    """
    said = said.lstrip(_OPENING)
    prefix = _PREFIX.match(said)
    match = _LETTER.match(said, prefix.end() if prefix else 0)
    if match is None:
        return "", ""
    letter, after = match["letter"].upper(), said[match.end() :]
    own = options.get(letter, "")
    if not _is_answer(match, after, own, letter in options):
        return "", ""
    another = _another(said, match.end("letter"), options, alone)
    label = _MARKS.sub("", after, count=1)
    if alone and not another and not _stands_alone(match, after, label, own):
        return "", ""
    return unite(letter, another), label


def _another(said: str, end: int, options: Mapping[str, str], alone: bool) -> str:
    """A second letter that stands beside the first, or labels a second option after the first one's text."""
    beside = _ANOTHER.match(said, end)
    if beside and (not alone or _ONLY_LETTERS.fullmatch(said, beside.end())):
        return beside["letter"]
    labelled = _LABELLED.match(said, end)
    return labelled["letter"] if labelled and labelled["letter"] in options else ""


def _is_answer(match: re.Match[str], after: str, own: str, known: bool) -> bool:
    """Whether the letter ends as an answer's does, and is no pronoun, genus or placeholder."""
    letter, closed = match["letter"], match["close"].strip("'")
    if not known and letter.upper() in _PLACEHOLDERS + "I":
        return False
    labelled = bool(own) and _starts(_MARKS.sub("", after, count=1), own)
    if re.match(r"[A-Za-z0-9_]", after) or _is_species(after, own) or (is_denied(after) and not labelled):
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


def is_denied(after: str) -> bool:
    """Whether what follows an option says at once that it is wrong."""
    return _DENIED.match(after) is not None


def _starts(text: str, own: str) -> bool:
    return text.casefold().startswith(own.strip(" .").casefold())


def _is_species(after: str, own: str) -> bool:
    """Whether a name such as "E. coli" follows, and not the option's own text in small letters."""
    match = _SPECIES.match(after)
    if own and _starts(after.lstrip(" ."), own.split()[0]):
        return False
    return _EPITHET.match(after) is not None or (
        match is not None and not _COMMON_WORD.fullmatch(match["name"])
    )
