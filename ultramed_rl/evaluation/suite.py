"""The questions of an evaluation: every task's items, each in one or several orders of its options.

rows --> a task's items --> counted, named, sampled --> questions
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, permutations
from math import factorial
from pathlib import Path
from random import Random
from string import ascii_uppercase
from typing import Any

from ultramed_rl.config.benchmarks import Benchmarks, TaskChoice
from ultramed_rl.data.chats import MISFITS_ALLOWED, FittingRows, Misfit
from ultramed_rl.data.choices import FirstPlace, Keys, settle_keys
from ultramed_rl.data.files import file_form
from ultramed_rl.data.likeness import normalise_text
from ultramed_rl.data.sources import list_sources
from ultramed_rl.evaluation.items import JUDGED, READ_GREEDILY, Item, Row, Task
from ultramed_rl.evaluation.tasks import find_task
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.models.tokenizer import encode_continuations


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
    """A task with the items that are asked, and counts of what became of its rows: before a limit took its sample.

    rows; misfit and misfit_NAME: not usable; left_out: of another subject or type; duplicate: dropped;
    repeated: as good as the same as an earlier item, but kept; same_options: kept with two options that say
    the same; items: the rest.
    """

    task: Task
    uris: tuple[str, ...]
    items: tuple[Item, ...]
    counts: dict[str, int]
    questions: tuple[Question, ...] = ()


def load_suite(config: Benchmarks, seed: int) -> tuple[AskedTask, ...]:
    """Every task of a config.

    Raises:
        ValueError: an unknown task, one that no protocol asks, or data that cannot be used.
    """
    tasks = [check_task(config, choice) for choice in config.tasks]  # before the first one's data are read
    suite = []
    for task, choice in zip(tasks, config.tasks, strict=True):
        loaded = load_items(task, choice.uri, choice.limit, seed, choice.first_place)
        extra = config.orders if task.shuffles else 0
        questions = [
            Question(task, reorder(item, order) if task.form == "choice" else item, place, order)
            for item in loaded.items
            for place, order in enumerate(shuffled_orders(item.item_id, len(item.options), extra, seed))
        ]
        suite.append(replace(loaded, questions=tuple(questions)))
    return tuple(suite)


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
    task, protocols = find_task(choice.name), [protocol.type for protocol in config.protocols]
    judged = task.form in READ_GREEDILY
    judge = ("grader", config.grader) if task.form == "rubric" else ("judge", config.judge)
    answering = {"greedy"} if judged else {"greedy", "self_consistency"}
    weighed = task.continuations is not None and "likelihood" in protocols
    if not weighed and answering.isdisjoint(protocols):
        why = "a judge reads its greedy answers" if judged else "it has no options to weigh"
        raise ValueError(
            f"task {task.name!r}: benchmarks.protocols=[{', '.join(protocols)}] don't ask it, since {why}; add greedy, "
            "or leave the task out"
        )
    find_uris(task, choice.uri)
    if choice.difficulties is not None and task.form != "preference":
        raise ValueError(
            f"task {task.name!r}: difficulties={choice.difficulties!r} are alpaca_eval's; remove the key"
        )
    if task.form in JUDGED and judge[1] is None:
        raise ValueError(
            f"task {task.name!r}: needs a {judge[0]}; set benchmarks.{judge[0]} (model and base_url of an OpenAI-compatible "
            "API, or an engine of the run's own), or leave the task out"
        )
    return task


def encode_options(tokenizer: Any, question: Question) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """The question's context and the texts of its options as token ids, for likelihoods."""
    assert question.task.continuations is not None
    asked = question.task.continuations(question.item)
    context, endings = encode_continuations(tokenizer, asked.context, asked.endings)
    return tuple(context), tuple(map(tuple, endings))


def check_room(lengths: Iterable[tuple[str, int]], max_length: int, answer: int) -> None:
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


def reorder(item: Item, order: Sequence[int]) -> Item:
    """The same question with its options in another order; place i gets the option of place `order[i]`.

    The key moves with its option. The id stays: it is the question's.
    """
    assert sorted(order) == list(range(len(item.options))), order
    answer = ascii_uppercase[list(order).index(ascii_uppercase.index(item.answer))]
    return replace(item, options=tuple(item.options[place] for place in order), answer=answer)


def shuffled_orders(item_id: str, options: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """The given order first, then `count` other orders of so many options, all different.

    The same for the same arguments everywhere. Fewer where there are not so many: of two options only one.
    """
    draw = Random(derive_seed("orders", seed, item_id, options))
    given = tuple(range(options))
    if count >= factorial(options) - 1:
        others = list(permutations(given))[1:]
        draw.shuffle(others)
        return [given, *others]
    orders = {given: None}
    while len(orders) <= count:
        orders[tuple(draw.sample(given, options))] = None
    return list(orders)


def load_items(
    task: Task,
    uri: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    first_place: FirstPlace = "auto",
) -> AskedTask:
    """The task's items from `uri`, or from where the task's rows are by default, in file order.

    Every item has an id of its own: the data's, else 16 hexadecimal digits that its texts give. Where a
    benchmark has the same question twice, both are asked, as its published numbers count both; only
    `task.drops_repeats` says otherwise.

    Args:
        uri: a source of rows; "offline" stands for the installed package's.
        limit: draw so many items, evenly over the whole set; the same ones for the same seed.
        first_place: of keys that are places; auto: as all rows of `uri` have it, and 0 in the default sources.

    Raises:
        ValueError: one line. No source known, an unreadable one, keys that may be meant in two ways, over 5 % misfits in
            a file, or no item at all.
    """
    counts = Counter(rows=0, misfit=0, left_out=0, duplicate=0, repeated=0, same_options=0)
    uris = find_uris(task, uri)
    if uri in (None, "offline"):
        keys = Keys(0 if first_place == "auto" else first_place)
    else:
        read = lambda row, keys: task.read(Row(row, keys))
        keys = settle_keys(read, uris, first_place, f"the first_place of task {task.name}")
    items = tuple(_read_items(task, uris, keys, counts))
    counts["items"] = len(items)
    if not items:
        raise ValueError(
            f"task {task.name!r}: none of {counts['rows']} rows is one of its questions; name another source"
        )
    if limit is not None and limit < len(items):
        places = Random(derive_seed("items", task.name, seed)).sample(range(len(items)), limit)
        items = tuple(items[place] for place in sorted(places))
    return AskedTask(task, uris, items, dict(counts))


def find_uris(task: Task, uri: str | None) -> tuple[str, ...]:
    """Where the task's rows are. Raises ValueError where no source is known."""
    if uri is None and not task.uris:
        raise ValueError(
            f"task {task.name!r}: uri=null, but no public source has its rows; get them where the task's authors give them "
            "out, and name the file as the task's uri"
        )
    if uri == "offline" and not task.offline:
        raise ValueError(
            f"task {task.name!r}: uri='offline', but no package holds its rows; name a file or a hub set as its uri"
        )
    return task.uris if uri is None else (task.offline if uri == "offline" else uri,)


def _read_items(task: Task, uris: Sequence[str], keys: Keys, counts: Counter[str]) -> Iterator[Item]:
    """A task's items with ids that differ: one that is taken gains "-2", "-3", ..."""
    seen: set[tuple[str, ...]] = set()
    taken: set[str] = set()
    sources = [source for uri in uris for source in list_sources(uri)]
    for source in sources:
        subject = file_form(Path(source))[1] if task.subject_files and len(sources) > 1 else ""
        own: Counter[str] = Counter()
        unfit, fix = f"don't fit task {task.name!r}", "name another source, or repair it"
        rows = FittingRows(source, None, MISFITS_ALLOWED, unfit, fix, own)
        fitting, part = 0, task.part_of(source)
        for item in rows.parse(partial(_read_item, task, keys, part)):
            fitting += 1
            options = tuple(map(normalise_text, item.options))
            identity = (normalise_text(item.question), normalise_text(item.context), *options)
            repeats = identity in seen
            seen.add(identity)
            if repeats and task.drops_repeats and not (item.subject or subject):
                counts["duplicate"] += 1
                continue
            counts["repeated"] += repeats
            counts["same_options"] += len(set(options)) < len(options)
            text = "\x1f".join((item.question, item.context, *item.options))
            unnamed = (
                str(own["rows"] - 1) if task.numbered else hashlib.sha256(text.encode()).hexdigest()[:16]
            )
            first = item.item_id or unnamed
            names = chain([first], (f"{first}-{number}" for number in count(2)))
            item_id = next(name for name in names if name not in taken)
            taken.add(item_id)
            yield replace(item, item_id=item_id, subject=item.subject or subject)
        counts.update(own)
        counts["left_out"] += own["rows"] - own["misfit"] - fitting


def _read_item(task: Task, keys: Keys, part: Mapping[str, str] | None, row: dict[str, Any]) -> Item | None:
    """The row's item; none of another subject, or outside the part of the file that is the benchmark."""
    item = task.read(Row(row, keys))
    if item is None or part is None:
        return item
    if (right := part.get(item.item_id)) not in (None, item.lettered[item.answer]):
        raise Misfit(
            f"its key is {item.lettered[item.answer]!r}, but the test's {right!r:.40}", name="wrong_key"
        )
    return item if right is not None else None
