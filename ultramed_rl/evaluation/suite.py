"""The questions of an evaluation: every task's items, each in one or several orders of its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ultramed_rl.config.benchmarks import Benchmarks, TaskChoice
from ultramed_rl.evaluation.choices import reorder, shuffled_orders
from ultramed_rl.evaluation.items import Item, Task
from ultramed_rl.evaluation.load import Loaded, load_items
from ultramed_rl.evaluation.tasks import find_task
from ultramed_rl.models.tokenizer import ChatTokenizer, encode_continuations
from ultramed_rl.records import Message, Prompt

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """An item in one order of its options. `place` counts the item's orders, 0 is the data's own; `order[k]` is
    where the option at place k stands there."""

    task: Task
    item: Item
    place: int
    order: tuple[int, ...]

    @property
    def question_id(self) -> str:
        return f"{self.task.name}/{self.item.item_id}/{self.place}"


@dataclass(frozen=True)
class AskedTask:
    """A task with the items that are asked, and counts of its rows by what became of them."""

    task: Task
    uris: tuple[str, ...]
    loaded: Loaded
    questions: tuple[Question, ...]


def load_suite(config: Benchmarks, seed: int) -> tuple[AskedTask, ...]:
    """Every task of a config. Raises ValueError for an unknown task or data that cannot be used."""
    return tuple(_ask(choice, config.orders, seed) for choice in config.tasks)


def _ask(choice: TaskChoice, orders: int, seed: int) -> AskedTask:
    task = find_task(choice.name)
    uri = choice.uri
    if uri == "offline":
        uri = task.offline
        if not uri:
            raise ValueError(
                f"task {task.name!r}: no package holds its rows; name a file or a hub set as its uri"
            )
    loaded = load_items(task, uri, limit=choice.limit, seed=seed)
    extra = orders if task.shuffles else 0
    questions = [
        Question(task, reorder(item, order) if task.form == "choice" else item, place, order)
        for item in loaded.items
        for place, order in enumerate(shuffled_orders(item.item_id, len(item.options), extra, seed))
    ]
    return AskedTask(task, (uri,) if uri else task.uris, loaded, tuple(questions))


def likelihood_questions(suite: Sequence[AskedTask]) -> list[Question]:
    """The questions that have options to weigh; the others cannot be asked for likelihoods."""
    return [q for asked in suite if asked.task.continuations is not None for q in asked.questions]


def all_questions(suite: Sequence[AskedTask]) -> list[Question]:
    """The questions of all tasks."""
    return [question for asked in suite for question in asked.questions]


def encode_options(tokenizer: Any, question: Question) -> tuple[Tokens, tuple[Tokens, ...]]:
    """The question's context and the texts of its options as token ids, for likelihoods."""
    assert question.task.continuations is not None
    asked = question.task.continuations(question.item)
    context, endings = encode_continuations(tokenizer, asked.context, asked.endings)
    return tuple(context), tuple(map(tuple, endings))


def encode_question(tokenizer: ChatTokenizer, question: Question, system: str | None) -> Prompt:
    """The chat that asks for an answer with its reasoning."""
    asked = Message(role="user", content=question.task.ask(question.item))
    before = (Message(role="system", content=system),) if system is not None else ()
    messages = (*before, asked)
    tokens = tuple(tokenizer.encode_chat(messages))
    return Prompt(question.question_id, messages, tokens, question.item.answer or None, question.task.name)


def check_room(lengths: Sequence[tuple[str, int]], max_length: int, answer: int) -> None:
    """Make sure before an engine starts that every question fits the context beside its answer.

    Args:
        lengths: each question's task and tokens.

    Raises:
        ValueError: some don't; an evaluation of the others alone would compare with nothing.
    """
    room = max_length - answer
    longest: dict[str, list[int]] = {}
    for task, length in lengths:
        if length > room:
            longest.setdefault(task, []).append(length)
    if longest:
        found = ", ".join(f"{len(n)} of {task} (up to {max(n)} tokens)" for task, n in longest.items())
        most = max(map(max, longest.values()))
        raise ValueError(
            f"benchmarks: {found} exceed policy.max_length={max_length} less {answer} for the answer; set "
            f"policy.max_length to {most + answer} or more, or shorten the protocol's max_new_tokens"
        )
