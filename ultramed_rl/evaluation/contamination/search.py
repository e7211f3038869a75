"""Whether a benchmark's questions stand in what a model was trained on: as the same words, or nearly so.

text --> stem (without labels, options and what follows them) --> words --> equal or contained: exact
                                                              --> embedding and length: near

The near rule is UltraMedical's (arXiv 2406.03949): squared L2 distance of unit embeddings at most 0.05 and
lengths that differ by at most 20 %. Options are stripped by what they look like, and a text without words matches
nothing: dropping the last four lines makes open questions empty, and those all alike.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

import numpy as np

from ultramed_rl.data.likeness import (
    PAPER_RULE,
    TELLING_WORDS,
    Embed,
    NearRule,
    Stem,
    check_unit_vectors,
    equal_keys,
    read_stem,
    same_question,
)
from ultramed_rl.evaluation.items import Item

Questions = Mapping[str, Mapping[str, str]]
Role = Literal["model", "reward"]
_BLOCK, _ROWS = 4096, 512  # training prompts embedded together, and compared with all items together
_SHOWN = 120  # characters of a training text in a finding


@dataclass(frozen=True)
class TrainedPrompt:
    """A text that was trained on, where it is from, and whether the model itself saw it or its reward model."""

    text: str
    source: str
    role: Role = "model"


@dataclass(frozen=True)
class Match:
    """An item in the training data: `text` is the training text's beginning, `distance` squared L2 (exact: 0)."""

    task: str
    item_id: str
    kind: Literal["exact", "near"]
    role: Role
    source: str
    text: str
    distance: float = 0.0


@dataclass(frozen=True)
class TaskContamination:
    """Counts of a task's items. `exact` and `near` stand in the model's training data, each item once;
    `reward` in its reward model's alone. `short` are too short for the near rule, `blank` without any word."""

    task: str
    items: int
    exact: int
    near: int
    reward: int
    short: int
    blank: int

    @property
    def share(self) -> float:
        """The contaminated part of the items, 0 to 1."""
        return (self.exact + self.near) / self.items if self.items else 0.0


@dataclass(frozen=True)
class Contamination:
    """What was found. `matches` has at most one an item and role: the exact one, or the nearest.

    `prompts` is how many different training prompts were compared, `embedded` whether near ones were looked for,
    `unknown` what could not be compared, in words.
    """

    tasks: tuple[TaskContamination, ...]
    matches: tuple[Match, ...]
    prompts: int
    embedded: bool
    unknown: tuple[str, ...] = ()

    @property
    def contaminated(self) -> bool:
        """Whether an item stands in the model's own training data."""
        return any(task.exact + task.near for task in self.tasks)

    def render(self) -> str:
        """The findings in words: a line for each task, then what they don't cover."""
        lines = [_verdict(task, self) for task in self.tasks]
        lines += [f"CONTAMINATION UNKNOWN: {reason}" for reason in self.unknown]
        if not self.embedded:
            lines.append("near-duplicates were not looked for: embedder=null")
        return "\n".join(lines)


def question_text(item: Item) -> str:
    """An item as `find_contamination` takes it: context, question, lettered options."""
    options = [f"{letter}. {text}" for letter, text in item.lettered.items()]
    return "\n".join(part for part in (item.context, item.question, "", *options) if part or options).strip()


def find_contamination(
    questions: Questions,
    trained: Iterable[TrainedPrompt],
    embed: Embed | None = None,
    *,
    unknown: Sequence[str] = (),
    rule: NearRule = PAPER_RULE,
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
    search = _Search(questions, embed, rule)
    prompts = iter(trained)
    while block := list(islice(prompts, _BLOCK)):
        search.compare(block)
    return search.result(tuple(unknown))


# -- search ------------------------------------------------------------------------------------------------


class _Search:
    """The items, and the best match of each so far."""

    def __init__(self, questions: Questions, embed: Embed | None, rule: NearRule) -> None:
        self._embed, self._rule = embed, rule
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
        if self._embed is not None:
            self._compare_vectors(stems, prompts)

    def result(self, unknown: tuple[str, ...]) -> Contamination:
        best = sorted(self._best.items())
        own = {place for (place, role), _ in best if role == "model"}
        counts: Counter[tuple[str, str]] = Counter()
        for (place, role), match in best:
            if role == "model" or place not in own:
                counts[match.task, match.kind if role == "model" else "reward"] += 1
        for (task, _), item in zip(self._names, self._items, strict=True):
            counts[task, "blank"] += not item.words
            counts[task, "short"] += 0 < len(item.words) < self._rule.words
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
        return {place for place in places if same_question(self._items[place], prompt)}

    def _keep(
        self, place: int, prompt: TrainedPrompt, kind: Literal["exact", "near"], distance: float
    ) -> None:
        before = self._best.get((place, prompt.role))
        if before is None or (kind, distance) < (before.kind, before.distance):  # "exact" sorts before "near"
            text = " ".join(prompt.text.split())[:_SHOWN]
            names = self._names[place]
            self._best[place, prompt.role] = Match(*names, kind, prompt.role, prompt.source, text, distance)

    # -- near ----------------------------------------------------------------------------------------------

    @cached_property
    def _candidates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Items that are long enough: their places [m], lengths [m] and vectors [m, d], shortest first."""
        long = [i for i, item in enumerate(self._items) if len(item.words) >= self._rule.words]
        long.sort(key=lambda i: len(self._items[i].key))
        lengths = np.array([len(self._items[i].key) for i in long], dtype=np.float32)
        return np.array(long, dtype=int), lengths, self._vectors([self._items[i].text for i in long])

    def _compare_vectors(self, stems: Sequence[Stem], prompts: Sequence[TrainedPrompt]) -> None:
        """Only prompts that some item's length comes near to are embedded."""
        places, lengths, items = self._candidates
        comparable = [
            number
            for number, stem in enumerate(stems)
            if len(stem.words) >= self._rule.words and self._has_length(lengths, len(stem.key))
        ]
        if not comparable:
            return
        vectors = self._vectors([stems[number].text for number in comparable])
        own = np.array([len(stems[number].key) for number in comparable], dtype=np.float32)
        for start in range(0, len(comparable), _ROWS):
            rows = slice(start, start + _ROWS)
            distances = np.maximum(2.0 - 2.0 * vectors[rows] @ items.T, 0.0)
            longer = np.maximum(own[rows, None], lengths)
            alike = np.abs(own[rows, None] - lengths) <= self._rule.length * longer
            for row, column in np.argwhere(alike & (distances <= self._rule.squared_l2)):
                number = comparable[start + row]
                if same_question(self._items[places[column]], stems[number]):
                    self._keep(
                        int(places[column]), prompts[number], "near", round(float(distances[row, column]), 6)
                    )

    def _has_length(self, lengths: np.ndarray, own: int) -> bool:
        """Whether a sorted length is between own x 0.8 and own / 0.8."""
        low, high = own * (1 - self._rule.length), own / (1 - self._rule.length)
        first = np.searchsorted(lengths, low - 1e-3)
        return bool(first < len(lengths) and lengths[first] <= high + 1e-3)

    def _vectors(self, texts: list[str]) -> np.ndarray:
        assert self._embed is not None
        if not texts:
            return np.zeros((0, 1), dtype=np.float32)
        return check_unit_vectors(self._embed(texts), len(texts))


# -- words -------------------------------------------------------------------------------------------------


def _verdict(task: TaskContamination, contamination: Contamination) -> str:
    own, named = task.exact + task.near, f"{task.items:,} items of {task.task}"
    short = task.short if contamination.embedded else 0
    notes = {
        f"{task.reward:,} more stand in its reward model's training data alone": task.reward,
        f"{short:,} items are too short for the near rule and were compared word by word": short,
        f"{task.blank:,} items hold no words and were not compared": task.blank,
    }
    if own:
        head = (
            f"CONTAMINATED: {own:,} of {named} ({100 * task.share:.1f} %) stand in what this model was trained on "
            f"({task.exact:,} exact, {task.near:,} near): {_origins(task.task, contamination.matches)}"
        )
    else:
        head = f"none of {named} was found among {contamination.prompts:,} different training prompts"
    return "; ".join([head, *(note for note, count in notes.items() if count)])


def _origins(task: str, matches: Sequence[Match]) -> str:
    """The sources by how many items they hold, the most first."""
    own = Counter(match.source for match in matches if match.task == task and match.role == "model")
    more = [f"and {len(own) - 3} more sources"] if len(own) > 3 else []
    return ", ".join([*(f"{count:,} in {source}" for source, count in own.most_common(3)), *more])
