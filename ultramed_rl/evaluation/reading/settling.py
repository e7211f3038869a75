"""Which statement of a text counts as its answer.

A text states its answer in a box, after a phrase ("the answer is ...", "I would choose ..."), before a verdict ("... is
correct"), or as the odd one out ("the false statement is ..."). A clause that asks states nothing, nor does one that doubts
("if the answer is", "the wrong answer is", "some would choose"). What stands there, a letter or an option's text, is for
`Resolve` to say.

The last statement decides, as people correct themselves; but verdicts side by side contradict each other, and so does a
text that names one option after the other. Without statements a line, a bold label or the closing sentence decides, if all
of its kind agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from string import ascii_uppercase
from typing import Literal, Protocol

from ultramed_rl.evaluation.reading.text import BOXED, clean, turns

_HASTE = 30  # characters from one answer to the next, where nothing is argued
LONGEST = 600  # enough for the text of an option, and it bounds the work on a text that is all statements

# -- words -------------------------------------------------------------------------------------------------


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{pattern})\b|n't\b", re.IGNORECASE)


ADVERBS = (
    r"(?:(?:(?:most|more|very|quite|almost) )?(?:likely|probably|certainly|surely)|clearly|obviously|definitely"
    r"|undoubtedly|indeed|therefore|thus|hence|then|simply|actually|also|in fact|of course|no doubt|none other than"
    r"|best described as)\b"
)
_LACKING = r"(?:given|listed|known|clear|among|provided|available|present|determined|answered|found|possible)"
_MARK = r"(?:(?i:option|choice|answer) )?[(\[\"]*"
_AGAINST = "not|never|wrong|incorrect|false|unlikely|less|contraindicated|inappropriate|excluded|eliminated|avoid|ruled out"
REJECTED = re.compile(rf"[^.\n]{{0,60}}(?:\b(?:{_AGAINST})\b|n't\b)", re.IGNORECASE)
_UNSETTLED = _words(
    rf"{_AGAINST}|no|excludes?|rul(?:e|es|ing) out|eliminat\w+|unlike|except|avoid\w+|without|neither|nor|rather"
    r"|instead|consider\w*|first|next|let|whether|if|could|may|might|compar\w+|versus|vs|but|although|however|while"
    r"|whereas|tempting"
)
_DOUBT = _words(
    r"if|whether|unless|not|never|cannot|neither|nor|wrong|incorrect|false|untrue|worst|least|another|other|next|second"
    r"|alternative|tempting|might|may|could|(?:a|one) (?:possible|potential)|initial(?:ly)?|thought|suppose|let's say"
    r"|assume|assuming|imagine|some|many|students?|people|distractor|previous|eliminated|excluded|si|wenn|falls"
)
_CONCLUDES = _words(
    r"so|thus|hence|therefore|accordingly|consistent|corresponds?|match(?:es)?|fits?|supports?|points?|leads?|best"
    r"|correct|right|most|likely|answer|choice|conclu\w+|choose|indicates?|suggests?|favou?rs?|which is"
)
_CORRECTION = re.compile(
    r"\b(?:wait|actually|no,|correction|reflection|reconsider|mistake|hmm)", re.IGNORECASE
)
# "vitamin (C)", "type **A**"
_KIND = re.compile(
    r"\b(?:vitamin|hepatitis|type|group|class|grade|stage|factor|protein|influenza|phase|level|step|part"
    r"|patient|figure|table|case|pugh)s?\W{0,3}$",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.!?\n;,:，]|\b(?:but|so|hence|therefore|thus|however|and|then)\b", re.IGNORECASE)
_ARGUMENT = re.compile(r"[.!?](?= )|\n|\b(?:but|so|hence|therefore|thus|however|then)\b", re.IGNORECASE)
_SENTENCE = re.compile(
    r"\n|(?<=[\w)\"'%][\w)\"'%])[.!?;:] "
    r"|\b(?:so|but|thus|hence|therefore|that|because|since|only|then|why|conclude|believe|think)\b[,:]? ",
    re.IGNORECASE,
)
_JOINT = re.compile(r"(?<![A-Z)])(?:, (?:(?:and|but|while|whereas|so) )?| (?:and|but|while|whereas) )")

# -- phrases before an answer ------------------------------------------------------------------------------

_MODAL = (
    r"(?:(?P<not>(?:is|was)n't|(?:cannot|can't|can not|could not|couldn't)(?: only)? be)\b"
    rf"(?! {_LACKING})|(?=(?:cannot|can't) be {_LACKING})"
    r"|(?:is|was|are|remains|appears|seems|should|must|will|(?P<would>would)|(?:can|could) only|can be only"
    r"|(?:has|have|ought|needs|turns)(?= (?:to|got|out)\b))\b"
    rf"(?:[ ,]+(?:{ADVERBS}|(?:to|be|have|going|got|out)\b))*,?)"
)
_NEGATED = rf"(?P<negated>not\b(?! (?:only|{_LACKING})))?"
_NOUN = re.compile(
    r"(?<![A-Za-z])(?:(?P<answer>answers?|ans)|option|choice|selection|guess)"
    r"(?:[ _](?:choice|option|letter|idx|index|key|selection))?(?:(?:,| -)? (?:to|for|of|among|in|from|given|based|considering) [^.\n:?!]{1,80}?(?:,| -)?"
    r"|(?P<clause> (?:that|which) [^.\n:?!,]{1,60}?)|,? (?:here|therefore|thus|then),?)?(?:\s?\([^()\n]{1,40}\))?"
    rf"(?:[\"']?\s?(?:[:=]|->)| {_MODAL}| - |(?=\s?\([A-Z]\))|(?<=final answer)(?= [A-Z]\b))"
    rf"[\s:\"']*(?:{ADVERBS} )?{_NEGATED}",
    re.IGNORECASE,
)
_HEADING = re.compile(r"^[ #>-]*(?:(?:the|my|final|correct|best|right) )*answer[ .]*\n", re.I | re.MULTILINE)
_CHOOSE = re.compile(
    r"(?:\b(?:I|we|We|[Ll]et me|[Ll]et's)(?:'d|'ll|'m| would| will| must| should| have to| am)?(?: also"
    r"| therefore| still| then)? |^|(?<=[.!?] )|\b(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),? )(?i:choose"
    r"|chose|choosing|picke?d?|picking|select(?:ed)?|go(?:ing)? with|opt for|settle on)\b:?",
    re.MULTILINE,
)
_CONCLUDED = re.compile(
    r"\b(?i:so|thus|hence|therefore|leaving|leaves|left with|elimination|(?:must|has to|(?:can|could) only) be|it's|it is"
    r"|correction)\b"
    r"[,:]? (?i:(?:only|us with|me with|just|it's|it is|it must be) )?"
    rf"(?=(?:{_MARK}[A-Z][)\]\"]*|(?i:yes|no|maybe))[.!]?(?:\n|\s?$))"
)
# What these say stands against a doubt: "not A but C", "only C remains", "making C the only choice".
_SURE = re.compile(
    rf"\b[Nn]ot {_MARK}[A-Z][)\]\"]*,? (?:but|it's|it is)(?: rather)? (?={_MARK}[A-Z]\b)"
    r"|\b[Oo]nly (?=(?:[Oo]ption |[Cc]hoice )?\(?[A-Z]\)? (?:remains|fits|is left|matches)\b)"
    rf"|\b(?:making|leaving|makes) (?={_MARK}[A-Z]\b[^.\n]{{0,80}}? (?:as )?the (?:only|correct|best|right)\b)"
)
# Of a question for the exception; in any other, several are wrong, and "the wrong answer is B" is no answer.
_ODD_NOUN = (
    r"(?:(?:only )?exception|odd (?:one|man) out|(?:only )?(?:false|incorrect|wrong|untrue|inaccurate) (?:statements?|one)"
    r"|statements? (?:that|which) (?:is|are|was) (?:false|incorrect|wrong|untrue)"
    r"|(?:statements?|one|option|choice) (?:that|which) (?:is|are|was|do|does)(?: not|n't) [^.,:?\n]{1,40}?)"
)
_ODD = re.compile(
    rf"(?:(?:\bthe |^|(?<=[.!?] )){_ODD_NOUN}(?: here)?(?:\s?:| {_MODAL})|\b(?:all|each|every|both)\b[^.\n?]{{0,60}}"
    rf"\b(?:true|correct|right|causes?|features?)(?: statements?)?,? except(?: for)?:?)[\s:\"']*{_NEGATED}",
    re.IGNORECASE,
)
_CHINESE = re.compile(
    r"(?:答案 ?(?:应该|应当|应)?(?:是|为|选|:)|(?:应该|应|故)?选(?:择|项)?(?:是|为|:)?) ?(?P<negated>不是)?"
)
# Spanish, German, French: letters only.
_FOREIGN = re.compile(
    r"\b(?:respuesta(?: correcta| final)?|antwort|réponse(?: correcte| finale)?)"
    r"(?: ?:| (?P<not>no es\b|n'est pas\b)| (?:es|sería|ist|lautet|wäre|est|serait)\b)\s*(?P<negated>nicht\b)?",
    re.IGNORECASE,
)
_PHRASES = (_NOUN, _HEADING, _CHOOSE, _CONCLUDED, _SURE, _ODD, _CHINESE, _FOREIGN)
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
_ASKED = re.compile(r"[^.!\n]{0,60}\?")
# "No, timing didn't matter" is an argument.
_TAKEN_BACK = re.compile(
    r"[^.,!?\n]{1,80}(?:[.,!?\s-]+(?:(?:wait|hmm+|oops|sorry)(?=\s*[^\s\w]|\s*$| (?:no|that|this|it|the|i|not)\b)"
    r"|(?:scratch that|hold on|i mean|correction|my mistake|actually,? no|no,? wait)(?!\w))|, no,"
    r"|[.!?]\s+(?:(?:no|actually|but|oh)[,.!:]? )*(?:that|this)(?:'s| is| was) (?:also |clearly )?(?:wrong|incorrect"
    r"|not (?:right|correct|true)|a mistake)\b(?! to\b))",
    re.IGNORECASE,
)
_ALSO = re.compile(
    r"[^.!?\n]{0,80}?\b(?:is|are|would be|seems) (?:(?:also|equally|likewise) (?:correct|right|true|acceptable"
    r"|possible)|(?:correct|right|true|acceptable) (?:too|as well))\b",
    re.IGNORECASE,
)

# -- other forms -------------------------------------------------------------------------------------------

_BOX = re.compile(rf"{BOXED.pattern}|(?i:<(?:final_?)?answer>([^<]{{1,{LONGEST}}})</(?:final_?)?answer>)")
_VERDICT = re.compile(
    rf" (?:is|are|was|were)(?P<negated>n't| not)?(?: {ADVERBS})?(?: both)?(?: the| my)?"
    rf"(?P<odd> {_ODD_NOUN})?(?:(?(odd)|(?: (?:single|only|final|overall))*"
    r" (?:correct|right|best|answer|most (?:likely|appropriate|accurate|suitable))"
    r"(?P<noun> (?:possible )?(?:answer|choice|option))?(?: one| statement| diagnosis| fit)?))(?: too| as well)?"
    r"(?=\s?(?:[.,;!)\]:]|-|$|\n|(?:because|since|as|given|here|based|in this|and|due|to the question)\b))"
)
_MARKUP = re.compile(r"[*`$]+|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])")
_OPTION_LINE = re.compile(r"[ *#>-]*(?:(?:Option|Choice) )?\(?([A-Z])[)*]* ?[.):]\)?[* ]*\S.*")
_BULLET = re.compile(r"(?:[-+•#>]|\d+[.)]) ?")
_ROMAN = re.compile(r"^\W?II[.):]", re.MULTILINE)
_LETTER_LINE = re.compile(r"[^\w\n]{0,9}[A-Za-z][^\w\n]{0,9}")
_BOLD = re.compile(
    rf"\*\*(?P<said>[\s(\[\"]*(?:(?i:option|choice|answer) )?[(\[]*[A-Z](?![\w'+-])"
    rf"[^*\n]{{0,{LONGEST}}})\*\*(?!\w)"
)
_MENTION = re.compile(r"\([A-Z]\)|\b(?i:option|choice) \(?[A-Z]\b(?!['+-])")
_SENTENCE_END = re.compile(r"(?<=\w[\w)])[.!?] (?=\S)")

Kind = Literal["stated", "verdict", "odd"]


@dataclass(frozen=True)
class Statement:
    """What is said to be the answer, or not to be it, and where that stands.

    A `verdict` ("C is correct") judges one option of perhaps several.
    """

    start: int
    said: str
    negated: bool = False
    kind: Kind = "stated"
    joins: bool = (
        False  # "C is also correct", or "in a man, the answer is A": an earlier one stands beside it
    )


class Resolve(Protocol):
    def __call__(self, said: str, alone: bool = False) -> str:
        """The letters of the options that `said` starts with, each once; "" for none of them.

        A letter that no option has is a finding as well: "the answer is F" isn't answered by what was said
        before. With `alone`, the answer must fill all of `said`; else other words may follow.
        """


def decide(text: str, resolve: Resolve, options: Iterable[str], truncated: bool = False) -> str:
    """The letters that the statement which counts names: one, several that contradict each other, or "".

    Args:
        options: the letters that there are.
        truncated: whether the text was cut off; a line within a discussion then decides nothing.
    """
    remembered: Resolve = cache(resolve)  # a looping text says the same thousands of times
    for turn in turns(clean(text)):
        letters = _settled(_MARKUP.sub("", turn), remembered, "".join(options), truncated)
        letters = letters or _agreed(turn, remembered, truncated)
        if letters:
            return letters
    return ""


def unite(*letters: str) -> str:
    """Letters, each once."""
    return "".join(dict.fromkeys("".join(letters)))


# -- statements --------------------------------------------------------------------------------------------


def _settled(text: str, resolve: Resolve, options: str, truncated: bool) -> str:
    """The letters of the last statement that isn't taken back."""
    current, last = "", None
    seen: list[tuple[int, str]] = []
    for statement in sorted([*_boxes(text), *_phrases(text), *_verdicts(text)], key=lambda s: s.start):
        letters, kind = resolve(statement.said, alone=statement.kind == "verdict"), statement.kind
        if not letters:
            continue
        if statement.negated:
            current = "" if current and current in letters else current
            continue
        before = last.kind if last and current else None
        # The odd one out stands against verdicts, not against an answer.
        if (kind, before) in (("odd", "stated"), ("verdict", "odd")) or (
            kind == "odd" and before and letters[1:]
        ):
            continue
        corrected = last is not None and _CORRECTION.search(text, last.start, statement.start) is not None
        beside = before == kind == "verdict" and not corrected
        current = unite(current, letters) if statement.joins or beside else letters
        seen = [] if corrected else seen
        seen.append((statement.start, current))
        last = statement
    return unite(*(one for _, one in seen)) if current and _is_loop(seen, options, truncated) else current


def _is_loop(seen: Sequence[tuple[int, str]], options: str, truncated: bool) -> bool:
    """Whether the last of a text's answers has no more weight than any: those from A on in their order, all options
    once, a series that comes again, or (cut off) to and fro.

    Args:
        seen: what the text gave since it last corrected itself, with where.
    """
    changes = [one for one, _ in groupby(one[0] for _, one in seen)]
    if truncated and len(changes) > 3:
        return True
    hasty = seen[-1][0] - seen[0][0] < _HASTE * (len(seen) - 1)
    if hasty and len(seen) > 2 and sorted(one for _, one in seen) == sorted(options):
        return True
    for n in range(2, len(ascii_uppercase)):
        tail, again = changes[-n:], changes[-n:] == changes[-2 * n : -n]
        if again and (tail == changes[-3 * n : -2 * n] or (hasty and n > 2)):
            return True
        if tail == list(ascii_uppercase[:n]) and (n > 3 or n == len(changes) == 3):
            return True
        if hasty and n > len(options) > 3 and len(tail) == n and "".join(tail) in options * 3:
            return True
    return False


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
            if phrase is not _SURE and (
                _is_doubted(text, start) or _DOUBT.search(groups.get("clause") or "")
            ):
                continue
            # "An option is" is too weak to make a text the answer.
            weak = (
                phrase is _NOUN
                and not groups["answer"]
                and not _DECIDED.search(text, max(0, start - 30), start)
            )
            if (weak or phrase in (_SURE, _FOREIGN)) and not _LETTER_FIRST.match(after):
                continue
            conditional = _is_conditional(text, start)
            if conditional and groups.get("would"):
                continue
            said = after.partition("\n")[0]
            joins = conditional or bool(_ALSO.match(said) or re.search(r"\balso\b", match[0]))
            negated = bool(groups.get("negated") or groups.get("not"))
            yield Statement(match.end(), said, negated, "odd" if phrase is _ODD else "stated", joins)
            if _TAKEN_BACK.match(after):
                yield Statement(match.end() + 1, said, negated=True)


def _verdicts(text: str) -> Iterator[Statement]:
    """Statements that stand before "is correct"."""
    for match in _VERDICT.finditer(text):
        before = text[max(0, match.start() - LONGEST // 2) : match.start()]
        sentence = _after_last(_SENTENCE, before)
        clause = _after_last(_JOINT, sentence)
        subject = clause if _LETTER_FIRST.match(clause) else sentence
        start = match.start() - len(subject)
        if (match["noun"] or _LETTER_FIRST.match(subject)) and not _is_doubted(text, start):
            joins = _is_conditional(text, start) or bool(re.search(r"\b(?:also|too|as well)\b", match[0]))
            yield Statement(
                start, subject, bool(match["negated"]), "odd" if match["odd"] else "verdict", joins
            )


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
