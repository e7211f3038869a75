"""Solved questions like a given one, to show to who answers it.

solved rows --> stems --> unit vectors --> an index each for multiple choice and open questions
row --> its stem's vector --> the nearest of its form --> (question, answer)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np

from ultramed_rl.data.chats import Misfit, read_turns
from ultramed_rl.data.factory.instructions import read_instruction, split_options
from ultramed_rl.data.factory.step import Row, name_of
from ultramed_rl.data.likeness import Embed, Stem, check_unit_vectors, read_stem
from ultramed_rl.data.vignettes import read_letter

Form = Literal["choice", "open"]
_BLOCK = 1024  # rows that are embedded together
_DIGITS = 6  # of a similarity, beyond which two are equal


@dataclass(frozen=True)
class _Solved:
    name: str  # the record's
    question: str
    answer: str


class ExemplarIndex:
    """The solved questions most like a record's: to be given to `AnswerStep` as its `exemplars`.

    The index is fixed once it is built, out of a file of solved records. Those that a run solves do not join it: a
    run that was killed and goes on would find others than one that was not, and ask other requests. Texts and
    float32 vectors are held in memory. Not to be sent to another process: make one there.
    """

    def __init__(self, rows: Iterable[Row], embed: Embed, most: int = 3) -> None:
        """
        Args:
            rows: records; those with an answer are used, and of those of multiple choice the ones whose answer
                ends "So, the answer is X." with X their key. All others are passed over.
            embed: stems to unit vectors.
            most: exemplars found for a record.

        Raises:
            ValueError: `embed` gives other than one unit vector a text.
        """
        assert most >= 0, most
        self._embed, self._most = embed, most
        self._solved: dict[Form, list[_Solved]] = {"choice": [], "open": []}
        self._indexes: dict[Form, Any] = {}
        source = iter(rows)
        while block := list(islice(source, _BLOCK)):
            self._add(block)

    def __len__(self) -> int:
        """How many solved questions there are."""
        return sum(map(len, self._solved.values()))

    def __call__(self, row: Row) -> tuple[tuple[str, str], ...]:
        """(question, answer) of the nearest records of the row's form, most similar first, then as in `rows`.

        Never the record itself, by its id or by the words of its stem, and no question twice.

        Raises:
            Misfit: the row isn't a question.
        """
        question = read_instruction(row)
        form: Form = "choice" if question.key else "open"
        stem = read_stem(question.text)
        if not (self._most and self._solved[form] and stem.words):
            return ()
        own, known, pairs = name_of(row), {stem.key}, list[tuple[str, str]]()
        for one in self._nearest(form, self._vectors([stem])):
            key = read_stem(one.question).key
            if key not in known and one.name != own:
                known.add(key)
                pairs.append((one.question, one.answer))
            if len(pairs) == self._most:
                break
        return tuple(pairs)

    def _add(self, rows: Iterable[Row]) -> None:
        fresh: dict[Form, list[tuple[_Solved, Stem]]] = {"choice": [], "open": []}
        for one in filter(None, map(_read_solved, rows)):
            stem = read_stem(one.question)
            form: Form = "choice" if split_options(one.question)[1] else "open"
            fresh[form] += [(one, stem)] if stem.words else []
        for form, read in fresh.items():
            if read:
                self._index(form, self._vectors([stem for _, stem in read]))
                self._solved[form] += [one for one, _ in read]

    def _index(self, form: Form, vectors: np.ndarray) -> None:
        import faiss

        if form not in self._indexes:
            self._indexes[form] = faiss.IndexFlatIP(vectors.shape[1])
        self._indexes[form].add(np.ascontiguousarray(vectors))

    def _vectors(self, stems: Sequence[Stem]) -> np.ndarray:
        return check_unit_vectors(self._embed([stem.text for stem in stems]), len(stems))

    def _nearest(self, form: Form, vector: np.ndarray) -> Iterator[_Solved]:
        """All questions of a form, by similarity, then as they were given; searched for as far as they are taken."""
        index, solved = self._indexes[form], self._solved[form]
        wanted, given = 4 * self._most, 0
        while given < len(solved):
            wanted = min(wanted, len(solved))
            similarities, places = index.search(vector, wanted)
            near = np.round(similarities[0].astype(np.float64), _DIGITS)
            # Those as near as the last one may have their equals among the ones not found.
            sure = wanted if wanted == len(solved) else int((near > near[-1]).sum())
            order = np.lexsort((places[0], -near))[given:sure]
            yield from (solved[places[0][at]] for at in order)
            given, wanted = max(given, sure), 4 * wanted


def _read_solved(row: Row) -> _Solved | None:
    """A row's question and answer, or None if it isn't solved."""
    try:
        question = read_instruction(row)
        turns = read_turns(dict(row), "conversations")
    except Misfit:
        return None
    if len(turns) < 2:
        return None
    answer = turns[1]["content"]
    if question.key is None:
        solved = not split_options(question.text)[1]  # of options without a key nobody knows
    else:
        solved = read_letter(answer) == question.key
    return _Solved(name_of(row), question.text, answer) if solved else None
