"""What the words of a question carry, and whether two texts carry the same, by lists of words (words.txt) and by spelling.

text --> tokens in one spelling --> words of content, each with its role | words of grammar and of asking, left out
two texts --> what is in one alone, less other forms and slips --> nothing is left, nothing has changed places: the same

Words that no list knows are content, so what isn't understood keeps two texts apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

_TOKEN = re.compile(
    r"\d+(?:[.,]\d+)*|\.\d+|\b[aivx]-(?!\w)|[^\W\d_]+(?:'[^\W\d_]+)?|[<>≤≥%+]|(?<![\w)])-(?=\.?\d)|[,/]|[.;:?!\n]+"
)
_BREAKS = ".;:?!\n"
# Where "a" and "i" are a name, and neither article nor pronoun; a hyphen after them says so further on.
_NAMED = re.compile(
    r"\b(hepatitis|h(?:a?)emophilia|vitamin|type|group|class|factor|grade|stage|phase|influenza|protein|schedule|ig)[\s-]+"
    r"([aivx])\b(?![-'])",
    re.IGNORECASE,
)
_ACCENTS = re.compile("[\u0300-\u036f]")
_CAPITAL = re.compile(r"(?<=[a-z] )A(?=[\s?.,;:]|$)")  # "does A cause B"
_ENDING = re.compile(r"(?<=...)(?:ies|es|ed|ing|ment|ation|ion|ly|al|s|e|y)$")
_UNITS = {"day", "week", "month", "year", "hour", "minute", "dose", "tablet", "third", "half", "pack"}
_AUXILIARIES = "is are was were do does did should can could will would may must to not"
_ASKED = set(_AUXILIARIES.split())  # after a "when" that asks
# No slip: sulfate, sulfite.
_VOWEL_SLIP = re.compile(r"(?<=[aeiou])[aeiouy]|[aeiouy](?!(?:[std]e|ne|[ln])s?$)")
_KEYS = {
    key: (x, y) for y, row in enumerate(("qwertyuiop", "asdfghjkl", "zxcvbnm")) for x, key in enumerate(row)
}
_SPELLINGS = {"ae": "e", "oe": "e", "our": "or", "mould": "mold", "z": "s", "sulph": "sulf"}
_MOST_FORMS = 0.5  # words in one text alone, to the words of the shorter, that may be forms of others
_CACHED = 1 << 16  # words
_PREFIXES = {"a", "an", "in", "no"}  # "a typical" isn't "atypical"
_LONGEST_RUN = 5  # words that may be written as one, or by their first letters

_LISTS = defaultdict[str, list[list[str]]](list)
for _line in Path(__file__).with_name("words.txt").read_text(encoding="utf-8").splitlines():
    if _line and not _line.startswith("#"):
        _LISTS[_line.partition(":")[0]].append(_line.partition(":")[2].split())
_LINKS, _MARKS, _WEAK, _EMPTY, _ENDINGS = (
    {word for words in _LISTS[name] for word in words}
    for name in ("links", "marks", "weak", "empty", "endings")
)
_EMPTY |= _LINKS | _MARKS | _WEAK
_ENDINGS.add("")
_SAME = {form: word for word, *forms in _LISTS["="] for form in forms}
_FORMS = {word: forms for word, *forms in _LISTS["="]}
_PHRASES = {
    form.replace("_", " "): word.replace("_", " ") for form, word in _SAME.items() if {*"_/"} & {*form}
}
_PHRASE = re.compile(rf"\b(?:{'|'.join(_PHRASES)})\b", re.IGNORECASE)
# Words that carry nothing, and others that are read as one, of which a slip is told, by their first letter.
_LISTED = defaultdict[str, list[str]](list)
for _word in sorted(_EMPTY | {form for form, word in _SAME.items() if len(form) > 5 and not word.isdigit()}):
    if len(_word) > 3:
        _LISTED[_word[0]].append(_word)
_TWINS = [set(pair.split("/")) for words in _LISTS["twins"] for pair in words]
# Sentences that greet, thank or say that a question is coming.
_POLITE = re.compile(
    r"(?:(?<=[.?!:,\n])|^)\s*(?:(?:thank you|thanks(?! to)|(?:kind|best) regards)[^.?!:\n]*|i have an? (?:\w+ )?question"
    r"|you are an?\b[^.?!:\n]*\b(?:assistant|expert)|(?:please )?(?:answer|choose|select|pick|mark)\b[^.?!:\n]*"
    r"\b(?:question|option|answer|letter))\s*(?:[.?!:]|$)|\b(?:please|pls) help(?: me)?\b",
    re.IGNORECASE,
)


class Content(NamedTuple):
    """What a text says: words of content in order, the word that says what each is to the others, and words that carry
    something where there are few others; and all words."""

    words: tuple[str, ...]
    roles: tuple[str, ...]
    weak: tuple[str, ...]
    plain: tuple[str, ...]


def read_tokens(text: str) -> list[str]:
    """A text's words, numbers, signs and breaks in small letters without accents; a letter that is a name ends in "-"."""
    folded = _CAPITAL.sub("A-", unicodedata.normalize("NFKC", text).replace("’", "'"))
    folded = _NAMED.sub(r"\1 \2-", folded).casefold()
    if not folded.isascii():
        folded = _ACCENTS.sub("", unicodedata.normalize("NFKD", folded))
    return _TOKEN.findall(folded)


def read_content(text: str) -> Content:
    """Names, numbers, signs and negations of a text, in one spelling; grammar and what any question says are left out."""
    tokens = read_tokens(_PHRASE.sub(lambda match: _PHRASES[match[0].casefold()], _POLITE.sub("", text)))
    words, roles, weak, plain = list[str](), list[str](), list[str](), list[str]()
    role = ""
    for place, token in enumerate(tokens):
        if token[-1] in _BREAKS:
            role = ""
            continue
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        word = _spell(token)
        if word == "one" and following.rstrip("s") in _UNITS:
            word = "1"
        elif word == "when" and following not in _ASKED:
            word = "at"  # no question
        elif word == "called" and not {"what", "which"} & set(plain):
            continue  # "is called:" asks for a name
        plain.append(word)
        if word not in _EMPTY and word.removesuffix("s") not in _EMPTY:
            words.append(word)
            roles.append(role)
            role = word
        elif word in _MARKS:
            role = word
        elif word in _LINKS:
            role = roles[-1] if roles else role
        elif word in _WEAK and (word, following) != ("tell", "me"):
            weak.append(word)
    return Content(tuple(words), tuple(roles), tuple(weak), tuple(plain))


@lru_cache(maxsize=_CACHED)
def _spell(token: str) -> str:
    """One spelling of a word or number."""
    if token[0].isdigit() or token[0] == ".":
        number = token.replace(",", "")
        return (number.rstrip("0").rstrip(".") if number.count(".") == 1 else number).lstrip("0") or "0"
    word = "not" if token.endswith("n't") else token.removesuffix("'s")
    word = _SAME.get(word, word)
    if word in _EMPTY or word in _FORMS:
        return word
    slip = next((form for form in _LISTED[word[0]] if _is_slip(word, form)), "")
    if slip:
        return _SAME.get(slip, slip)
    plain = word
    for long, short in _SPELLINGS.items():
        plain = plain.replace(long, short)
    return word if plain in _EMPTY else plain


def _one_word(a: str, b: str) -> bool:
    """Whether two words are forms of one: by their endings, or by a slip of the hand."""
    if a[0] != b[0] or {a, b} in _TWINS:
        return False
    shared = _shared(a, b)
    ends = {word[shared:].removeprefix(word[shared - 1]) for word in (a, b)}  # "blot", "blotting"
    formed = ends <= _ENDINGS and ends != {"", "is"}  # "digital", "digitalis"
    return (formed and shared >= (3 if ends <= {"", "s", "d"} else 4)) or _is_slip(a, b)


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    """How many letters two words, or words two texts, begin with alike."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _is_slip(a: str, b: str, *, usual: bool = False) -> bool:
    """Whether two words are one but for a letter left out, added, doubled or beside the right one, a vowel, or two letters
    exchanged; short ones only where one is `usual`, as names differ by as little."""
    shorter = min(len(a), len(b))
    if shorter < (3 if usual else 4) or abs(len(a) - len(b)) > 1 or {a, b} in _TWINS:
        return False
    shared = _shared(a, b)
    left, right = a[shared:], b[shared:]
    same = _shared(left[::-1], right[::-1])
    left, right = left[: len(left) - same], right[: len(right) - same]
    if (shared and left + right == a[shared - 1]) or (len(left) == 2 and left == right[::-1]):
        return True
    if len(left) == len(right) == 1:
        (x, y), (other_x, other_y) = _KEYS.get(left, (0, 9)), _KEYS.get(right, (99, 9))
        near = abs(x - other_x) <= 1 and abs(y - other_y) <= 1
        vowels = shared > (2 if shorter < 9 or a[2:5] == "cro" else 0)  # microcytic, macrocytic
        return (usual or shorter > 5) and (
            near or (vowels and all(_VOWEL_SLIP.match(word, shared) for word in (a, b)))
        )
    return (usual or shorter > 4) and len(left) + len(right) == 1


def one_slip(a: Content, b: Content) -> bool:
    """Whether two texts are the same words but for one that any question may have, in which the hand slipped or that was cut
    in two: "dofs", "wha t". In its place among the others it is no other word."""
    first = _shared(a.plain, b.plain)
    last = _shared(a.plain[first:][::-1], b.plain[first:][::-1])
    middles = [content.plain[first : len(content.plain) - last] for content in (a, b)]
    if not all(0 < len(words) <= 2 for words in middles):
        return False
    for word, other in permutations(map("".join, middles)):
        usual = [form for form in (word, *_FORMS.get(word, ())) if len(form) > 3]
        if usual and _is_listed(word) and (other == word or not _is_listed(other)):
            return other.isalpha() and any(f == other or _is_slip(f, other, usual=True) for f in usual)
    return False


def _is_listed(word: str) -> bool:
    return word in _EMPTY or word in _FORMS


def left_over(a: Content, b: Content) -> tuple[list[str], list[str], dict[str, str]]:
    """Content words of `a` alone and of `b` alone, and which of `b`'s stand for which of `a`'s.

    Words are the same in any form, with a slip, in one word or several ("non immune"), or by their first letters.
    """
    ours, theirs = Counter(a.words), Counter(b.words)
    only_a, only_b = list((ours - theirs).elements()), list((theirs - ours).elements())
    if max(len(only_a), len(only_b)) <= 2 * _LONGEST_RUN:
        for short, long, plain in ((only_a, only_b, b.plain), (only_b, only_a, a.plain)):
            for word in short[:]:
                run = _run_for(word, plain, long)
                if run:
                    short.remove(word)
                    long[:] = [part for part in long if part not in run]
    again, forms = _forms_of(only_a, theirs), _forms_of(only_b, ours)
    only_a = [word for word in only_a if word not in again]
    only_b = [word for word in only_b if word not in forms]
    return only_a, only_b, forms


def _forms_of(only: Sequence[str], words: Iterable[str]) -> dict[str, str]:
    """Which of `only` stand for which of `words`, or say them again: numbers, letters and negations count each time."""
    starts = defaultdict[str, list[tuple[str, str]]](list)
    for word in words:
        for form in () if is_telling(word) else (word, *_FORMS.get(word, ())):
            starts[form[0]].append((form, word))
    forms = dict[str, str]()
    for other in only:
        for form in () if is_telling(other) else (other, *_FORMS.get(other, ())):
            twin = next(
                (word for same, word in starts[form[0]] if form == same or _one_word(same, form)), None
            )
            if twin is not None:
                forms.setdefault(other, twin)
    return forms


def _run_for(word: str, plain: Sequence[str], only: Sequence[str]) -> list[str]:
    """Of words in a row that `word` joins or abbreviates, those that are in `only`."""
    for size in range(2, _LONGEST_RUN + 1) if word.isalpha() else ():
        for first in range(len(plain) - size + 1):
            run = plain[first : first + size]
            if ("".join(run) == word and run[0] not in _PREFIXES) or (
                "".join(part[0] for part in run) == word
                and all(part in only or part in _EMPTY for part in run[1:])
                and run[0] in only
                and run[-1] in only
            ):
                return list(run)
    return []


def same_content(a: Content, b: Content, spare: int | None = None, *, places: bool = True) -> bool:
    """Of so many words of the one, the other may have one more; words have their places unless these are left out."""
    if not (a.words and b.words):
        return a.plain == b.plain
    if len(set(a.words) ^ set(b.words)) > _MOST_FORMS * min(len(a.words), len(b.words)) + 2 * _LONGEST_RUN:
        return False
    only_a, only_b, forms = left_over(a, b)
    more = only_a or only_b
    if more and (
        spare is None
        or (only_a and only_b)
        or spare * len(more) > min(len(set(a.words)), len(set(b.words)))
        or any(map(is_telling, more))
    ):
        return False
    if not places:
        return True
    # Words that have each other's role have changed places: "does A cause B", "does B cause A". One said twice has many.
    ours, theirs = _roles(a, {}), _roles(b, forms)
    moved = {(ours[word], theirs[word]) for word in ours.keys() & theirs.keys() if ours[word] != theirs[word]}
    return not any((other, own) in moved or {own, other} == {"from", "to"} for own, other in moved)


def _roles(content: Content, forms: Mapping[str, str]) -> dict[str, str]:
    """The roles of words that stand there once."""
    words = [forms.get(word, word) for word in content.words]
    count = Counter(words)
    named = zip(words, content.roles, strict=True)
    return {word: forms.get(role, role) for word, role in named if count[word] == 1}


def same_weak(a: Content, b: Content) -> bool:
    """Whether two short open questions want the same of their subject: "what is marijuana", "how is marijuana taken"."""
    return all(
        len(_forms_of(ours, theirs)) == len(set(ours))
        for ours, theirs in ((a.weak, b.weak), (b.weak, a.weak))
    )


def is_telling(word: str) -> bool:
    """Whether one such word makes another question of any: a number, a sign, a letter, a negation."""
    return len(word) == 1 or not word.isalpha() or word == "not"


@lru_cache(maxsize=_CACHED)
def word_marks(word: str) -> tuple[str, ...]:
    """A word's beginning and its end, of which a slip or another form leaves one."""
    return tuple({word[:4]: 0, _ENDING.sub("", word)[-4:]: 0})
