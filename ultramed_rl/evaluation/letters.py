"""The letter of the option that an answer settles on, and none where that is unclear.

Medicine is full of letters that are no answer: vitamin C, hepatitis B, E. coli, B cells. A letter counts
where an answer is stated (see `statements`), and only with a mark, the end, or a word of reasoning after it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial

from ultramed_rl.evaluation.settling import decide

# I would be the pronoun.
_USUAL = "ABCDEFGH"
# "So, the answer is X." is how a prompt asks for it.
_PLACEHOLDERS = "XYZ"
_PREFIX = re.compile(
    r"(?:(?:most likely|likely|probably|clearly|therefore|thus|indeed|definitely|actually|simply|the|a combination of"
    r"|correct|best|options?|choices?|letter|answers?|statements?|both|either|选项|option:)\b[\s:\"'(\[<-]*){0,4}",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?P<letter>[A-Za-z])(?P<close>[)\]}\"'>]*)")
_REASON = r"because|since|as|given|due|for|which|based|rather|instead|over|not"
_BARE_END = re.compile(
    rf"\s*$|[.:](?!\w)|\.(?=[A-Z][a-z]{{2}})|:|[,;!|\n]| ?- | ?[(\[]| ?/ ?[A-Z]\b|选项|项"
    rf"| (?:{_REASON}|and|or|but|in|it|this|the|so|&)\b| is (?:the )?(?:correct|right|best|most)\b| &"
)
_SMALL_END = re.compile(r"\s*$|[.:,;](?!\w)| (?:because|since)\b")
_PRONOUN_END = re.compile(r"\s*$|[.:](?!\w)")
_WHOLE_END = re.compile(r"[.!,;:]*\s*$|[.):]? ?(?:\(|- )|[.:] ")
_ANOTHER = re.compile(
    r"(?:\s?\([^()\n]{1,80}\)|[.):]? (?!and\b|or\b)[^.,;\n]{1,80}?(?= (?:and|or) [A-Z][.)] ))?"
    r"[)\]\"'.]*\s?(?:,|/|&|;|\bor\b|\band\b|\bplus\b)\s?(?:(?:or|and|both) )?(?:(?:option|choice|answer) )?"
    r"[(\[\"']*(?P<letter>[A-Z])(?=[)\].,;:\"']|\s*$| (?:and|or|are|as|because|since|both|seem|fit)\b| ?[/&])",
    re.IGNORECASE,
)
_DENIED = re.compile(r"(?:\s?\([^()\n]{1,80}\))?,?(?: which)? (?:is|are|was|were)(?:n't| not| wrong| incorrect| false)\b")
_SPECIES = re.compile(r"[.] ?(?P<name>[a-z][\w-]*)")
_EPITHET = re.compile(
    r"[.] ?(?:coli|diff|difficile|albicans|trachomatis|botulinum|perfringens|tetani|burnetii|faecalis|faecium"
    r"|histolytica|granulosus|henselae|burgdorferi|pertussis|anthracis|cereus|fragilis|abortus|neoformans|jejuni"
    r"|diphtheriae|fumigatus|baumannii|lumbricoides|israelii|latum|cloacae|tularensis|lamblia|vaginalis|pylori"
    r"|influenzae|ducreyi|capsulatum|gondii)\b",
    re.IGNORECASE,
)
_SMALL_WORDS = {"yes", "no", "maybe", "true", "false", "the", "it", "this", "because", "since", "in", "as", "a", "an"}


def read_letter(answer: str, options: Mapping[str, str] | None = None) -> str | None:
    """The letter that an answer gives, or None for none and for contradictions.

    Args:
        options: the question's own, by letter, where they are known; others are then no answer.
    """
    known = options or dict.fromkeys(_USUAL, "")
    found = decide(answer, partial(_resolve, options=known))
    return found if len(found) == 1 and found in known else None


def letters_at(said: str, options: Mapping[str, str], whole: bool = False) -> tuple[str, str]:
    """The letters that `said` starts with, and what follows the first: its option's text, or a reason.

    ("", "") where a word starts, or a letter that means something else. See `Resolve` for `whole`.
    """
    said = said.lstrip(" \n:\"'([{<-=#>.|")
    head = said[_PREFIX.match(said).end() :]  # type: ignore[union-attr]
    match = _LETTER.match(head)
    rest = head[match.end() :] if match else ""
    if match is None or not _ends(match, rest, options, whole) or _DENIED.match(rest):
        return "", ""
    letter = match["letter"].upper()
    another = _ANOTHER.match(head, match.end("letter"))
    more = another["letter"] if another and another["letter"].isupper() else ""
    return "".join(dict.fromkeys(letter + more)), rest.lstrip(" .:)-,")


def _ends(match: re.Match[str], rest: str, options: Collection[str], whole: bool) -> bool:
    """Whether the letter ends there, as an answer's does."""
    return True
