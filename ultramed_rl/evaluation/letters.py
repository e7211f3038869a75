"""The letter of the option that an answer settles on, and none where that is unclear.

From the most to the least explicit: a box, a sentence ("the answer is C"), a letter alone on its line, bold,
"C. text" at a line's start, "(C)" or "option C". The first of these forms that occurs decides. Of sentences
and boxes the last counts; of the other forms all must agree. Medicine is full of letters that are no answer:
vitamin C, hepatitis B, E. coli.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from string import ascii_uppercase

from ultramed_rl.evaluation.numbers import BOXED

# I would be the pronoun.
_USUAL = "ABCDEFGH"
_OPEN = r"[\s:*_\"'“‘(\[{$-]*"
_LETTER = r"(?P<letter>[A-Z]|[a-z](?=\)|\]|[.*\"'”]*\s*(?:\n|$)))(?![\w'’+-])(?!\.\w)"
_SENTENCE = re.compile(
    r"\b(?:(?i:answer|option|choice)(?:\s+(?i:choice|option|letter))?\s*"
    r"(?i:\s(?:is|would\s+be|should\s+be|must\s+be|was)\b|[:=–—-])"
    r"|(?i:choose|chose|pick|picked|select|go\s+with|going\s+with)\b)"
    rf"{_OPEN}(?P<negated>(?i:not)\s+)?(?:(?i:option|choice|letter|answer)\b{_OPEN})?{_LETTER}"
)
_VERDICT = re.compile(
    r"(?:^|[.!?:]\s+|\b(?i:option|choice|answer|letter)\s+|\()\**(?P<letter>[A-Z])[)*]*\s+is\s+"
    r"(?P<negated>not\s+)?(?:the\s+)?(?:(?:most|single|only)\s+)?(?:correct|right|best|answer)\b",
    re.MULTILINE,
)
_ALONE = re.compile(r"^[^\w\n]*(?P<letter>[A-Za-z])[^\w\n]*$", re.MULTILINE)
_BOLD = re.compile(r"\*\*[\s(\[]*(?P<letter>[A-Z])(?:\s*[.):\]][^*\n]*)?\*\*")
_LINE = re.compile(r"^[\s>*_-]*(?P<letter>[A-Z])\s*[.):]\s+(?=\S)", re.MULTILINE)
_MENTION = re.compile(r"\((?P<letter>[A-Z])\)|\b(?i:option|choice)\s+(?P<named>[A-Z])(?![\w'’+-])")
_ANOTHER = re.compile(
    r"[)\]*\"'.]*\s*(?:,|/|&|\bor\b|\band\b)\s*(?:(?:or|and)\s+)?(?:(?i:option|choice)\s+)?"
    r"[(\[\"'*]*([A-Z])(?![\w'’+-])"
)
_SPECIES = re.compile(r"\.\s+([a-z][\w-]*)")
_OPTION_LINE = re.compile(r"[\s*-]*\(?([A-Z])\s*[.):]\s*\S.*")


def read_letter(answer: str, options: Mapping[str, str] | None = None) -> str | None:
    """The letter that an answer gives, or None for none and for contradictions.

    Args:
        options: the question's own, by letter, where they are known; others are then no answer.
    """
    text = _without_options(answer.rpartition("</think>")[2])
    known = options or {}
    for form in (_boxed, _stated, _agreed(_ALONE), _agreed(_BOLD), _agreed(_LINE), _agreed(_MENTION)):
        found = form(text, known)
        if found:
            return found if len(found) == 1 else None
    return None


def _boxed(text: str, options: Mapping[str, str]) -> str:
    """The letters in the last box that holds any."""
    for content in reversed(BOXED.findall(text)):
        plain = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\b|[{}]", "", content).strip()
        match = re.fullmatch(r"[(\s]*([A-Za-z])(?:[).:]\s*.*|\s*)", plain)
        if match and _allowed(match[1].upper(), options):
            return match[1].upper()
        several = re.findall(r"(?<!\w)[A-Z](?!\w)", plain)
        if len(set(several)) > 1:
            return "".join(several)
    return ""


def _stated(text: str, options: Mapping[str, str]) -> str:
    """The letter of the last sentence that gives one and isn't taken back; several where it names several."""
    matches = [*_SENTENCE.finditer(text), *_VERDICT.finditer(text)]
    current = ""
    for match in sorted(matches, key=lambda m: m.start("letter")):
        letter = match["letter"].upper()
        if not _allowed(letter, options) or _is_species(text, match.end("letter"), letter, options):
            continue
        if match["negated"]:
            current = "" if current == letter else current
            continue
        other = _ANOTHER.match(text, match.end("letter"))
        several = other is not None and other[1] != letter and _allowed(other[1], options)
        current = letter + other[1] if other and several else letter
    return current


def _agreed(form: re.Pattern[str]) -> Callable[[str, Mapping[str, str]], str]:
    """A reader of all the letters, each once, that occur in a form."""

    def read(text: str, options: Mapping[str, str]) -> str:
        found: dict[str, None] = {}
        for match in form.finditer(text):
            group = "letter" if match["letter"] else "named"
            letter = match[group].upper()
            if _allowed(letter, options) and not _is_species(text, match.end(group), letter, options):
                found[letter] = None
        return "".join(found)

    return read


def _allowed(letter: str, options: Mapping[str, str]) -> bool:
    return letter in (options or _USUAL)


def _is_species(text: str, end: int, letter: str, options: Mapping[str, str]) -> bool:
    """Whether a name such as "E. coli" follows, and not the option's own text in small letters."""
    match = _SPECIES.match(text, end)
    if match is None or match[1] in ("yes", "no", "maybe", "true", "false"):
        return False
    return options.get(letter, "").casefold().split()[:1] != [match[1]]


def _without_options(text: str) -> str:
    """The text without lists of lines A., B., ...: an echo or a discussion of the options gives no answer."""
    kept: list[str] = []
    run: list[str] = []
    for line in text.splitlines():
        match = _OPTION_LINE.fullmatch(line)
        if match and match[1] == ascii_uppercase[len(run) % 26]:
            run.append(line)
        elif line.strip() or not run:
            kept.extend([*_unless_list(run), line])
            run = []
    return "\n".join([*kept, *_unless_list(run)])


def _unless_list(lines: list[str]) -> Iterable[str]:
    return lines if len(lines) < 2 else ()
