"""The places where a text states its answer, or what it isn't.

That is in a box, after a phrase ("the answer is ...", "I would choose ..."), before a verdict ("... is correct"), or as
the odd one out ("the false statement is ..."). A clause that asks states nothing, nor does one that doubts ("if the answer
is", "the wrong answer is", "some would choose"). What stands there, a letter or an option's text, is for `OptionNames` to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ultramed_rl.evaluation.reading.options import ADVERBS, LACKING
from ultramed_rl.evaluation.reading.text import BOXED

_BEFORE = 120  # characters in which a statement is doubted, or another case set
LONGEST = 600  # enough for the text of an option, and it bounds the work on a text that is all statements


def words(pattern: str) -> re.Pattern[str]:
    """Any of these as whole words, or a negation, in any case."""
    return re.compile(rf"\b(?:{pattern})\b|n't\b", re.IGNORECASE)


_MARK = r"(?:(?i:option|choice|answer|statement) )?[(\[\"]*"
DOUBT = (
    r"if|whether|unless|not|never|cannot|neither|nor|wrong|incorrect|false|untrue|worst|least|another|other|next|second"
    r"|alternative|tempting|might|may|could|(?:a|one) (?:possible|potential)|initial(?:ly)?|thought|(?<!I )suppose|let's say"
    r"|assume|assuming|imagine|some|many|students?|people|distractor|previous|eliminated|excluded|si|wenn|falls"
    r"|doubt\w*|hesitat\w+|reluctan\w+|torn|between|nobody|no (?:one|way|means)|hardly|few"
)
_DOUBT = words(DOUBT)
_CLAUSE = re.compile(r"[.!?\n;,:，]|\b(?:but|so|hence|therefore|thus|however|and|then)\b", re.IGNORECASE)
_ARGUMENT = re.compile(r"[.!?](?= )|\n|\b(?:but|so|hence|therefore|thus|however|then)\b", re.IGNORECASE)
_SENTENCE = re.compile(
    r"\n|(?<=[\w)\"'%][\w)\"'%])[.!?;:] "
    r"|\b(?:so|but|thus|hence|therefore|that|because|since|only|then|why|conclude|believe|think)\b[,:]? ",
    re.IGNORECASE,
)
_JOINT = re.compile(r"(?<![A-Z)])(?:, (?:(?:and|but|while|whereas|so) )?| (?:and|but|while|whereas) )")

_MODAL = (
    r"(?:(?P<not>(?:is|was)n't|(?:cannot|can't|can not|could not|couldn't)(?: only)? be)\b"
    rf"(?! {LACKING})|(?=(?:cannot|can't) be {LACKING})"
    r"|(?:is|was|are|remains|appears|seems|should|must|will|(?P<would>would)|(?:can|could) only|can be only"
    r"|(?:has|have|ought|needs|turns)(?= (?:to|got|out)\b))\b"
    rf"(?:[ ,]+(?:{ADVERBS}|(?:to|be|have|going|got|out|appear|seem)\b))*,?)"
)
_NEGATED = rf"(?P<negated>not\b(?! (?:only|{LACKING})))?"
_NOUN = re.compile(
    r"(?<![A-Za-z])(?:(?P<answer>answers?|ans)|option|choice|selection|guess|(?:right|correct|best) one|one(?= (?:that|which)\b))"
    r"(?:[ _](?:choice|option|letter|idx|index|key|selection))?"
    r"(?:(?:,| -)? (?:to|for|of|among|in|from|given|based|considering) [^.\n:?!]{1,80}?(?:,| -)?"
    r"|(?P<clause> (?:that|which) [^.\n:?!,]{1,60}?)|,? (?:here|therefore|thus|then),?)?(?:\s?\([^()\n]{1,40}\))?"
    rf"(?:[\"']?\s?(?:[:=]|->)| {_MODAL}| - |(?=\s?\([A-Z]\))|(?<=final answer)(?= [A-Z]\b))"
    rf"[\s:\"']*(?:{ADVERBS} )?{_NEGATED}",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^[ #>-]*(?:(?:the|my|final|correct|best|right) )*answer[ .]*\n", re.I | re.MULTILINE)
_CHOOSE = re.compile(
    r"(?:\b(?:I|we|We|[Ll]et me|[Ll]et's)(?:'d|'ll|'m| would| will| must| should| have to| am)?(?: also"
    r"| therefore| still| then)? |^|(?<=[.!?] )|\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),? )(?i:choose"
    r"|chose|choosing|picke?d?|picking|select(?:ed)?|go(?:ing)? with|opt for|settle on|lean(?:ing)? towards?|stand by"
    r"|(?<=d )(?:say|answer)|make (?:that|it)(?= \(?(?-i:[A-Z])\b)"
    r"|(?:chang|revis|switch|amend|updat|correct)\w*(?: [\w']+){0,4}? to(?= (?:option )?\(?(?-i:[A-Z])\b))\b:?",
    re.MULTILINE,
)
# Of these, the answer fills the rest of the line.
_CONCLUDED = re.compile(
    r"(?i)\b(?:(?:so|thus|hence|therefore|leaving|leaves|left with|elimination|(?:must|should|has to|(?:can|could) only) be|it's|it is"
    r"|correction|(?:in )?(?:conclusion|summary|short)|verdict|decision|no(?=,))\b"
    r"[,:]? (?:(?:only|us with|me with|just|it's|it is|it must be) )?"
    r"|(?:not|n't) (?!only|just|merely)[^.,;:?\n]{1,60},? but (?:rather )?(?!also))(?=\S)"
)
# What these say stands against a doubt: "not A but C", "only C remains", "making C the only choice".
_SURE = re.compile(
    rf"(?:\b[Nn](?:ot|or)|n't|\bpas|\bnicht|\bno es) {_MARK}[A-Z][)\]\"]*,? (?:(?:but|it's|it is|mais|sondern|sino)(?: rather)? (?={_MARK}[A-Z]\b)"
    rf"|(?<=, )(?={_MARK}[A-Z][)\]\"]*[.!]?(?:\n|$)))"
    r"|(?<![Nn]ot )\b[Oo]nly (?=(?:[Oo]ption |[Cc]hoice )?\(?[A-Z]\)? (?:remains|fits|is (?:left|consistent|correct|right)|matches"
    r"|explains|accounts for|satisfies|meets|applies)\b)"
    rf"|\b(?:making|leaving|makes) (?={_MARK}[A-Z]\b[^.\n]{{0,80}}? (?:as )?the (?:only|correct|best|right)\b)"
)
# Of a question for the exception; in any other, several are wrong, and "the wrong answer is B" is no answer.
_ODD_NOUN = (
    r"(?:(?:only )?exception|odd (?:one|man) out|(?:only )?(?:false|incorrect|wrong|untrue|inaccurate) (?:statements?|one)"
    r"|statements? (?:that|which)(?: is|'s| are| was) (?:false|incorrect|wrong|untrue)"
    r"|(?:statements?|one|option|choice) (?:that|which) (?:is|are|was|do|does)(?: not|n't) [^.,:?\n]{1,40}?)"
)
_ODD = re.compile(
    rf"(?:(?:\bthe |^|(?<=[.!?] )){_ODD_NOUN}(?: here| (?:among|about|of|in|regarding) [^.\n:?!]{{1,60}}?)?(?:\s?:| {_MODAL})"
    rf"|\b(?:all|each|every|both)\b[^.\n?]{{0,60}}? except(?: for)?:?|\b(?:all|every(?:thing|one)?|none|nothing) but)[\s:\"']*{_NEGATED}",
    re.IGNORECASE,
)
_REST = re.compile(r" (?:is|are|was|were|can|could|has|have|do|does)\b")  # "all except A are correct"
# Chinese, Spanish, German, French.
_FOREIGN = re.compile(
    r"(?:答案 ?(?:应该|应当|应)?(?:是|为|选|:)|(?:应该|应|故)?选(?:择|项)?(?:是|为|:)?|而是|\b(?:respuesta(?: correcta| final)?|antwort|réponse(?: correcte| finale)?)"
    r"(?: ?:| (?P<not>no es\b|n'est pas\b)| (?:es|sería|ist|lautet|wäre|est|serait)\b:?))\s*(?P<negated>nicht\b|不是)?(?!kein|nie)(?:\w{4,} (?=\(?(?-i:[A-Z])\b))?",
    re.IGNORECASE,
)
_PHRASES = (_NOUN, _HEADING, _CHOOSE, _CONCLUDED, _SURE, _ODD, _FOREIGN)
_LETTER_FIRST = re.compile(
    r"[\s\"'(\[]*(?i:the )?(?i:both |either )?(?i:(?:correct )?(?:option|choice|answer|statement)s? )?"
    r"(?i:both )?(?:(?:la|die|l'|el)\b ?)?(?:(?:opción|option|lettre|letra)\b )?[(\[]*[A-Za-z](?![\w'+-])"
)
# "An option is aspirin" recommends; "the best option is aspirin" answers.
_DECIDED = re.compile(r"\b(?:correct|right|best|final|selected|chosen|my|most \w+) $", re.IGNORECASE)
_CONDITION = re.compile(
    r"\b(?:if|unless)\b|^(?:had|were)\b|(?:^|[.!?\n] ?)(?:for|in) (?!this|the|our|my|that|summary|conclusion|short"
    r"|light|view|fact|your)[^.!?\n,]{1,60},[^,]{0,20}$",
    re.IGNORECASE,
)
_LISTED = re.compile(r"\(?A[).:][^\n]*\n[ *-]*\(?B[).:]")  # "Answer: A. yes", and B. no on the next line
_ASKED = re.compile(r"[^.!\n]{1,60}\?")
# "No, timing didn't matter" is an argument.
_TAKEN_BACK = re.compile(
    r"[^.,!?\n]{1,80}(?:[.,!?\s-]+(?:(?:wait|hmm+|oops|sorry)(?=\s*[^\s\w]|\s*$| (?:no|that|this|it|the|i|not)\b)"
    r"|(?:scratch that|i (?:retract|withdraw)(?= (?:that|it)\b)|hold on|correction|my mistake)(?!\w))|, no,"
    r"|[.!?]\s+(?:(?:no|actually|but|oh)[,.!:]? )*(?:that|this)(?:'s| is| was) (?:also |clearly )?(?:wrong|incorrect"
    r"|not (?:right|correct|true)|a mistake)\b(?! to\b))",
    re.IGNORECASE,
)
_ALSO = re.compile(
    r"[^.!?\n]{0,80}?\b(?:(?:also|equally|likewise) (?:correct|right|true|acceptable|possible)|(?:correct|right|true) (?:too|as well))\b"
)

_BOX = re.compile(rf"{BOXED.pattern}|(?i:<(?:final_?)?answer>([^<]{{1,{LONGEST}}})</(?:final_?)?answer>)")
_VERDICT = re.compile(
    r"(?: (?:is|are|was|were|(?P<would>would)|must|should|seems|appears|looks)(?P<negated>n't| not)?(?: (?:to )?be)?"
    rf"|,? (?P<made>mak(?:es|ing)) (?:it|this|that)| -|:)(?: {ADVERBS})?"
    r"(?: both)?(?: the| my)?"
    rf"(?P<odd> {_ODD_NOUN})?(?:(?(odd)|(?: (?:single|only|final|overall))*"
    r" (?:[Cc]orrect|[Rr]ight|best|answer|most (?:likely|appropriate|accurate|suitable))"
    r"(?: (?:possible )?(?:answer|choice|option))?(?: one| statement| diagnosis| fit)?))(?: too| as well)?"
    r"(?=\s?(?:[.,;!)\]:]|-|$|\n|(?:because|since|as|given|here|based|in this|and|due|to the question)\b))"
)
# "It is the answer": what the sentence before, or its beginning, was about.
_IT = re.compile(r"(?:\W|\b(?:it|this|that|which|and|so|option|choice)\b)*", re.IGNORECASE)
_HEAD = re.compile(
    rf"(?m:^|(?<=[.!?] ))[ #>-]*(?:\w+, |(?i:since|because|as|so) )?{_MARK}(?P<letter>[A-Z])"
    r"(?=[):,]|\.(?! [a-z])| (?:is|was|does|would|has|can|states)(?:n't|not)?\b)"
)

Kind = Literal["stated", "final", "verdict", "odd"]


@dataclass(frozen=True)
class Statement:
    """What is said to be the answer, or not to be it, and where that stands."""

    start: int
    said: str
    negated: bool = False
    kind: Kind = "stated"  # "verdict": "C is correct" judges one option of perhaps several
    alone: bool = False  # whether the answer must fill what is said
    joins: bool = False  # beside an earlier one: "C is also correct", "in a man, the answer is A"


def find_statements(text: str) -> list[Statement]:
    """All that a text states, in its order."""
    return sorted([*_boxes(text), *_phrases(text), *_verdicts(text)], key=lambda statement: statement.start)


def _boxes(text: str) -> Iterator[Statement]:
    for match in _BOX.finditer(text):
        negated = text[max(0, match.start() - 4) : match.start()].lower() == "not "
        yield Statement(match.start(), (match[1] or match[2] or "")[:LONGEST], negated)


def _phrases(text: str) -> Iterator[Statement]:
    """Statements that follow a phrase; one that is taken back at once is followed by its negation."""
    for phrase in _PHRASES:
        for match in phrase.finditer(text):
            start, groups = match.start(), match.groupdict()
            before = text[max(0, start - _BEFORE) : start]
            after = text[match.end() : match.end() + LONGEST].lstrip()
            if _ASKED.match(after) or _LISTED.match(after):
                continue
            if phrase is not _SURE and (_is_doubted(before) or _DOUBT.search(groups.get("clause") or "")):
                continue
            # "An option is" is too weak to make a text the answer.
            weak = phrase is _NOUN and not groups["answer"] and not _DECIDED.search(before)
            if (weak or phrase is _SURE) and not _LETTER_FIRST.match(after):
                continue
            conditional = _is_conditional(before)
            if conditional and groups.get("would"):
                continue
            kind: Kind = (
                "odd" if phrase is _ODD else "final" if before.lower().endswith("final ") else "stated"
            )
            said = after.partition("\n")[0]
            if kind == "odd" and _LETTER_FIRST.match(said):
                said = _REST.split(said)[0]
            joins = conditional or bool(_ALSO.match(said) or re.search(r"\balso\b", match[0]))
            negated = bool(groups.get("negated") or groups.get("not"))
            yield Statement(match.end(), said, negated, kind, phrase is _CONCLUDED, joins)
            if _TAKEN_BACK.match(after):
                yield Statement(match.end() + 1, said, negated=True)


def _verdicts(text: str) -> Iterator[Statement]:
    """Statements that stand before "is correct"."""
    for match in _VERDICT.finditer(text):
        before = text[max(0, match.start() - 2 * _BEFORE) : match.start()]
        sentence = _after_last(_SENTENCE, before)
        clause = _after_last(_JOINT, sentence + " ").rstrip()
        subject = clause if _LETTER_FIRST.match(clause) else sentence
        before = before[: len(before) - len(subject)]
        start = match.start() - len(subject)
        conditional = _is_conditional(before)
        if _is_doubted(before) or (conditional and match["would"]):
            continue
        if match["made"] or ("answer" in match[0] and _IT.fullmatch(clause)):
            subject = ["", *(head["letter"] for head in _HEAD.finditer(before + subject))][-1]
        joins = conditional or bool(re.search(r"\b(?:also|too|as well)\b", match[0]))
        kind: Kind = "odd" if match["odd"] else "verdict"
        yield Statement(start, subject, bool(match["negated"]), kind, True, joins)


def _after_last(mark: re.Pattern[str], text: str) -> str:
    return text[max((match.end() for match in mark.finditer(text)), default=0) :]


def _is_doubted(before: str) -> bool:
    return _DOUBT.search(_CLAUSE.split(before)[-1]) is not None


def _is_conditional(before: str) -> bool:
    """Whether the sentence up to there sets another case: "if she had fever, the answer is ..."."""
    return _CONDITION.search(_after_last(_ARGUMENT, before).lstrip()) is not None
