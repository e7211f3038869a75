"""UltraMedical's records, read and written by structure; multiple-choice questions as a model writes them; and the instruction of
any row, wherever its columns are.

{"id", "type", "conversations": [{"from": "human", ...}, {"from": "gpt", ...}], "answer", "score"}; a
multiple-choice question is its stem, a blank line, and a line "A. ..." per option.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from string import ascii_uppercase
from typing import Any, TypeVar

from ultramed_rl.config.factory import Columns
from ultramed_rl.data.chats import Misfit, read_turns
from ultramed_rl.data.choices import Keys, Options
from ultramed_rl.data.factory.step import Miss, Row, Schema, object_schema, read_text
from ultramed_rl.data.vignettes import Instruction, last_run, plain_option

CHOICE_TYPES = ("Exam", "Literature")
NO_JSON = Miss("unreadable_reply", "it is not a JSON object of the form asked for")
AnyRow = TypeVar("AnyRow", bound=Mapping[str, Any])
Removal = TypeVar("Removal")  # Contaminated, Repeated, or any other record of why
_TEXT = {"type": "string"}
_OPTION = re.compile(r"([A-Z])\. (\S.*)")


def question_text(row: Row) -> str:
    """What the record's human asks, trimmed.

    Raises:
        Misfit: the record isn't one question with at most one answer.
    """
    turns = read_turns(dict(row), "conversations")
    roles = [turn["role"] for turn in turns]
    if roles not in (["user"], ["user", "assistant"]):
        raise Misfit(f"its turns are of {roles}; it needs one of human and perhaps one of gpt", name="order")
    return turns[0]["content"]


def read_instruction(row: Row) -> Instruction:
    """The record's question. It is multiple choice if its text ends in lettered options and its `answer` is one of their
    letters, or its text. Raises Misfit: as `question_text`; or its type is Exam or Literature, and it has no options or
    no key."""
    text = question_text(row)
    stem, options = split_options(text)
    key = row.get("answer")
    with suppress(Misfit):  # a number would be a place from nobody knows where
        place = Keys(numbers=None).place(key, Options(tuple(options.values())))
        return Instruction(stem, options, [*options][place])
    if row.get("type") in CHOICE_TYPES:
        lack = f"its answer {key!r:.20} is none of its letters" if options else "its text ends in no options"
        raise Misfit(f"of type {row['type']}, but {lack}", name="key")
    return Instruction(text)


def split_options(text: str) -> tuple[str, dict[str, str]]:
    """Stem and options of a text that ends in two or more lines A., B., ...; else the text and no options. What isn't in
    that form stays in the stem whole: no line is ever dropped for its place alone."""
    lines = text.strip().split("\n")
    run = last_run([line.strip() for line in lines], _OPTION, over="nothing", least=2)
    stem = "\n".join(lines[: run.start]).rstrip()
    if not run.texts or run.end < len(lines) or not stem:
        return text.strip(), {}
    return stem, dict(zip(ascii_uppercase, run.texts, strict=False))


def new_row(row_id: str, kind: str, instruction: Instruction, **more: Any) -> Row:
    """A record that awaits its answer and its score; `more` are further columns."""
    human = [{"from": "human", "value": instruction.text}]
    return {
        "id": row_id,
        "type": kind,
        "conversations": human,
        "answer": instruction.key,
        "score": None,
        **more,
    }


def answered_row(row: Row, answer: str) -> Row:
    """The record with this answer, in place of the one that it may have had."""
    turns = [{"from": "human", "value": question_text(row)}, {"from": "gpt", "value": answer}]
    return {**row, "conversations": turns}


def set_of(row: Row) -> str:
    """The set that a record belongs to: the part of its id before the first comma, else its type."""
    before, comma, _ = str(row.get("id") or "").partition(",")
    return before if comma and before else str(row.get("type") or "")


# -- as a model writes them: {"question", "options", "answer"} ----------------------------------------------


def choice_schema(letters: str, *, needed: bool = True, explained: bool = False) -> Schema:
    """The JSON schema of a question with these option letters.

    Args:
        needed: all parts must be there; else an empty object fits as well (and so do halves of a question).
        explained: there may be an explanation.
    """
    options = object_schema(dict.fromkeys(letters, _TEXT))
    parts = {"question": _TEXT, "options": options, "answer": {"type": "string", "enum": list(letters)}}
    explanation = {"explanation": _TEXT} if explained else {}
    return object_schema({**parts, **explanation}, list(parts) if needed else [])


def read_question(reply: Mapping[str, Any], letters: str) -> Instruction | Miss:
    """The question in a reply, or the first thing wrong with it: no stem, options that lack or say the same,
    no single letter as the answer, a stem that holds the options, or one that reads differently in a record."""
    stem, options = read_text(reply.get("question")), _options(reply.get("options"), letters)
    key = read_text(reply.get("answer")).rstrip(".")
    if not stem:
        return Miss("no_question", "the question is empty")
    if options is None:
        return Miss("bad_options", f"the options are not texts under the letters {', '.join(letters)}")
    if len({plain_option(text) for text in options.values()}) < len(letters):
        return Miss("same_options", "two of the options say the same")
    if key not in options:
        return Miss("bad_letter", f"the answer is not one letter out of {', '.join(letters)}")
    if split_options(stem)[1]:
        return Miss("options_in_question", "the question repeats the options; they belong under options only")
    question = Instruction(stem, options, key)
    if split_options(question.text) != (stem, options):
        return Miss("bad_form", "question and options cannot be told apart when they are written as lines")
    return question


def _options(value: Any, letters: str) -> dict[str, str] | None:
    """The options, each on one line and without its own letter in front if all have theirs."""
    if not isinstance(value, Mapping) or {*value} != {*letters}:
        return None
    texts = {letter: " ".join(read_text(value[letter]).split()) for letter in letters}
    # "C. difficile" is an option and no label, unless the others have labels too.
    bare = {letter: re.sub(rf"^\(?{letter}[.):]\s*", "", text) for letter, text in texts.items()}
    if all(bare[letter] != texts[letter] for letter in letters):
        texts = bare
    return texts if all(texts.values()) else None


# -- of any rows, wherever their columns are ----------------------------------------------------------------


def named_instruction(row: Mapping[str, Any], columns: Columns) -> tuple[str, str]:
    """(id, instruction) of a row. Of a chat the instruction is its first user turn. Raises ValueError: no id, or neither a
    text nor a chat in the instruction's column."""
    name, value = row.get(columns.id), row.get(columns.instruction)
    if name in (None, ""):
        raise ValueError(
            f"row {str(dict(row))[:80]}: nothing in column {columns.id!r}; name the ids' column in columns.id"
        )
    if isinstance(value, str):
        return str(name), value
    try:
        turns = read_turns(dict(row), columns.instruction)
        return str(name), next(turn["content"] for turn in turns if turn["role"] == "user")
    except (Misfit, StopIteration) as error:
        why = f" ({error})" if isinstance(error, Misfit) else ""
        raise ValueError(
            f"row {name}: column {columns.instruction!r} holds {value!r:.40}, neither a text nor a chat with a user "
            f"turn{why}; name the instructions' column in columns.instruction"
        ) from None


def split_removed(
    rows: Iterable[AnyRow], columns: Columns, removals: Mapping[str, Removal]
) -> Iterator[tuple[AnyRow, Removal | None]]:
    """The rows in order, each with its removal, or with None if it stays.

    Args:
        rows: those that were searched, again.
        columns: where the rows' ids are; the ones that the search was given.
        removals: by the id of a row to remove, why. Each must be met once: rows and search belong together.

    Raises:
        ValueError: two rows of one id of `removals`; at the end, an id that no row has; or a row without an id or
            an instruction.
    """
    met: set[str] = set()
    for row in rows:
        name, _ = named_instruction(row, columns)
        if name in met:
            raise ValueError(f"id {name!r}: is to be removed and two rows have it; give every row its own id")
        if name in removals:
            met.add(name)
        yield row, removals.get(name)
    if len(met) < len(removals):
        missing = next(name for name in removals if name not in met)
        raise ValueError(
            f"id {missing!r}: is to be removed ({len(removals) - len(met)} such ids) and no row has it; give the "
            "rows that were searched, or search again"
        )
