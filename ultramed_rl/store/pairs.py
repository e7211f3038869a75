"""A round's pairs as its learners read them: in the order of the round's prompts, and no more of them than are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs
from ultramed_rl.store.shards import read_columns, shard_files
from ultramed_rl.store.tables import LazySequence, read_records, records_of_table

_NEEDED = ("group_id", "prompt_id", "prompt_token_ids", "completions.list.element.token_ids")
# Files whose records are kept by those who read one after the other: few pairs are far from their place.
_OPEN_FILES = 4


class RoundPairs(LazySequence[PreferenceGroup]):
    """Pairs by their place. The files hold them in the order in which their answers came, which is no one's choice: what
    is learnt goes by the prompts' order, and so doesn't depend on who was faster.

    What is not loaded is read from its file. It is sent between processes as its folder.

    Attributes:
        ids: [N] the groups' ids.
        answer_counts: [N] answers of each.
        packed_tokens, padded_tokens: [N] what each costs in a forward pass, see `AnswerGroup`.
    """

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: of a round, with prompts.parquet and pairs.parquet.

        Raises:
            ValueError: files that cannot be read.
        """
        self.folder = folder
        self._files = shard_files(folder / "pairs.parquet")
        names, costs = [], []
        for file in self._files:
            read = read_columns(file, *_NEEDED)
            names.append(read.select(["group_id", "prompt_id"]))
            costs.append(_costs(read))
        self._starts = np.cumsum([0, *map(len, names)])
        table = pa.concat_tables(names)
        prompts = read_columns(folder / "prompts.parquet", "prompt_id")
        places = pc.index_in(table["prompt_id"], value_set=prompts["prompt_id"])
        assert not places.null_count, f"{folder}: pairs of prompts that are not the round's"
        self._order = np.argsort(places.to_numpy(), kind="stable")
        self.ids: list[str] = table["group_id"].take(pa.array(self._order)).to_pylist()
        self.answer_counts, self.packed_tokens, self.padded_tokens = np.hstack(costs)[:, self._order]
        self._loaded: dict[int, PreferenceGroup] = {}
        self._read = lru_cache(_OPEN_FILES)(lambda number: read_records(PreferenceGroup, self._files[number]))

    def __reduce__(self) -> tuple[Any, ...]:
        return RoundPairs, (self.folder,)

    def __len__(self) -> int:
        return len(self._order)

    def load(self, wanted: Iterable[int]) -> None:
        """Keep these in memory from now on."""
        places = np.unique(np.fromiter(wanted, dtype=np.int64))
        rows = self._order[places]
        for number, file in enumerate(self._files):
            inside = (rows >= self._starts[number]) & (rows < self._starts[number + 1])
            if inside.any():
                table = read_columns(file).take(pa.array(rows[inside] - self._starts[number]))
                records = records_of_table(PreferenceGroup, table)
                self._loaded.update(zip(places[inside].tolist(), records, strict=True))

    def _at(self, place: int) -> PreferenceGroup:
        if place in self._loaded:
            return self._loaded[place]
        row = self._order[place]
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._read(number)[row - self._starts[number]]


def read_references(folder: Path, ids: Sequence[str]) -> list[ReferenceLogprobs]:
    """The reference logprobs of these groups, in their order.

    Raises:
        ValueError: files that cannot be read, or without one of them.
    """
    file = folder / "reference.parquet"
    table = read_columns(file)
    rows = pc.index_in(pa.array(ids, type=pa.string()), value_set=table["group_id"])
    if rows.null_count:
        raise ValueError(
            f"{file}: has no logprobs of {rows.null_count} of the round's pairs; put it back, or "
            "delete it and reference.json beside it to compute it again"
        )
    return records_of_table(ReferenceLogprobs, table.take(rows))


def _costs(table: pa.Table) -> np.ndarray:
    """[3, N] answers, packed tokens and padded tokens of each pair."""
    prompts = pc.list_value_length(table["prompt_token_ids"]).to_numpy()
    answers = pc.list_value_length(table["completions"]).to_numpy()
    tokens = pc.list_value_length(
        pc.struct_field(pc.list_flatten(table["completions"]), "token_ids")
    ).to_numpy()
    starts = np.cumsum(answers) - answers
    if not len(table):
        return np.zeros((3, 0), dtype=np.int64)
    packed = prompts + np.add.reduceat(tokens, starts)
    padded = answers * (prompts + np.maximum.reduceat(tokens, starts))
    return np.stack([answers, packed, padded]).astype(np.int64)
