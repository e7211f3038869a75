"""A benchmark's items: how a row becomes one, how a task asks it, and what an answer was read as.

Texts stay as the data has them, spaces at their ends included: the likelihood form must be the harness's to
the letter. Only the chat form trims them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from ultramed_rl.data.chats import Misfit, check_text, read_column
from ultramed_rl.data.choices import Keys, read_key, read_options, without_options
from ultramed_rl.evaluation.rubrics import Criterion
from ultramed_rl.records import Message

Form = Literal["choice", "factoid", "list", "statements", "preference", "chat", "rubric"]
READ_GREEDILY = {"statements", "preference", "chat"}  # forms whose greedy answers a judge reads
JUDGED = READ_GREEDILY | {"rubric"}  # forms whose answers a language model reads
Problem = Literal["", "none", "contradiction", "truncated"]
INSTRUCTION = (
    'Think step by step, and end with the sentence "So, the answer is X.", where X is the letter of the '
    "right option."
)


@dataclass(frozen=True)
class Item:
    """One question."""

    item_id: str
    question: str
    options: tuple[str, ...] = ()  # of a choice, the texts in their order
    answer: str = ""  # of a choice, the right one's letter
    context: str = ""
    subject: str = ""
    expected: tuple[tuple[str, ...], ...] = ()  # names accepted for each entity that a factoid or list wants
    required: tuple[str, ...] = ()  # K-QA's statements that must be in an answer
    optional: tuple[str, ...] = ()  # those that may be
    turns: tuple[Message, ...] = ()  # the chat that is asked instead of the question alone
    criteria: tuple[Criterion, ...] = ()  # of a rubric
    tags: tuple[str, ...] = ()  # what its figures are also reported by
    follow_up: str = ""  # MT-Bench's second turn, asked after the answer to the first
    beside: tuple[
        str, ...
    ] = ()  # others' answers: AlpacaEval's baseline's, or MT-Bench's reference for each turn

    @property
    def lettered(self) -> dict[str, str]:
        """The options by letter: A, B, C, ..."""
        return dict(zip(ascii_uppercase, self.options, strict=False))


@dataclass(frozen=True)
class Continuations:
    """A choice as a likelihood question: `context`, and after it one text per option, in the item's order."""

    context: str
    endings: tuple[str, ...]


@dataclass(frozen=True)
class AnswerReading:
    """What an answer's text was read as: a letter, or names; none of them with the reason in `problem`."""

    given: tuple[str, ...]
    problem: Problem = ""


def join_parts(*parts: str) -> str:
    """The parts that say something, with a blank line between them."""
    return "\n\n".join(part.strip() for part in parts if part.strip())


def ask_choice(item: Item) -> str:
    """The chat form: context, stem, lines "A. ...", and how to answer (as UltraMedical's answers end)."""
    options = "\n".join(f"{letter}. {' '.join(text.split())}" for letter, text in item.lettered.items())
    return join_parts(item.context, item.question, options, INSTRUCTION)


@dataclass(frozen=True)
class Task:
    """A benchmark."""

    name: str
    uris: tuple[str, ...]  # where its rows are by default, on the hub
    # None for a row of another subject; a `Misfit` is raised for one that doesn't fit.
    read: Callable[[Row], Item | None]
    ask: Callable[[Item], str] = ask_choice  # the user message that asks for an answer with its reasoning
    form: Form = "choice"
    # The choice as lm-evaluation-harness asks it; None where there is nothing to choose.
    continuations: Callable[[Item], Continuations] | None = None
    shuffles: bool = False  # the order of options carries no meaning, so that it may be changed
    columns: tuple[str, ...] = ()  # the subjects that count singly in the paper's average
    subject_files: bool = False  # each of several files is named after its rows' subject
    numbered: bool = False  # an item without an id is called by its row's place, from 0
    drops_repeats: bool = False  # an item without a subject is dropped where it repeats an earlier one
    offline: str = ""  # where its rows are in an installed package
    # Of a file that holds more than the benchmark: the keys of its items by id, out of another file; None of any other.
    part_of: Callable[[str], Mapping[str, str] | None] = lambda source: None


def weigh_letters(context: str, item: Item) -> Continuations:
    """A choice as lm-evaluation-harness asks it: a text, the options in lines, "Answer:", and " A", " B", ..."""
    options = "".join(f"{letter}. {text}\n" for letter, text in item.lettered.items())
    return Continuations(f"{context}\n{options}Answer:", tuple(f" {letter}" for letter in item.lettered))


class Row(dict[str, Any]):
    """A row of a benchmark's data, by column, and how its key is read. Every reading raises `Misfit` for what doesn't fit."""

    def __init__(self, row: Mapping[str, Any], keys: Keys = Keys()) -> None:  # noqa: B008
        super().__init__(row)
        self._keys = keys

    def value(self, column: str) -> Any:
        """What a column holds, which must be there."""
        return read_column(self, column)

    def text(self, column: str) -> str:
        """The text in a column, as it is."""
        return check_text(self.value(column), f"column {column!r}")

    def optional(self, column: str) -> str:
        """The text in a column, and none where there is no such column or nothing in it."""
        return "" if self.get(column) is None else self.text(column)

    def question(self, column: str) -> str:
        """A column's text, which must say something (misfit `empty_question`)."""
        question = self.text(column)
        if not question.strip():
            raise Misfit(f"column {column!r} is empty", name="empty_question")
        return question

    def first_id(self, *columns: str) -> str:
        """The first id there is in these columns, as text, or nothing."""
        ids = (self[column] for column in columns if self.get(column) not in (None, ""))
        return check_text(str(next(ids, "")), "an id")

    def choice(
        self,
        question: str,
        options: Any,
        key: str,
        *,
        item_id: str = "id",
        context: str = "",
        subject: str = "",
    ) -> Item:
        """A choice out of columns: `question`, `key` and `item_id` name them, `options` too unless it holds the texts.

        Raises:
            Misfit: as `read_options` and `Keys.place`.
        """
        said, right = self.question(question), read_key(self, key)
        read = read_options(self.value(options) if isinstance(options, str) else options)
        answer = ascii_uppercase[self._keys.place(right, read)]
        return Item(self.first_id(item_id), without_options(said, read), read.texts, answer, context, subject)
