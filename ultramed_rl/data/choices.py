"""Multiple-choice questions in any form that data sets have: the options, and the one that a row's key names.

A key alone doesn't say how it is meant: 1 is the first option or the second, "A" a letter or a blood group. All rows
of a source do: `settle_keys` reads them, and then each is read again with the `Keys` that this gives.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations, count, zip_longest
from string import ascii_lowercase, ascii_uppercase
from typing import Any, Literal

from ultramed_rl.data.chats import MISFITS_ALLOWED, Misfit, check_text
from ultramed_rl.data.files import Row, SourceError
from ultramed_rl.data.sources import read_placed_rows
from ultramed_rl.data.transcripts import parse_printed
from ultramed_rl.data.vignettes import CSV_RESIDUE

FirstPlace = Literal[0, 1, "auto"]
Reading = Literal["label", "text", 0, 1]  # the option's own label, its text, or its place from 0 or from 1
_MEANT: dict[Reading, str] = {
    "label": "labels of options",
    "text": "texts of options",
    0: "places from 0",
    1: "places from 1",
}
_READINGS = tuple(_MEANT)
_LABELS, _TEXTS = ("letter", "label", "key", "aid", "id"), ("content", "text", "value", "atext", "option")
_NUMBERS = tuple(map(str, range(len(ascii_uppercase) + 1)))
_ORDERS = (ascii_uppercase, ascii_lowercase, _NUMBERS, _NUMBERS[1:])
_LINE = re.compile(r"([A-Z])\.(?: (.*)|$)")
_LABEL = re.compile(r"\(?(\w+)(?:[.):](?: (.*))?)?")  # B, (B), B. and "B. its text"
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
_OWN = re.compile(r"\s*\(?([A-Za-z])((?<=\(.)\)\s*|[.):]\s+)(?=\S)")
_NUMBER = re.compile(r"(\d{1,9})(?:\.0)?")


@dataclass(frozen=True)
class Options:
    """Texts in order, and the labels that the data give them: A, B, C, ... where they give none."""

    texts: tuple[str, ...]
    labels: Sequence[str] = ascii_uppercase

    @property
    def lettered(self) -> dict[str, str]:
        """The texts by letter: A, B, C, ..."""
        return dict(zip(ascii_uppercase, self.texts, strict=False))

    @property
    def bare(self) -> tuple[str, ...]:
        """The texts without letters of their own at their beginning."""
        return tuple(_OWN.sub("", text) for text in self.texts) if _own_letters(self.texts) else self.texts


def read_options(value: Any) -> Options:
    """The options in a list of texts; a mapping of labels to texts; a list of {letter, content}; lists under `label` and
    `text`; lines "A. ..."; or any of these as JSON. Labels are letters or numbers, perhaps after the same letters, as in
    opa, opb; of a table's struct None and of a mapping an empty text are no options.

    Raises:
        Misfit: option_gap, too_few_options, too_many_options, or another value (column).
    """
    if isinstance(value, str):
        value = split_options(value) if (parsed := parse_printed(value)) is None else parsed
    if (
        isinstance(value, list)
        and value
        and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)
    ):
        value = dict(value)  # a table's map
    if isinstance(value, Mapping) and isinstance(value.get("label"), list):
        pairs = [*zip_longest(value["label"], value.get("text") or ())]
    elif isinstance(value, Mapping):
        pairs = [(label, text) for label, text in value.items() if text not in (None, "")]
    elif isinstance(value, list) and value and all(isinstance(option, Mapping) for option in value):
        named = [_first(option, _LABELS) for option in value]
        named = [*ascii_uppercase[: len(value)]] if {*named} == {None} else named
        pairs = [*zip_longest(named, (_first(option, _TEXTS) for option in value))]
    elif isinstance(value, list | tuple):
        if (own := _own_letters(value)) != tuple(sorted(own)):
            raise Misfit(f"options begin with {', '.join(own)}, which is out of order", name="option_gap")
        pairs = [*zip_longest(ascii_uppercase[: len(value)], value)]
    else:
        raise Misfit(f"options are a {type(value).__name__}, not texts by label or in order")
    if len(pairs) < 2:
        raise Misfit(f"{len(pairs)} options; a choice needs two", name="too_few_options")
    if len(pairs) > len(ascii_uppercase):
        raise Misfit(f"{len(pairs)} options; there are 26 letters", name="too_many_options")
    texts = {str(label): check_text(text, "an option") for label, text in pairs}
    # What all labels begin with, as the op of opa and opb: the first and the last by spelling share it.
    shared = next(n for n in count() if min(texts)[: n + 1] != max(texts)[: n + 1]) if len(texts) > 1 else 0
    ends = {label[shared:]: text for label, text in texts.items()}
    for order in _ORDERS:
        labels = order[: len(pairs)]
        if {*ends} == {*labels}:
            return Options(tuple(ends[label] for label in labels), labels)
    raise Misfit(f"options {[*texts]!r:.60}, not A, B, ... nor 1, 2, ...", name="option_gap")


def _own_letters(texts: Sequence[Any]) -> tuple[str, ...]:
    """The letters that a list's texts begin with, "A. ..." or "(b) ...", where they are those of its places in any order;
    else none."""
    matches = [_OWN.match(text) if isinstance(text, str) else None for text in texts]
    letters = tuple(match[1] for match in matches if match)
    orders = (ascii_uppercase[: len(texts)], ascii_lowercase[: len(texts)])
    return letters if "".join(sorted(letters)) in orders else ()


def _first(option: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((option[name] for name in names if option.get(name) is not None), None)


def split_options(text: str) -> tuple[str, ...]:
    """The options in lines "A. ...", "B. ...", ...; a line without the next letter continues the one before."""
    options: list[str] = []
    for line in CSV_RESIDUE.sub("", text).lstrip("\n").split("\n"):
        match = _LINE.match(line)
        if match and match[1] == ascii_uppercase[len(options) % 26]:
            options.append(match[2] or "")
        elif not options:
            raise Misfit(f"options start with {line!r:.40}, not with 'A. '", name="option_gap")
        else:
            options[-1] += "\n" + line
    return tuple(options)


def without_options(question: str, options: Options) -> str:
    """MedXpertQA's question without the options that it repeats at its end, "Answer Choices: (A) ... (B) ...".

    A tail that doesn't hold every letter, in order and from its start, is part of the question. So is a tail that would
    leave no question.
    """
    stem, _, tail = question.rpartition("\nAnswer Choices:")
    if not (stem.strip() and tail.lstrip().startswith("(A)")):
        return question
    places = [tail.find(f"({letter})") for letter in options.lettered]
    return stem.rstrip() if min(places) >= 0 and places == sorted(places) else question


def read_key(row: Mapping[str, Any], column: str) -> Any:
    """The key in a column (misfit `missing_key` for none, and for MedMCQA's -1)."""
    key = row.get(column)
    if key is None or key == -1 or (isinstance(key, str) and not key.strip()):
        missing = column if column not in row else None
        raise Misfit(f"column {column!r} holds no key", name="missing_key", column=missing)
    return key


# -- keys --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keys:
    """How a source's keys are read: those that are numbers in one way, or in none; words in the first way that reads
    them."""

    numbers: Reading | None = 0
    words: tuple[Reading, ...] = ("label", "text")

    def place(self, key: Any, options: Options) -> int:
        """The place of the option that the key names, from 0.

        Raises:
            Misfit: bad_letter: it names none, or several.
        """
        named = _named(key := _single(key), options)
        readings = self.words if _number(key) is None else [self.numbers]
        for reading in readings:
            if reading in named:
                return named[reading]
        counted = f", and numbers count from {self.numbers}" if self.numbers in (0, 1) else ""
        labels = " to ".join(options.labels[place] for place in (0, len(options.texts) - 1))
        raise Misfit(f"the key is {key!r:.40}, the options are {labels}{counted}", name="bad_letter")


def settle_keys(
    parse: Callable[[Row, Keys], object],
    uris: Sequence[str],
    first_place: FirstPlace,
    key: str,
    limit: int | None = None,
) -> Keys:
    """How the keys of all rows behind the URIs are read: in the way that reads the most of them.

    Args:
        parse: reads a row's key; raises Misfit for a row that doesn't fit.
        first_place: of keys that are numbers; auto: as the rows have it.
        key: of the config, which sets the first place.
        limit: of each source, at most so many rows.

    Raises:
        SourceError: an unreadable source; or two ways read as many keys, and not all in the same sense.
    """
    votes = _Votes()
    for uri in uris:
        for _, row in read_placed_rows(uri, limit):
            with suppress(Misfit):
                parse(row, votes)
    return votes.settle(first_place, ", ".join(uris), key)


@dataclass(frozen=True)
class _Votes(Keys):
    """Counts which ways of reading would read how many keys; its own places mean nothing."""

    rows: Counter[bool] = field(default_factory=Counter)  # keys that are numbers, and others
    counts: Counter[tuple[bool, Reading]] = field(default_factory=Counter)
    # Ways that gave a key two meanings.
    differ: set[tuple[bool, Reading, Reading]] = field(default_factory=set)

    def place(self, key: Any, options: Options) -> int:
        is_number = _number(key := _single(key)) is not None
        named = _named(key, options)
        self.rows[is_number] += 1
        self.counts.update((is_number, reading) for reading in named)
        self.differ.update(
            (is_number, one, other) for one, other in combinations(named, 2) if named[one] != named[other]
        )
        return 0

    def settle(self, first_place: FirstPlace, where: str, key: str) -> Keys:
        """The ways that read the most."""
        words = self._ranked(False, ("label", "text"), where, "write the options' letters as keys")
        if first_place != "auto":
            return Keys(first_place, words)
        if 0 < self.rows[True] <= MISFITS_ALLOWED * self.rows.total():
            return Keys(None, words)  # strays among letters
        numbers = self._ranked(True, _READINGS, where, f"set {key} to 0 or 1")
        return Keys(numbers[0] if self.rows[True] else 0, words)

    def _ranked(
        self, is_number: bool, readings: tuple[Reading, ...], where: str, fix: str
    ) -> tuple[Reading, ...]:
        ranked = sorted(readings, key=lambda reading: -self.counts[is_number, reading])
        best = self.counts[is_number, ranked[0]]
        alike = [reading for reading in ranked if self.counts[is_number, reading] == best]
        # Numbers that label the options are no places.
        if "label" in alike and is_number:
            return tuple(ranked)
        for one, other in combinations(alike, 2):
            if (is_number, one, other) in self.differ:
                raise SourceError(
                    f"source {where!r}: its keys may be {_MEANT[one]} or {_MEANT[other]}: either reads {best} of "
                    f"{self.rows[is_number]}, and not in the same sense; {fix}"
                )
        return tuple(ranked)


def _single(key: Any) -> Any:
    """The one thing in a list of one."""
    return key[0] if isinstance(key, list) and len(key) == 1 else key


def _number(key: Any) -> int | None:
    if isinstance(key, bool):
        return None
    if isinstance(key, str):
        match = _NUMBER.fullmatch(key.strip())
        return int(match[1]) if match else None
    return int(key) if isinstance(key, int) or (isinstance(key, float) and key.is_integer()) else None


def _named(key: Any, options: Options) -> dict[Reading, int]:
    """By each way of reading a key, the place of the option that it names."""
    named: dict[Reading, int] = {}
    size, number = len(options.texts), _number(key)
    said = _plain(
        CSV_RESIDUE.sub("", key) if isinstance(key, str) else str(key if number is None else number)
    )
    texts, labels = [*map(_plain, options.bare)], [*map(_plain, options.labels[:size])]
    match = _LABEL.fullmatch(said if number is None else str(number))
    if match and match[1] in labels:
        place = labels.index(match[1])
        if match[2] in (None, "", texts[place], _plain(options.texts[place])):
            named["label"] = place
    if texts.count(said) == 1:
        named["text"] = texts.index(said)
    if number is not None:
        named |= {first: number - first for first in (0, 1) if 0 <= number - first < size}
    return named


def _plain(text: str) -> str:
    return " ".join(text.translate(_QUOTES).split()).casefold().removesuffix(".")
