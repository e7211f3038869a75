"""The option that an answer settles on; none where that is unclear.

text -> turns -> a closing sentence that corrects what was said
              -> else statements, each with the options that it names: the last one, if it stands
              -> else a line, a bold label, the closing or the opening sentence, if all of its kind agree

The last statement decides, as people correct themselves; but verdicts side by side contradict each other, and so does a
text that names one option after the other. A sentence is read clause by clause: one that ends in a letter says that it is the
answer, whatever its words, unless it denies, doubts or weighs, or its subject is neither the speaker nor what was said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby, zip_longest
from string import ascii_uppercase

from ultramed_rl.evaluation.items import AnswerReading
from ultramed_rl.evaluation.reading.options import ADVERBS, AGAINST, REJECTED, OptionNames, unite
from ultramed_rl.evaluation.reading.statements import DOUBT, LONGEST, find_statements, words
from ultramed_rl.evaluation.reading.text import clean, turns

_USUAL = "ABCDEFGH"  # I would be the pronoun
_HASTE = 30  # characters from one answer to the next, where nothing is argued
_CORRECTS = r"wait|actually|no,|correct(?:ion| myself| that)|edit:|(?:up)?on (?:\w+ )?(?:reflection|review|reading|thoughts?)|reconsider|mistake|hmm|(?:scratch|strike|make|change) that|sorry|oops|revis"
_CORRECTION = re.compile(rf"\b(?:{_CORRECTS})", re.IGNORECASE)
_TURN = re.compile(rf"\b(?:{_CORRECTS}|but|yet|now)\b", re.IGNORECASE)
_MARKUP = re.compile(r"[*`$]+|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])")

# The weaker forms.
_LINE = r"[ *#>-]*(?:(?:Option|Choice) )?\(?{}[)*]* ?[.):]\)?[* ]*\S.*"
_OPTION_LINE = re.compile(_LINE.format("[A-Z]"))
# Lines A., B., ...: an echo or a discussion of the options gives no answer.
_ECHO = re.compile(
    rf"^{_LINE.format('A')}\n{_LINE.format('B')}"
    + "".join(rf"(?:\n{_LINE.format(letter)}" for letter in ascii_uppercase[2:])
    + ")?" * 24
    + "$",
    re.MULTILINE,
)
_BULLET = re.compile(r"(?:[-+•#>]|\d+[.)]) ?")
_ROMAN = re.compile(r"^\W?II[.):]", re.MULTILINE)
_LETTER_LINE = re.compile(r"[^\w\n]{0,9}[A-Za-z][^\w\n]{0,9}")
_BOLD = re.compile(
    rf"\*\*(?P<said>[\s(\[\"]*(?:(?i:option|choice|answer) )?[(\[]*[A-Z](?![\w'+-])"
    rf"[^*\n]{{0,{LONGEST}}})\*\*(?!\w)"
)
# Letters, with those that are joined to them: "option B", "(B) or (C)". "J. D." and "D.C." are names.
_MENTION = re.compile(
    r"(?:\b(?i:both )?(?i:options?|choices?|answers?) )?(?<![\w'+&./-])(?<!\d )\(?[A-Z](?![\w'+&-]|\.[\w,]|\. [a-z])\)?"
    r"(?:(?:,? (?:and|or) |/|, (?!\(?[A-Z]\)? [a-z]+s\b)|,? nor )(?:(?i:option|choice|answer) )?(?!I [a-z])\(?[A-Z](?![\w'+&-]|\.[\w,])\)?)*"
)
_MARKED = re.compile(r"\(|option|choice", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?:(?<=\w[\w)])\.|[!?]) (?=\S)")
# "vitamin (C)", "type **A**", "Judge Theodore D."
_KIND = re.compile(
    r"\b(?:\w+(?:[^a\W]in|itis|type)|type|group|class|grade|stage|factor|influenza|phase|level|step|part"
    r"|patient|figure|table|case|pugh)s?\W{0,3}$"
    r"|(?<=\w )(?-i:[A-Z])\w*\.? $",
    re.IGNORECASE,
)
# A clause with one of these denies, doubts or weighs.
_UNSETTLED = words(
    rf"{AGAINST}|{DOUBT}|no|excludes?|rul(?:e|es|ing) out|eliminat\w+|discard\w*|refus\w+|except|avoid\w+|anything but"
    r"|(?:far|away) from|needs?|disagree|depends?|fail|hate|consider\w*|look\w* at|start(?:ing)? with"
    r"|first|last|let|compar\w+|while|whereas"
)
# What comes after one of these is what the answer is set against.
_LESS = (
    r"(?:over|than|instead of|opposed to|ahead of|before|clear of|about|not|unlike|without|vs|versus|against)"
)
_AGAINST = re.compile(rf"\b(?:{_LESS}|prefer.* to)\b", re.IGNORECASE)
_NEXT_IS_LESS = re.compile(rf"[ ,]*(?:rather |more |as )?{_LESS}(?: (?:for|on|to|with))?\W*$", re.IGNORECASE)
_CONCLUDES = words(
    r"so|thus|hence|therefore|accordingly|consistent|corresponds?|match(?:es)?|fits?|supports?|points?|leads?|best|better"
    r"|correct|right|most|likely|answer|choice|conclu\w+|choose|indicates?|suggests?|favou?rs?|prefer\w*|way to go|which is|mean(?:s|ing)"
    r"|the (?!test|chest|rest)\w+est"
)
# The speaker's own, or of what was said: "I would bet on C", "that leaves C", "must be C".
_I = r"(?-i:I(?='| (?!is\b|are\b|and\b|or\b|of\b)[a-z]))|my"  # no symbol
_SELF = words(_I)
_SPEAKS = words(rf"{_I}|we|our|me|us|it|this|that|be|lean\w*|pick|choose|select")
# What an option does, or is; of "a steroid is", "B cells are", it is no subject.
_PREDICATE = re.compile(
    r" (?!\w+ (?:\w+ )?(?:is|are|was|were|has|have|of)\b)(?:best |\w+ly )?(?:would|must|should|[a-z]+s)\b"
)
# "Next, C." and "this holds for C" go through the options.
_GOES_ON = re.compile(
    r"(?i:\b(?:next|first|second|third|last)(?:ly)?\W*$|\b(?:also|already)\b|\b(?:this|that|same)\b.* (?:for|in|of)\W*$)"
)
_FORMULA = re.compile(r"[=\\^_{}*<>]")
_LONG = 9  # words before a letter, which no more belongs to their verb
_CLAUSE = re.compile(
    r"[;:,!]|\.(?: |\.)|- |\b(?:(?<!anything )but|yet|so|and (?:hence|therefore|thus|then)|however|although|though)\b",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(r"[;,!]|\b(?:but|so)\b")
_NEXT_SENTENCE = re.compile(r"\. (?=[A-Z]\w* [a-z])")
_CLOSES = re.compile(
    rf"(?: {ADVERBS}| is| does)?[\s.!\"')*]*$| (?:(?:is|(?:would|must|should|(?:has|seems) to) be)(?: {ADVERBS})? (?:the|what|my)|gets my"
    r"|it (?:is|has)|stands out|wins|beats|then|here|as the|on this|for this)\b"
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
    letters = _settle(text, OptionNames(options), truncated)
    if len(letters) > 1:
        return AnswerReading((), "contradiction")
    if letters in options:
        return AnswerReading((letters,))
    return AnswerReading((), "truncated" if truncated and not letters else "none")


def read_letter(answer: str, options: Mapping[str, str] | None = None) -> str | None:
    """The letter that an answer gives, or None for none and for contradictions.

    Args:
        options: the question's own, by letter, where they are known; else any letter from A to H.
    """
    return next(iter(read_choice(answer, options or dict.fromkeys(_USUAL, "")).given), None)


def _settle(text: str, options: OptionNames, truncated: bool) -> str:
    """The letters that the statement which counts names: one, several that contradict each other, or ""."""
    for turn in turns(clean(text)):
        letters = _stated(_MARKUP.sub("", turn), options, truncated) or _agreed(turn, options, truncated)
        if letters:
            return letters
    return ""


def _stated(text: str, options: OptionNames, truncated: bool) -> str:
    """The letters of a last sentence that corrects what was said, else of the last statement that isn't taken back."""
    closing = _SENTENCE_END.split(text[-LONGEST:])[-1]
    if not truncated and _CORRECTION.search(closing) and (letters := _settled_on(closing, options)):
        return letters
    current, last = "", None
    seen: list[tuple[int, str]] = []
    named = cache(options.named)  # a looping text says the same thousands of times
    for statement in find_statements(text):
        letters, kind = named(statement.said, statement.alone, statement.kind == "final"), statement.kind
        denied = statement.negated and not (option := named(f"not {statement.said}"))
        if statement.negated and not denied:  # an option is "not indicated"
            letters = option
        if not letters:
            continue
        if denied:
            current = "" if current and current in letters else current
            continue
        before = last.kind if last and current else ""
        # The odd one out stands against verdicts, not against an answer, and is one.
        if {kind, before} == {"odd", "verdict"} and (kind == "verdict" or letters[1:]):
            continue
        if kind == "odd" and before in ("stated", "final"):
            continue
        corrected = last is not None and _CORRECTION.search(text, last.start, statement.start) is not None
        beside = before == kind == "verdict" and not corrected
        current = unite(current, letters) if statement.joins or beside else letters
        seen = [] if corrected else seen
        seen.append((statement.start, current))
        last = statement
    if current and _is_loop(seen, "".join(options.texts), truncated):
        return unite(*(letters for _, letters in seen))
    return current


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


# -- weaker forms ------------------------------------------------------------------------------------------


def _agreed(text: str, options: OptionNames, truncated: bool) -> str:
    """The letters of the first of the weaker forms that occurs."""
    lines = _ECHO.sub("", text).splitlines()
    if truncated:  # a line within a discussion decides nothing
        first = lines[0] if lines and _LETTER_LINE.fullmatch(lines[0]) else ""
        return options.named(_MARKUP.sub("", first), alone=True)
    for form in (_bare_lines, _full_lines, _bold_labels, _closing_sentence):
        letters = list(form(lines, options))
        # A line amid others is part of what they discuss.
        if any(letters) and (form is not _full_lines or letters[0] or letters[-1]):
            return unite(*letters)
    return ""


def _bare_lines(lines: list[str], options: OptionNames) -> Iterator[str]:
    """Lines of a letter and nothing else."""
    for line in lines:
        if _LETTER_LINE.fullmatch(line):
            yield options.named(_MARKUP.sub("", line), alone=True)


def _full_lines(lines: list[str], options: OptionNames) -> Iterator[str]:
    """Lines that an answer fills; "" for points of a list, and for all in an outline (I., II.)."""
    outline = _ROMAN.search("\n".join(lines))
    before = ""
    for line in lines:
        point = before.endswith(":") or (_BULLET.match(line) and not _OPTION_LINE.fullmatch(line))
        skipped = point or outline or len(line) > LONGEST
        yield "" if skipped else options.named(_MARKUP.sub("", line), alone=True)
        before = line.rstrip("* ")


def _bold_labels(lines: list[str], options: OptionNames) -> Iterator[str]:
    """Letters in bold, alone or with their option's text."""
    for line in lines:
        for match in _BOLD.finditer(line):
            before = line[max(0, match.start() - 30) : match.start()]
            if not _KIND.search(before) and not REJECTED.match(line, match.end()):
                letters = options.named(match["said"], alone=True)
                # "**E. coli**" may be an option's text, but isn't stated as the answer.
                yield letters if letters[:1] in match["said"] else ""


def _closing_sentence(lines: list[str], options: OptionNames) -> Iterator[str]:
    """The options that the last sentence settles on, else the first, where that says "I"."""
    plain = [_MARKUP.sub("", line) for line in lines]
    closing = _SENTENCE_END.split("".join(plain[-1:])[-LONGEST:])[-1]
    opening = _SENTENCE_END.split("".join(plain[:1])[:LONGEST])[0]
    yield _settled_on(closing, options) or (_settled_on(opening, options) if _SELF.search(opening) else "")


def _settled_on(sentence: str, options: OptionNames) -> str:
    """The letters that a sentence's clauses affirm; those after a turn ("but", "no, wait") stand for all before it.

    What a statement names has been judged with it, and what stands before it is an argument.
    """
    statements = find_statements(sentence)
    judged = max((s.start for s in statements if options.named(s.said, s.alone)), default=-2)
    mentions = [*_MENTION.finditer(sentence)]
    letters, end = "", 0
    for match, following in zip_longest(mentions, mentions[1:]):
        stated = any(match.start() - 1 <= s.start <= match.end() for s in statements if not s.alone)
        if match.start() <= judged + 1 or (stated and _UNSETTLED.search(sentence, match.end())):
            continue
        after = sentence[match.end() : following.start() if following else None]
        after = _CLAUSE_END.split(_NEXT_IS_LESS.sub("", after) if following else after)[0]
        if _affirms(sentence[: match.start()], match[0], after, sentence.rstrip().endswith("?")):
            named = unite(*(options.named(one, alone=True) for one in re.findall(r"\b[A-Z]\b", match[0])))
            letters = named if _TURN.search(sentence, end, match.start()) else unite(letters, named)
            end = match.end()
    return letters


def _affirms(before: str, said: str, after: str, asks: bool) -> bool:
    """Whether a clause says that what it names is the answer: it neither denies nor weighs, and concludes or ends there."""
    clause = _CLAUSE.split(before)[-1]
    if clause.strip():  # else "C. Topical steroid" is a label
        after = _NEXT_SENTENCE.split(after)[0]
    if _GOES_ON.search(clause if clause.strip() else before):
        return False
    if _KIND.search(clause) or _AGAINST.search(clause) or _UNSETTLED.search(f"{clause} {after}"):
        return False
    if _MARKED.match(said) and _CONCLUDES.search(before + said + after):
        return True
    closes = _CLOSES.match(after) or (_PREDICATE.match(after) and _CONCLUDES.search(after))
    if asks or _FORMULA.search(clause + after) or not closes:
        return False
    speaks = len(clause.split()) < _LONG and _SPEAKS.search(clause)
    return bool(not clause.strip() or speaks or _CONCLUDES.search(clause + said + after))
