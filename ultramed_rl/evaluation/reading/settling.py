"""Which statement of a text counts.

Boxes and sentences decide where there are any, the last one first, as people correct themselves. Without
them a line, a bold label or the closing sentence decides, if all of its kind agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from string import ascii_uppercase
from typing import Protocol

from ultramed_rl.evaluation.reading.plain import clean, turns
from ultramed_rl.evaluation.reading.statements import LONGEST, statements

_MARKUP = re.compile(r"[*`$]+|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])")
_CORRECTION = re.compile(r"\b(?:wait|actually|no,|correction|reflection|reconsider\w*|mistake\w*|hmm)", re.I)
_OPTION_LINE = re.compile(r"[ *#>-]*(?:(?:Option|Choice) )?\(?([A-Z])[)*]* ?[.):]\)?[* ]*\S.*")
_BULLET = re.compile(r"(?:[-+•#>]|\d+[.)]) ?")
_ROMAN = re.compile(r"^\W?II[.):]", re.MULTILINE)
_LETTER_LINE = re.compile(r"[^\w\n]{0,9}[A-Za-z][^\w\n]{0,9}")
_BOLD = re.compile(
    rf"\*\*(?P<said>[\s(\[\"]*(?:(?i:option|choice|answer) )?[(\[]*[A-Z](?![\w'+-])"
    rf"[^*\n]{{0,{LONGEST}}})\*\*(?!\w)"
)
_MENTION = re.compile(r"\([A-Z]\)|\b(?i:option|choice) \(?[A-Z]\b(?!['+-])")
# "vitamin (C)", "type **A**"
_KIND = re.compile(
    r"\b(?:vitamin|hepatitis|type|group|class|grade|stage|factor|protein|influenza|phase|level|step|part"
    r"|patient|figure|table|case|pugh)s?\W{0,3}$",
    re.IGNORECASE,
)
_REJECTED = re.compile(
    r"[^.\n]{0,60}\b(?:not|wrong|incorrect|false|unlikely|less|contraindicated|inappropriate|excluded"
    r"|eliminated)\b",
    re.IGNORECASE,
)
_UNSETTLED = re.compile(
    r"\b(?:not|never|no|wrong|incorrect|false|exclude[sd]?|rul(?:e|es|ed|ing) out|eliminat\w+|unlikely|less"
    r"|unlike|contraindicated|except|avoid\w*|without|neither|nor|rather"
    r"|instead|consider\w*|first|next|let|whether"
    r"|if|could|may|might|compar\w+|versus|vs|but|although|however|while|whereas|inappropriate"
    r"|tempting)\b|n't|\?",
    re.IGNORECASE,
)


_CONCLUDES = re.compile(
    r"\b(?:so|thus|hence|therefore|accordingly|consistent|corresponds?|match(?:es)?|fits?|supports?|points?"
    r"|leads?|best|correct|right|most|likely|answer|choice|conclu\w+|choose|indicates?|suggests?|favou?rs?"
    r"|which is)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=\w[\w)])[.!?] (?=\S)")


class Resolve(Protocol):
    def __call__(self, said: str, whole: bool = False) -> str:
        """The letters of the options that `said` starts with, each once; "" for none of them.

        A letter that no option has is a finding as well: "the answer is F" isn't answered by what was said
        before. With `whole`, the answer must fill all of `said`; else other words may follow.
        """


def decide(text: str, resolve: Resolve, truncated: bool = False) -> str:
    """The letters that the statement which counts names: one, several that contradict each other, or "".

    Args:
        truncated: whether the text was cut off; a line within a discussion then decides nothing.
    """
    remembered: Resolve = cache(resolve)  # a looping text says the same thousands of times
    for turn in turns(clean(text)):
        found = _settled(_MARKUP.sub("", turn), remembered, truncated) or _agreed(turn, remembered, truncated)
        if found:
            return found
    return ""


def _settled(text: str, resolve: Resolve, truncated: bool) -> str:
    """The letters of the last statement that isn't taken back."""
    current, verdict_end, seen = "", -1, [""]
    for statement in statements(text):
        found = resolve(statement.said, whole=statement.verdict)
        if not found:
            continue
        if statement.negated:
            current = "" if current and current in found else current
            continue
        joins = statement.verdict and verdict_end >= 0 and current
        if statement.conditional or (joins and not _CORRECTION.search(text, verdict_end, statement.start)):
            found = _united(current, found)
        current, verdict_end = found, statement.start + len(statement.said) if statement.verdict else -1
        if seen[-1] != current:
            seen.append(current)
    # An answer that goes to and fro until it is cut off has no last word.
    return _united(*seen) if truncated and len(seen) > 4 else current


def _agreed(text: str, resolve: Resolve, truncated: bool) -> str:
    """The letters of the first of the weaker forms that occurs."""
    lines = _without_options(text.splitlines())
    if truncated:
        first = lines[0] if lines and _LETTER_LINE.fullmatch(lines[0]) else ""
        return resolve(_MARKUP.sub("", first), whole=True)
    for form in (_bare_lines, _full_lines, _bold_labels, _closing_sentence):
        found = list(form(lines, resolve))
        # A line amid others is part of what they discuss.
        if any(found) and (form is not _full_lines or found[0] or found[-1]):
            return _united(*found)
    return ""


def _bare_lines(lines: list[str], resolve: Resolve) -> Iterator[str]:
    """Lines of a letter and nothing else."""
    for line in lines:
        if _LETTER_LINE.fullmatch(line):
            yield resolve(_MARKUP.sub("", line), whole=True)


def _full_lines(lines: list[str], resolve: Resolve) -> Iterator[str]:
    """Lines that an answer fills; "" for points of a list, and for all in an outline (I., II.)."""
    outline = _ROMAN.search("\n".join(lines))
    before = ""
    for line in lines:
        point = before.endswith(":") or (_BULLET.match(line) and not _OPTION_LINE.fullmatch(line))
        skipped = point or outline or len(line) > LONGEST
        yield "" if skipped else resolve(_MARKUP.sub("", line), whole=True)
        before = line.rstrip("* ")


def _bold_labels(lines: list[str], resolve: Resolve) -> Iterator[str]:
    """Letters in bold, alone or with their option's text."""
    for line in lines:
        for match in _BOLD.finditer(line):
            before = line[max(0, match.start() - 30) : match.start()]
            if not _KIND.search(before) and not _REJECTED.match(line, match.end()):
                found = resolve(match["said"], whole=True)
                # "**E. coli**" may be an option's text, but isn't stated as the answer.
                yield found if found[:1] in match["said"] else ""


def _closing_sentence(lines: list[str], resolve: Resolve) -> Iterator[str]:
    """The options that the last sentence mentions, if it concludes and neither excludes nor weighs any."""
    last = _MARKUP.sub("", lines[-1] if lines else "")[-LONGEST:]
    sentence = _SENTENCE_END.split(last)[-1]
    if _UNSETTLED.search(sentence) or not _CONCLUDES.search(sentence):
        return
    for match in _MENTION.finditer(sentence):
        if not _KIND.search(sentence[: match.start()]):
            yield resolve(match[0], whole=True)


def _united(*letters: str) -> str:
    return "".join(dict.fromkeys("".join(letters)))


def _without_options(lines: Iterable[str]) -> list[str]:
    """The lines without lists A., B., ...: an echo or a discussion of the options gives no answer."""
    kept: list[str] = []
    run: list[str] = []
    for line in lines:
        match = _OPTION_LINE.fullmatch(line)
        if not (match and match[1] == ascii_uppercase[len(run) % 26]):
            kept.extend(run if len(run) < 2 else [""])
            run = []
        if match and match[1] == ascii_uppercase[len(run) % 26]:
            run.append(line)
        else:
            kept.append(line)
    return [*kept, *(run if len(run) < 2 else [""])]
