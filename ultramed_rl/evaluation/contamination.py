"""Whether a benchmark's questions stand in what a model was trained on: as the same words, or nearly so.

text --> stem (without labels, options and what follows them) --> words --> equal or contained: exact
                                                              --> embedding and length: near

The near rule is UltraMedical's (arXiv 2406.03949): squared L2 distance of unit embeddings at most 0.05 and
lengths that differ by at most 20 %. Options are stripped by what they look like, and a text without words matches
nothing: dropping the last four lines makes open questions empty, and those all alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, islice
from typing import Literal

from ultramed_rl.config.benchmarks import ContaminationCheck
from ultramed_rl.data.factory.decontaminate import NearItems
from ultramed_rl.data.likeness import (
    PAPER_RULE,
    TELLING_WORDS,
    Embed,
    Stem,
    equal_keys,
    options_meet,
    read_stem,
)
from ultramed_rl.data.sources import read_rows
from ultramed_rl.evaluation.items import Item
from ultramed_rl.evaluation.lineage import Lineage, Role, TrainedPrompt
from ultramed_rl.evaluation.suite import AskedTask

Questions = Mapping[str, Mapping[str, str]]
Kind = Literal["exact", "near"]
_BLOCK = 4096  # training prompts that are compared together
_SHOWN = 120  # characters of a training text in a finding
_USERS = ("user", "human")
_TEXT_COLUMNS = ("prompt", "question", "Question", "instruction", "text")


@dataclass(frozen=True)
class Match:
    """An item in the training data: `text` is the training text's beginning, `distance` squared L2 (exact: 0)."""

    task: str
    item_id: str
    kind: Kind
    role: Role
    source: str
    text: str
    distance: float = 0.0


@dataclass(frozen=True)
class TaskContamination:
    """Counts of a task's items."""

    task: str
    items: int
    exact: int  # stand in the model's training data, each item once in `exact` or `near`
    near: int
    reward: int  # stand in its reward model's alone
    short: int  # too short for the near rule
    blank: int  # without any word

    @property
    def share(self) -> float:
        """The contaminated part of the items, 0 to 1."""
        return (self.exact + self.near) / self.items if self.items else 0.0


@dataclass(frozen=True)
class Contamination:
    """What was found. `matches` has at most one an item and role: the exact one, or the nearest."""

    tasks: tuple[TaskContamination, ...]
    matches: tuple[Match, ...]
    prompts: int  # different training prompts that were compared
    embedded: bool  # whether near ones were looked for
    unknown: tuple[str, ...] = ()  # what could not be compared, in words

    def render(self) -> str:
        """The findings in words: a line for each task, then what they don't cover."""
        lines = [self._verdict(task) for task in self.tasks]
        lines += [f"CONTAMINATION UNKNOWN: {reason}" for reason in self.unknown]
        if not self.embedded:
            lines.append("near-duplicates were not looked for: embedder=null")
        return "\n".join(lines)

    def _verdict(self, task: TaskContamination) -> str:
        own, named = task.exact + task.near, f"{task.items:,} items of {task.task}"
        head = f"none of {named} was found among {self.prompts:,} different training prompts"
        if own:
            matches = (m for m in self.matches if m.task == task.task and m.role == "model")
            sources = Counter(match.source for match in matches)
            origins = [f"{count:,} in {source}" for source, count in sources.most_common(3)]
            origins += [f"and {len(sources) - 3} more sources"] if len(sources) > 3 else []
            head = (
                f"CONTAMINATED: {own:,} of {named} ({100 * task.share:.1f} %) stand in what this model was trained on "
                f"({task.exact:,} exact, {task.near:,} near): {', '.join(origins)}"
            )
        short = task.short if self.embedded else 0
        notes = {
            f"{task.reward:,} more stand in its reward model's training data alone": task.reward,
            f"{short:,} items are too short for the near rule and were compared word by word": short,
            f"{task.blank:,} items hold no words and were not compared": task.blank,
        }
        return "; ".join([head, *(note for note, count in notes.items() if count)])


def check_contamination(
    check: ContaminationCheck, suite: Sequence[AskedTask], path: str, own: Iterable[TrainedPrompt] = ()
) -> Contamination:
    """Look for every task's items in what the model at `path` was trained on, and in `own` and `check.sources`.

    Raises:
        ValueError: a source or an embedding model that cannot be read.
    """
    lineage = Lineage(path)
    questions = {
        asked.task.name: {item.item_id: question_text(item) for item in asked.items} for asked in suite
    }
    further = (prompt for uri in check.sources for prompt in _source_prompts(uri))
    trained = chain(own, lineage.prompts(), further)
    return find_contamination(questions, trained, _load_embedder(check.embedder), lineage.gaps)


def check_readable(check: ContaminationCheck) -> None:
    """Make sure before an engine starts that the sources begin well and that the embedding model is there. Raises as
    `check_contamination`."""
    for uri in check.sources:
        next(_source_prompts(uri), None)
    if check.embedder != "auto":
        _load_embedder(check.embedder)


@cache
def _load_embedder(name: str | None) -> Embed | None:
    """What tells near-duplicates, once for all policies; none where `auto` finds none installed."""
    if name is None:
        return None
    import torch

    from ultramed_rl.models.embedding import DEFAULT_MODEL, Embedder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "auto":
        return Embedder(name, device)
    try:
        return Embedder(DEFAULT_MODEL, device)
    except ValueError:
        return None  # the report says that near-duplicates were not looked for


def _source_prompts(uri: str) -> Iterator[TrainedPrompt]:
    """The user turns of chats, or the text of the first usual column."""
    for row in read_rows(uri):
        turns = row.get("messages") or row.get("conversations")
        if isinstance(turns, list):
            users = [t for t in turns if isinstance(t, dict) and (t.get("role") or t.get("from")) in _USERS]
            said = [turn.get("content") or turn.get("value") for turn in users]
        else:
            said = [next((row[name] for name in _TEXT_COLUMNS if isinstance(row.get(name), str)), None)]
        if not said or not all(isinstance(text, str) for text in said):
            raise ValueError(
                f"benchmarks.contamination.sources={uri!r}: a row has neither messages, conversations nor a text in "
                f"{', '.join(_TEXT_COLUMNS)}; rename the column that holds the prompt"
            )
        yield from (TrainedPrompt(str(text), uri) for text in said)


def question_text(item: Item) -> str:
    """An item as `find_contamination` takes it: context, question, lettered options."""
    options = [f"{letter}. {text}" for letter, text in item.lettered.items()]
    return "\n".join(part for part in (item.context, item.question, "", *options) if part or options).strip()


def find_contamination(
    questions: Questions,
    trained: Iterable[TrainedPrompt],
    embed: Embed | None = None,
    unknown: Sequence[str] = (),
) -> Contamination:
    """Look for benchmark items among training prompts.

    Exact is a stem of the same words in the same order, whatever their case, spacing and punctuation; also one
    that a training prompt holds whole, with other text around it: anywhere from 13 words on, below that as whole
    sentences that are at least half of the prompt. Where a stem of fewer than 13 words and the prompt both have
    options, they must share one: "Which of the following is true?" is many questions.

    Memory holds the items with their vectors, a block of 4,096 prompts and one number for every other prompt.

    Args:
        questions: by task and item id, the text with its context and options, see `question_text`.
        trained: read once, as it comes.
        embed: texts to float32 unit vectors [n, d]; None: near-duplicates are not looked for.
        unknown: what the training data are not known of, in words; goes into the result.

    Raises:
        ValueError: `embed` gives other than one unit vector a text.
    """
    search = _Search(questions, embed)
    prompts = iter(trained)
    while block := list(islice(prompts, _BLOCK)):
        search.compare(block)
    return search.result(tuple(unknown))


class _Search:
    """The items, and the best match of each so far."""

    def __init__(self, questions: Questions, embed: Embed | None) -> None:
        self._embed = embed
        self._tasks = {task: len(items) for task, items in questions.items()}
        self._names = [(task, item_id) for task, items in questions.items() for item_id in items]
        self._items = [read_stem(text) for items in questions.values() for text in items.values()]
        self._by_key: dict[str, list[int]] = defaultdict(list)
        self._by_start: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for place, item in enumerate(self._items):
            if item.words:
                self._by_key[item.key].append(place)
            if len(item.words) >= TELLING_WORDS:
                self._by_start[item.words[:3]].append(place)
        self._seen: set[int] = set()
        self._best: dict[tuple[int, Role], Match] = {}

    def compare(self, block: Sequence[TrainedPrompt]) -> None:
        """Match a block of training prompts, leaving out those that came before."""
        stems: list[Stem] = []
        prompts: list[TrainedPrompt] = []
        for prompt in block:
            stem = read_stem(prompt.text)
            name = hash((stem.key, stem.options, prompt.role))
            if not stem.words or name in self._seen:
                continue
            self._seen.add(name)
            for place in self._equal(stem):
                self._keep(place, prompt, "exact", 0.0)
            stems.append(stem)
            prompts.append(prompt)
        if self._embed is not None and stems:
            for row, place, distance in self._near.pairs(stems):
                self._keep(place, prompts[row], "near", distance)

    def result(self, unknown: tuple[str, ...]) -> Contamination:
        best = sorted(self._best.items())
        own = {place for (place, role), _ in best if role == "model"}
        counts: Counter[tuple[str, str]] = Counter()
        for (place, role), match in best:
            if role == "model" or place not in own:
                counts[match.task, match.kind if role == "model" else "reward"] += 1
        for (task, _), item in zip(self._names, self._items, strict=True):
            counts[task, "blank"] += not item.words
            counts[task, "short"] += 0 < len(item.words) < PAPER_RULE.words
        columns = ("exact", "near", "reward", "short", "blank")
        tasks = [
            TaskContamination(task, items, *(counts[task, column] for column in columns))
            for task, items in self._tasks.items()
        ]
        matches = tuple(match for _, match in best)
        return Contamination(tuple(tasks), matches, len(self._seen), self._embed is not None, unknown)

    def _equal(self, prompt: Stem) -> set[int]:
        """Items whose stem is the prompt's, or is contained in it."""
        places = {place for key in equal_keys(prompt) for place in self._by_key.get(key, ())}
        words = prompt.words
        for start, three in enumerate(zip(words, words[1:], words[2:], strict=False)):
            for place in self._by_start.get(three, ()):
                item = self._items[place].words
                if words[start : start + len(item)] == item:
                    places.add(place)
        return {place for place in places if options_meet(self._items[place], prompt)}

    def _keep(self, place: int, prompt: TrainedPrompt, kind: Kind, distance: float) -> None:
        before = self._best.get((place, prompt.role))
        if before is None or (kind, distance) < (before.kind, before.distance):  # "exact" sorts before "near"
            text = " ".join(prompt.text.split())[:_SHOWN]
            names = self._names[place]
            self._best[place, prompt.role] = Match(*names, kind, prompt.role, prompt.source, text, distance)

    @cached_property
    def _near(self) -> NearItems:
        """Once there is something to compare."""
        assert self._embed is not None
        return NearItems(self._items, self._embed, PAPER_RULE)
