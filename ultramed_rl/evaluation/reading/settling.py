"""Which statement of a text counts as its answer.

The places where a text states its answer are a box, "the answer is ...", "I would choose ...", and so on. A clause that
asks states nothing, nor does one that doubts ("if the answer is", "the wrong answer is", "some would choose").
What stands there, a letter or an option's text, is for `Resolve` to say.

Boxes and sentences decide where there are any, the last one first, as people correct themselves. Without
them a line, a bold label or the closing sentence decides, if all of its kind agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from string import ascii_uppercase
from typing import Protocol

from ultramed_rl.evaluation.reading.text import BOXED, clean, turns

LONGEST = 600  # enough for the text of an option, and it bounds the work on a text that is all statements
_MODAL = (
    r"(?:(?:is|was|are|remains)\b|(?P<not>(?:is|was)n't|(?:cannot|can't|can not|could not|couldn't) be)\b"
    r"|(?:(?P<would>would)|should|must|will|has to)(?: most likely| therefore)? be\b"
    r"|(?:appears|seems) to be\b)"
)
_NOUN = re.compile(
    r"(?<![A-Za-z])(?:(?P<answer>answers?|ans)|option|choice|selection|guess)"
    r"(?:[ _](?:choice|option|letter|idx|index|key|selection))?"
    r"(?: (?:to|for|of|among) [^.\n:?!]{1,80}?|,? (?:here|therefore|thus|then),?)?(?:\s?\([^()\n]{1,40}\))?"
    rf"(?:[\"']?\s?(?:[:=]|->)| {_MODAL}| - |(?=\s?\([A-Z]\))|(?<=final answer)(?= [A-Z]\b))"
    r"[\s:\"']*(?:(?:most likely|likely|probably|clearly|obviously|definitely|certainly|indeed) )?"
    r"(?P<negated>not\b(?! only))?",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^[ #>-]*(?:(?:the|my|final|correct|best|right) )*answer[ .]*\n", re.I | re.MULTILINE)
_CHOOSE = re.compile(
    r"(?:\b(?:I|we|We|[Ll]et me|[Ll]et's)(?:'d|'ll|'m| would| will| must| should| have to| am)?(?: also"
    r"| therefore| still| then)? |^|(?<=[.!?] )|\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),? )(?i:choose"
    r"|chose|choosing|picke?d?|picking|select(?:ed)?|go(?:ing)? with|opt for|settle on)\b:?",
    re.MULTILINE,
)
_MARK = r"(?:(?i:option|choice|answer) )?[(\[\"]*"
_CONCLUDED = re.compile(
    r"\b(?i:so|thus|hence|therefore|leaving|leaves|left with|elimination|must be|it's|it is)\b"
    r"[,:]? (?i:(?:only|us with|me with|just|it's|it is|it must be) )?"
    rf"(?=(?:{_MARK}[A-Z][)\]\"]*|(?i:yes|no|maybe))[.!]?(?:\n|\s?$))"
)
_INSTEAD = re.compile(rf"\b[Nn]ot {_MARK}[A-Z][)\]\"]*,? (?:but|it's|it is)(?: rather)? (?={_MARK}[A-Z]\b)")
_REMAINS = re.compile(
    r"\b[Oo]nly (?=(?:[Oo]ption |[Cc]hoice )?\(?[A-Z]\)? (?:remains|fits|is left|matches)\b)"
)
_MAKING = re.compile(
    rf"\b(?:making|leaving|makes) (?={_MARK}[A-Z]\b[^.\n]{{0,80}}? (?:as )?the (?:only|correct|best|right)\b)"
)
_CHINESE = re.compile(
    r"(?:答案 ?(?:应该|应当|应)?(?:是|为|选|:)|(?:应该|应|故)?选(?:择|项)?(?:是|为|:)?) ?(?P<negated>不是)?"
)
_PHRASES = (_NOUN, _HEADING, _CHOOSE, _CONCLUDED, _INSTEAD, _REMAINS, _MAKING, _CHINESE)
# What these say stands against a doubt ("not A but C"); they give letters only.
_SURE = (_INSTEAD, _REMAINS, _MAKING)
_BOX = re.compile(rf"{BOXED.pattern}|(?i:<(?:final_?)?answer>([^<]{{1,{LONGEST}}})</(?:final_?)?answer>)")
_DOUBT = re.compile(
    r"\b(?:if|whether|unless|not|never|cannot|neither|nor|wrong|incorrect|false|untrue|worst|least|another"
    r"|other|next|second|alternative|tempting|might|may|could|(?:a|one) (?:possible|potential)|initial(?:ly)?"
    r"|thought|suppose|let's say|assume|assuming|imagine|some|many|students?|people|distractor|previous"
    r"|eliminated|excluded)\b|n't\b|不",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"\b(?:if|unless)\b|^(?:had|were)\b|(?:^|[.!?\n] ?)(?:for|in) (?!this|the|our|my|that|summary|conclusion|short"
    r"|light|view|fact|your)[^.!?\n,]{1,60},[^,]{0,20}$",
    re.IGNORECASE,
)
_ARGUMENT = re.compile(r"[.!?](?= )|\n|\b(?:but|so|hence|therefore|thus|however|then)\b", re.IGNORECASE)
# "Answer: A. yes", and B. no on the next line
_LISTED = re.compile(r"\(?A[).:][^\n]*\n[ *-]*\(?B[).:]")
# "An option is aspirin" recommends; "the best option is aspirin" answers.
_DECIDED = re.compile(r"\b(?:correct|right|best|final|selected|chosen|my|most \w+) $", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"[^.,!?\n]{1,80}(?:[.,!?\s-]+(?:wait|hmm|oops|sorry|scratch that|i mean|actually,? no|no,? wait)"
    r"|[.!?]\s+(?-i:No)[,!]|, no,)(?!\w)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.!?\n;,:，]|\b(?:but|so|hence|therefore|thus|however|and|then)\b", re.IGNORECASE)
_ASKED = re.compile(r"[^.!\n]{0,60}\?")
_VERDICT = re.compile(
    r" (?:is|are|was|were)(?P<negated>n't| not)?(?: (?:therefore|thus|clearly|indeed|definitely))?(?: both)?"
    r"(?: the| my)?(?: (?:single|only|final|overall))*"
    r" (?:correct|right|best|answer|most (?:likely|appropriate|accurate|suitable))"
    r"(?P<noun> (?:possible )?(?:answer|choice|option))?(?: one| statement| diagnosis| fit)?"
    r"(?=\s?(?:[.,;!)\]:]|-|$|\n|(?:because|since|as|given|here|based|in this|and|due|to the question)\b))"
)
_SENTENCE = re.compile(
    r"\n|(?<=[\w)\"'%][\w)\"'%])[.!?;:] "
    r"|\b(?:so|thus|hence|therefore|that|because|since|only|then|why|conclude|believe|think)\b[,:]? ",
    re.IGNORECASE,
)
_JOINT = re.compile(r"(?<![A-Z)])(?:, (?:(?:and|but|while|whereas|so) )?| (?:and|but|while|whereas) )")
_STARTS_WITH_LETTER = re.compile(
    r"[\s\"'(\[]*(?i:the )?(?i:both |either )?(?i:(?:correct )?(?:option|choice|answer|statement)s? )?"
    r"(?i:both )?[(\[]*[A-Za-z](?![\w'+-])"
)
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
REJECTED = re.compile(
    r"[^.\n]{0,60}\b(?:not|never|wrong|incorrect|false|unlikely|less|contraindicated|inappropriate|excluded"
    r"|eliminated|avoid|ruled out)\b|[^.\n]{0,60}n't\b",
    re.IGNORECASE,
)
_UNSETTLED = re.compile(
    r"\b(?:not|never|no|wrong|incorrect|false|exclude[sd]?|rul(?:e|es|ed|ing) out|eliminat\w+|unlikely|less"
    r"|unlike|contraindicated|except|avoid\w*|without|neither|nor|rather|instead|consider\w*|first|next|let"
    r"|whether|if|could|may|might|compar\w+|versus|vs|but|although|however|while|whereas|inappropriate"
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


@dataclass(frozen=True)
class Statement:
    """What is said to be the answer, or not to be it, and where that stands."""

    start: int
    said: str
    negated: bool = False
    verdict: bool = False  # "C is correct", which judges one option of perhaps several
    conditional: bool = False  # "in a man, the answer is A", which doesn't replace an earlier one


class Resolve(Protocol):
    def __call__(self, said: str, alone: bool = False) -> str:
        """The letters of the options that `said` starts with, each once; "" for none of them.

        A letter that no option has is a finding as well: "the answer is F" isn't answered by what was said
        before. With `alone`, the answer must fill all of `said`; else other words may follow.
        """


def decide(text: str, resolve: Resolve, truncated: bool = False) -> str:
    """The letters that the statement which counts names: one, several that contradict each other, or "".

    Args:
        truncated: whether the text was cut off; a line within a discussion then decides nothing.
    """
    remembered: Resolve = cache(resolve)  # a looping text says the same thousands of times
    for turn in turns(clean(text)):
        letters = _settled(_MARKUP.sub("", turn), remembered, truncated)
        letters = letters or _agreed(turn, remembered, truncated)
        if letters:
            return letters
    return ""


def unite(*letters: str) -> str:
    """Letters, each once."""
    return "".join(dict.fromkeys("".join(letters)))


# -- boxes and sentences -----------------------------------------------------------------------------------


def _settled(text: str, resolve: Resolve, truncated: bool) -> str:
    """The letters of the last statement that isn't taken back."""
    current, verdict_end, seen = "", -1, [""]
    for statement in sorted([*_boxes(text), *_phrases(text), *_verdicts(text)], key=lambda s: s.start):
        letters = resolve(statement.said, alone=statement.verdict)
        if not letters:
            continue
        if statement.negated:
            current = "" if current and current in letters else current
            continue
        joins = statement.verdict and verdict_end >= 0 and current
        if statement.conditional or (joins and not _CORRECTION.search(text, verdict_end, statement.start)):
            letters = unite(current, letters)
        current, verdict_end = letters, statement.start + len(statement.said) if statement.verdict else -1
        if seen[-1] != current:
            seen.append(current)
    # An answer that goes to and fro until it is cut off has no last word.
    return unite(*seen) if truncated and len(seen) > 4 else current


def _boxes(text: str) -> Iterator[Statement]:
    for match in _BOX.finditer(text):
        negated = text[max(0, match.start() - 4) : match.start()].lower() == "not "
        yield Statement(match.start(), (match[1] or match[2] or "")[:LONGEST], negated)


def _phrases(text: str) -> Iterator[Statement]:
    """Statements that follow a phrase; one that is taken back at once is followed by its negation."""
    for phrase in _PHRASES:
        for match in phrase.finditer(text):
            start, groups = match.start(), match.groupdict()
            after = text[match.end() : match.end() + LONGEST].lstrip()
            if _ASKED.match(after) or _LISTED.match(after):
                continue
            if phrase not in _SURE and _is_doubted(text, start):
                continue
            # "An option is" is too weak to make a text the answer.
            weak = (
                phrase is _NOUN
                and not groups["answer"]
                and not _DECIDED.search(text, max(0, start - 30), start)
            )
            if (weak or phrase in _SURE) and not _STARTS_WITH_LETTER.match(after):
                continue
            conditional = _is_conditional(text, start)
            if conditional and groups.get("would"):
                continue
            said = after.partition("\n")[0]
            negated = bool(groups.get("negated") or groups.get("not"))
            yield Statement(match.end(), said, negated, conditional=conditional)
            if _TAKEN_BACK.match(after):
                yield Statement(match.end() + 1, said, negated=True)


def _verdicts(text: str) -> Iterator[Statement]:
    """Statements that stand before "is correct"."""
    for match in _VERDICT.finditer(text):
        before = text[max(0, match.start() - LONGEST // 2) : match.start()]
        sentence = _after_last(_SENTENCE, before)
        clause = _after_last(_JOINT, sentence)
        subject = clause if _STARTS_WITH_LETTER.match(clause) else sentence
        start = match.start() - len(subject)
        if (match["noun"] or _STARTS_WITH_LETTER.match(subject)) and not _is_doubted(text, start):
            conditional = _is_conditional(text, start)
            yield Statement(start, subject, bool(match["negated"]), verdict=True, conditional=conditional)


def _after_last(mark: re.Pattern[str], text: str) -> str:
    return text[max((match.end() for match in mark.finditer(text)), default=0) :]


def _is_doubted(text: str, start: int) -> bool:
    return _DOUBT.search(_CLAUSE.split(text[max(0, start - 80) : start])[-1]) is not None


def _is_conditional(text: str, start: int) -> bool:
    """Whether the sentence up to there sets another case: "if she had fever, the answer is ..."."""
    sentence = _after_last(_ARGUMENT, text[max(0, start - 120) : start])
    return _CONDITION.search(sentence.lstrip()) is not None


# -- weaker forms ------------------------------------------------------------------------------------------


def _agreed(text: str, resolve: Resolve, truncated: bool) -> str:
    """The letters of the first of the weaker forms that occurs."""
    lines = _without_options(text.splitlines())
    if truncated:
        first = lines[0] if lines and _LETTER_LINE.fullmatch(lines[0]) else ""
        return resolve(_MARKUP.sub("", first), alone=True)
    for form in (_bare_lines, _full_lines, _bold_labels, _closing_sentence):
        letters = list(form(lines, resolve))
        # A line amid others is part of what they discuss.
        if any(letters) and (form is not _full_lines or letters[0] or letters[-1]):
            return unite(*letters)
    return ""


def _without_options(lines: Iterable[str]) -> list[str]:
    """The lines without lists A., B., ...: an echo or a discussion of the options gives no answer."""
    kept: list[str] = []
    run: list[str] = []
    for line in [*lines, None]:
        match = _OPTION_LINE.fullmatch(line) if line is not None else None
        if not (match and match[1] == ascii_uppercase[len(run) % 26]):
            kept.extend(run if len(run) < 2 else [""])
            run = []
        if match and match[1] == ascii_uppercase[len(run) % 26]:
            run.append(match[0])
        elif line is not None:
            kept.append(line)
    return kept


def _bare_lines(lines: list[str], resolve: Resolve) -> Iterator[str]:
    """Lines of a letter and nothing else."""
    for line in lines:
        if _LETTER_LINE.fullmatch(line):
            yield resolve(_MARKUP.sub("", line), alone=True)


def _full_lines(lines: list[str], resolve: Resolve) -> Iterator[str]:
    """Lines that an answer fills; "" for points of a list, and for all in an outline (I., II.)."""
    outline = _ROMAN.search("\n".join(lines))
    before = ""
    for line in lines:
        point = before.endswith(":") or (_BULLET.match(line) and not _OPTION_LINE.fullmatch(line))
        skipped = point or outline or len(line) > LONGEST
        yield "" if skipped else resolve(_MARKUP.sub("", line), alone=True)
        before = line.rstrip("* ")


def _bold_labels(lines: list[str], resolve: Resolve) -> Iterator[str]:
    """Letters in bold, alone or with their option's text."""
    for line in lines:
        for match in _BOLD.finditer(line):
            before = line[max(0, match.start() - 30) : match.start()]
            if not _KIND.search(before) and not REJECTED.match(line, match.end()):
                letters = resolve(match["said"], alone=True)
                # "**E. coli**" may be an option's text, but isn't stated as the answer.
                yield letters if letters[:1] in match["said"] else ""


def _closing_sentence(lines: list[str], resolve: Resolve) -> Iterator[str]:
    """The options that the last sentence mentions, if it concludes and neither excludes nor weighs any."""
    last = _MARKUP.sub("", lines[-1] if lines else "")[-LONGEST:]
    sentence = _SENTENCE_END.split(last)[-1]
    if _UNSETTLED.search(sentence) or not _CONCLUDES.search(sentence):
        return
    for match in _MENTION.finditer(sentence):
        if not _KIND.search(sentence[: match.start()]):
            yield resolve(match[0], alone=True)
