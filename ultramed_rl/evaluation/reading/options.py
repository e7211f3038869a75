"""Which options a piece of text names, by their letters, their texts, or both.

Medicine is full of letters that are no answer: vitamin C, hepatitis B, E. coli, B cells. A letter counts only with a mark,
the end, or a word of reasoning after it. An option's text counts only if it is all that is stated there: "aspirin" isn't
read out of "aspirin and clopidogrel", nor "no" out of "no longer".
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ultramed_rl.evaluation.reading.text import clean

ADVERBS = (
    r"(?:(?:(?:most|more|very|quite|almost) )?(?:likely|probably|certainly|surely)|clearly|obviously|definitely"
    r"|undoubtedly|indeed|therefore|thus|hence|then|simply|actually|also|in fact|of course|none other than"
    r"|best described as)\b"
)
LACKING = r"(?:given|listed|known|clear|among|provided|available|present|determined|answered|found|possible|enough|sure|certain)"
AGAINST = "not|never|wrong|incorrect|false|unlikely|less|contraindicated|inappropriate|excluded|eliminated|avoid|ruled out"
REASON = "because|since|as(?! well)|which|given|due|based|so|rather|instead|over|in this|unless|it (?:is|has to be|must be)(?=[.,!]|$)"
_IT_IS = r",? it (?:is|has to be|must be)"
REJECTED = re.compile(rf"[^.\n]{{0,60}}(?:\b(?:{AGAINST})\b|n't\b)", re.IGNORECASE)

# Letters.
_PLACEHOLDERS = "XYZ"  # "So, the answer is X." is how a prompt asks for it.
_PREFIX = re.compile(
    rf"(?:(?:{ADVERBS}|the|correct|best|single|options?|choices?|letter|answers?|statements?|both|either"
    r"|la|l'|die|el|opción|lettre|letra)\b[\s:\"'(\[<-]*|选项 ?){0,4}",
    re.IGNORECASE,
)
_OPENING = " \n:\"'([{<-=#>.|"
_LETTER = re.compile(r"(?P<letter>[A-Za-z])(?P<close>[)\]}\"'>]*)")
_END = re.compile(
    rf"\s*$| ?[.:](?!\w)|[.:](?=[A-Z][a-z]{{2}})|[,;!\n]| ?[|#]| ?- | ?= | ?[(\[]| ?/ ?[A-Z]\b|选项|项| &| (?:{REASON}"
    r"|for this|not|and|or|but|it|this|the|here"
    r"|remains|fits|matches|is left|explains|accounts for|satisfies|meets|applies|oder|und|weil|ou|et|car|o|y|porque)\b| is (?:the |also )?(?:correct|right|best|most)\b"
)
_SMALL_END = re.compile(r"\s*$|[.:,;](?!\w)| (?:because|since)\b")
_PRONOUN_END = re.compile(r"\s*$|[.:](?!\w)")
_WHOLE_END = re.compile(rf"{_IT_IS}[.!]?$|[.!,;:]*\s*$|[.:]? ?\(|[.:] |[.:](?=[A-Z][a-z]{{2}})| - ")
# "E. coli", whose names some write with a capital.
_SPECIES = re.compile(
    r"\. ?(?P<name>[a-z][\w-]*|(?:Coli|Diff(?:icile)?|Albicans|Faecalis|Fragilis|Pylori|Trachomatis|Perfringens"
    r"|Botulinum|Tetani|Histolytica|Burgdorferi|Pertussis|Influenzae)\b)"
)
_COMMON_WORD = re.compile(r"yes|no|maybe|true|false|the|it|this|because|since|in|as|an?")
_ANOTHER = re.compile(
    r"(?: ?\([^()\n]{1,80}\))?[)\]\"'.]*\s?(?:,|/|&|;|\||\b(?:or|and|plus|oder|und|ou|et|o|y)\b)\s?"
    r"(?:(?:or|and|both) )?(?:(?i:option|choice|answer) )?[(\[\"']*(?P<letter>[A-Z])"
    r"(?!\. ?(?:coli|diff|[a-z]{5,}(?<!because))\b)"
    r"(?=[)\].,;:|\"']|\s*$| \(| (?:and|or|are|because|since|both|seem|fit)\b| ?[/&])"
)
# A second label further on: an echo of options in one line, or "A. Aspirin and C. Warfarin".
_LABELLED = re.compile(
    r"[.):]? ?[^.\n]{1,80}? (?<!is )(?<!be )(?<!choose )(?<!with )\(?(?P<letter>[A-Z])[).] (?P<first>\w+)"
)
_ONLY_LETTERS = re.compile(r"(?:\W|\b(?:and|or|both|option)\b|\b[A-Z]\b)*")
_MARKS = re.compile(r"(?:[ :(),!=]|\.(?!\d)|-(?=[ A-Za-z]))*")
_BAD = (
    rf"(?:{ADVERBS} |both )*(?:wrong|incorrect|false|never|unlikely|less \w+|ruled out|excluded|eliminated)\b"
)
_DENIED = re.compile(
    rf"[)\]\"']*(?: ?\([^()\n]{{1,80}}\))?,?(?: which)?(?: (?:is|are|was|were|seems)(?: {ADVERBS})?(?:n't| not)\b"
    rf"| (?:is|are|was|were|seems|(?:would|can|must|should|has|have)(?: been| be)*) {_BAD}"
    r"| (?:do|does|can|could|would)(?:n't| ?not)\b)"
    r"|[\s.,(:-]+(?:wrong|incorrect|false)\b(?! ?(?:options?|answers?|choices?|ones)?:)",
    re.IGNORECASE,
)
_PLURAL = re.compile(r"\b(?:are|were|do|have|both)\b")
# "B. Zinc is not absorbed" describes what the answer names.
_TEXT_DENIED = re.compile(
    rf"[)\]\"'.]* (?:is|are|was|were|would be|can be)(?: not (?:right|correct|true)\b| {_BAD})", re.IGNORECASE
)
_PREDICATE = re.compile(r" (?:is|are|was|were|has|have|can|may|would|could|should|will|does|[a-z]{3,}s)\b")

# What may stand before, after and between options' texts.
_JUDGEMENTS = {"yes", "no", "maybe", "true", "false"}
_START = re.compile(rf"(?:[\s:\"'(\[{{]|- )*(?:an? (?:\w+ (?=yes|no\b))?|the |to |that )?(?:{ADVERBS} )?")
_FULL_END = re.compile(rf"s?(?:{_IT_IS})?[\s.,;:!)\]\"'}}]*$|,? (?:because|since)\b")
_TEXT_END = re.compile(
    rf"s?[\s\"'}}]*(?:$|[.;:!)\]](?![\w.])| ?\(| - (?=[a-z])|,? (?:{REASON}"
    r"|option|choice|is (?:the )?(?:correct|best|right))\b|, not\b)"
)
_JUDGEMENT_END = re.compile(r"\s*[,:;.!-](?!\w)")
_TORN = re.compile(r"[,.;:!]? ?(?:(?:but|or|and|/) ?)?(?P<other>yes|no|maybe|possibly)\b")
_LABEL = re.compile(
    r"[\s,\"']*(?:[(\[](?:(?:option|choice|answer) )?|(?:option|choice|answer) [(\[]?)"
    r"(?P<letter>[a-z])\b(?!['+-]| (?!is\b)[a-z])"  # "(a type of sugar)" is a remark
)
_AND = re.compile(r"[\s,\"')]*(?:,|/|&|;|\band\b|\bor\b)\s?(?:(?:and|or|maybe) )?(?:the |an? )?")
_OR = re.compile(r"(?:and|or) ")
_NEITHER = "-"  # says that it is none of the options; no option has it as its letter
_REFUSAL = re.compile(
    r"(?:none|no (?:\w+ ){0,2}(?:options?|answers?|choices?)"
    rf"|not {LACKING}|un(?:clear|known|certain|determined|able to)|in(?:sufficient|conclusive|determinate)"
    r"|neither|n/a|(?:cannot|can't) be|impossible to|there (?:is|are) no|i (?:do not|don't|cannot|can't)"
    r"|(?:multiple|several|more than one) (?:options?|answers?|choices?)"
    r"|all (?:of )?(?:the |these )?(?:options|answers|choices) (?:are|seem) (?:wrong|incorrect|false))\b"
)


def unite(*letters: str) -> str:
    """Letters, each once."""
    return "".join(dict.fromkeys("".join(letters)))


class OptionNames:
    """The options of one question: a text to the letters of those that it names."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.texts = {letter: clean(text) for letter, text in options.items()}
        self.letters: dict[str, str] = {}  # by text, whose it is
        for letter, text in self.texts.items():
            key = _normalised(text).rstrip(" .,;:!\"'")
            if key and not (len(key) == 1 and key.isalpha()):
                self.letters[key] = self.letters.get(key, "") + letter
        self.words = {word for key in self.letters for word in re.findall(r"\w{2,}", key)}
        self.longest_first = sorted(self.letters, key=len, reverse=True)

    def named(self, said: str, alone: bool = False, final: bool = False) -> str:
        """The letters of the options that `said` starts with, each once; "" for none of them.

        A letter that no option has is a finding as well ("the answer is F" isn't answered by what was said before),
        and so is a refusal, as a letter of its own. With `alone`, the answer must fill all of `said`; else other words
        may follow. With `final`, a few words that have nothing of any option refuse.
        """
        if groups := self._groups(said, alone):
            return unite(*groups)
        if not alone and _REFUSAL.match(_normalised(said)):
            return _NEITHER
        letters, label = self._lettered(said.lstrip(_OPENING), alone)
        if letters:
            return self._with_label(letters, label, alone)
        few = re.findall(r"\w+", said.casefold())
        refuses = final and said and len(few) < 9 and self.words and self.words.isdisjoint(few)
        return _NEITHER if refuses and not re.search(r"\d|\b(?:[A-HJ-Z]|I(?! [a-z]))\b|above", said) else ""

    # -- texts

    def _groups(self, said: str, alone: bool = False) -> list[str]:
        """For each option's text that `said` starts with (one, or two joined by "and"), who has that text."""
        text = _normalised(said)
        for key in self.longest_first:
            if text.startswith(key) and (groups := self._ended(key, text[len(key) :], alone)):
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
            torn = _TORN.match(after)
            return [] if torn and torn["other"] != key else [letters]
        return [letters] if (_FULL_END if alone else _TEXT_END).match(after) else []

    # -- letters

    def _lettered(self, said: str, alone: bool) -> tuple[str, str]:
        """The letters that `said` starts with, and what follows the first: its option's text, or a reason.

        ("", "") where a word starts, or a letter that means something else, or one that is denied.
        """
        prefix = _PREFIX.match(said)
        match = _LETTER.match(said, prefix.end() if prefix else 0)
        if match is None:
            return "", ""
        letter, after = match["letter"].upper(), said[match.end() :]
        own, label = self.texts.get(letter, ""), _MARKS.sub("", after, count=1)
        if not self._is_answer(match, after, label, own):
            return "", ""
        # Further letters stand beside the first, or one labels a second option after the first one's text.
        another, end = "", match.end("letter")
        while beside := _ANOTHER.match(said, end):
            another, end = another + beside["letter"], beside.end()
        if another and (denied := _DENIED.match(said, end)):
            if _PLURAL.search(denied[0]):  # "A and B are wrong", but "C, and B is wrong"
                return "", ""
            another = another[:-1]
        if alone and not _ONLY_LETTERS.fullmatch(said, end):
            another = ""
        labelled = _LABELLED.match(said, match.end("letter"))
        if not another and labelled and (text := self.texts.get(labelled["letter"])) is not None:
            first = labelled["first"]
            named = text.casefold().startswith(first.casefold()) if text else first[0].isupper()
            another = labelled["letter"] if named else ""
        if alone and not another and not _stands_alone(match, after, label, own):
            return "", ""
        return unite(letter, another), label

    def _is_answer(self, match: re.Match[str], after: str, label: str, own: str) -> bool:
        """Whether the letter ends as an answer's does, and is no pronoun, genus ("E. coli") or placeholder."""
        letter, closed = match["letter"], match["close"].strip("'")
        if letter.upper() in _PLACEHOLDERS + "I" and letter.upper() not in self.texts:
            return False
        if re.match(r"[A-Za-z0-9_]", after):
            return False
        if own and _starts(label, own):  # which may itself begin with a denial, or be a species
            joined = closed or (after[:1] in " -" and _starts(after.lstrip(" -"), own))
            if _TEXT_DENIED.match(label, len(own.strip(" ."))):
                return False
        else:
            joined = closed
            name = _SPECIES.match(after)
            if _DENIED.match(after) or (name and not _COMMON_WORD.fullmatch(name["name"])):
                return False
        end = _PRONOUN_END if letter in "Ii" else _END if letter.isupper() else _SMALL_END
        return bool(joined) or end.match(after) is not None

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
        if own and alone and label and len(letters) == 1 and not re.match(r"because|since", label):
            # The line's text must begin as the option does, or hold it.
            said, expected = _normalised(label), _normalised(own).rstrip(" .")
            if said.split()[:1] != expected.split()[:1] and expected not in said:
                return ""
        return letters


def _stands_alone(match: re.Match[str], after: str, label: str, own: str) -> bool:
    """Whether no more than the letter and its option's text stands there, and nothing rejects it."""
    if not label:
        return True
    if label.split()[0] in ("and", "or", "is", "are"):
        return False
    if own and _starts(label, own):
        if own.casefold() in _JUDGEMENTS and _JUDGEMENT_END.match(label, len(own)):
            return True
        # "A. Aspirin is an NSAID" describes an option.
        return not (REJECTED.match(label, len(own)) or _PREDICATE.match(label, len(own.strip(" ."))))
    if match["letter"].isupper() and re.match(r"[,.]? (?:- )?(?:because|since)\b", after):
        return True
    labelled = match["close"].strip("'\"") or (match["letter"].isupper() and _WHOLE_END.match(after))
    return bool(labelled) and not REJECTED.match(label)


def _starts(text: str, own: str) -> bool:
    return text.casefold().startswith(own.strip(" .").casefold())


def _normalised(text: str) -> str:
    """In small letters, without markup, quotes, brackets, articles and adverbs at the start."""
    plain = " ".join(re.sub(r"[*`$_]+", "", text).casefold().split())
    return plain[_START.match(plain).end() :]  # type: ignore[union-attr]
