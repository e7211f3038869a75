"""The questions of an evaluation: every task's items, each in one or several orders of its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ultramed_rl.config.benchmarks import Benchmarks, TaskChoice
from ultramed_rl.evaluation.items import Item, Task, reorder, shuffled_orders
from ultramed_rl.evaluation.load import Loaded, find_uris, load_items
from ultramed_rl.evaluation.tasks import find_task
from ultramed_rl.models.tokenizer import ChatTokenizer, encode_continuations
from ultramed_rl.records import Message, Prompt
from ultramed_rl.token_ids import TokenIds

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """An item in one order of its options. `place` counts the item's orders, 0 is the data's own; the option at
    place k here stands at place `order[k]` in the data."""

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
    """Every task of a config.

    Raises:
        ValueError: an unknown task, one that no protocol asks, or data that cannot be used.
    """
    for choice in config.tasks:
        check_task(config, choice)  # all of them before the first one's data are read
    return tuple(_ask(config, choice, seed) for choice in config.tasks)


def task_problems(config: Benchmarks) -> list[str]:
    """What can be said against a config's tasks before their data are read: one line each."""
    problems = []
    for choice in config.tasks:
        try:
            check_task(config, choice)
        except ValueError as error:
            problems.append(f"benchmarks.tasks: {error}")
    return problems


def check_task(config: Benchmarks, choice: TaskChoice) -> Task:
    """The task of a choice.

    Raises:
        ValueError: there is none of that name, no protocol asks it, its data have no source, or its answers no judge.
    """
    task = find_task(choice.name)
    check_protocols(task, [protocol.type for protocol in config.protocols])
    find_uris(task, choice.uri)
    if task.form == "statements" and config.judge is None:
        raise ValueError(
            f"task {task.name!r}: needs a judge; set benchmarks.judge (model and base_url of an OpenAI-compatible "
            "API), or leave the task out"
        )
    return task


def check_protocols(task: Task, protocols: Sequence[str]) -> None:
    """Make sure that a task is asked at all. Raises ValueError where its results would be empty."""
    answering = {"statements": {"greedy"}}.get(task.form, {"greedy", "self_consistency"})
    if answering & set(protocols) or (task.continuations is not None and "likelihood" in protocols):
        return
    why = "a judge reads its greedy answers" if task.form == "statements" else "it has no options to weigh"
    raise ValueError(
        f"task {task.name!r}: benchmarks.protocols=[{', '.join(protocols)}] don't ask it, since {why}; add greedy, "
        "or leave the task out"
    )


def _ask(config: Benchmarks, choice: TaskChoice, seed: int) -> AskedTask:
    task = find_task(choice.name)
    loaded = load_items(task, choice.uri, limit=choice.limit, seed=seed)
    extra = config.orders if task.shuffles else 0
    questions = [
        Question(task, reorder(item, order) if task.form == "choice" else item, place, order)
        for item in loaded.items
        for place, order in enumerate(shuffled_orders(item.item_id, len(item.options), extra, seed))
    ]
    return AskedTask(task, tuple(find_uris(task, choice.uri)), loaded, tuple(questions))


def encode_options(tokenizer: Any, question: Question) -> tuple[Tokens, tuple[Tokens, ...]]:
    """The question's context and the texts of its options as token ids, for likelihoods."""
    assert question.task.continuations is not None
    asked = question.task.continuations(question.item)
    context, endings = encode_continuations(tokenizer, asked.context, asked.endings)
    return tuple(context), tuple(map(tuple, endings))


def encode_question(tokenizer: ChatTokenizer, question: Question, system: str | None) -> Prompt:
    """The chat that asks for an answer with its reasoning. It doesn't hold the key, which scorers that compare with
    a reference would read: reranking by them would be an oracle."""
    asked = Message(role="user", content=question.task.ask(question.item))
    before = (Message(role="system", content=system),) if system is not None else ()
    messages = (*before, asked)
    tokens = TokenIds(tokenizer.encode_chat(messages))
    return Prompt(question.question_id, messages, tokens, kind=question.task.name)


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
        questions = ", ".join(f"{len(n)} of {task} (up to {max(n)} tokens)" for task, n in longest.items())
        most = max(map(max, longest.values()))
        less = f" less {answer} for the answer" if answer else ""
        other = ", or lower the protocols' max_new_tokens" if answer else ""
        raise ValueError(
            f"benchmarks: {questions} exceed policy.max_length={max_length}{less}; set policy.max_length to "
            f"{most + answer} or more{other}"
        )
