"""One round's artifacts and the commit that ends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ultramed_rl.store.artifacts import ArtifactFolder, read_json, read_numbers
from ultramed_rl.store.atomic import write_json
from ultramed_rl.store.keys import key_number
from ultramed_rl.store.run_reader import read_commit
from ultramed_rl.store.tables import told_of


@dataclass(frozen=True)
class Asked:
    """The prompts that a round has asked.

    Attributes:
        by_source: how many of each source.
        numbers: [N] the prompts, by the `key_number` of their ids. Empty where nobody wants their results.
        unpaired: [N] whether a prompt's answers were scored and gave no pair, for whatever reason. Not one that was set
            aside: that says nothing of the prompt's difficulty.
    """

    by_source: Mapping[int, int]
    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    unpaired: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))


class RoundRecord(ArtifactFolder):
    """The folder of a round; -1 is what is made before the first."""

    def __init__(self, path: Path, index: int) -> None:
        super().__init__(path)
        self.index = index

    def commit(self, metrics: dict[str, float]) -> None:
        """The round is done: nothing of it will be computed again. Holds its phases' digests."""
        write_json(
            self.path / "commit.json",
            {
                "round": self.index,
                "metrics": metrics,
                "phases": {m["name"]: m["digest"] for m in self.manifests()},
            },
        )

    def asked(self, results: bool = False) -> Asked:
        """Which of its prompts the round has asked; with `results` also which of them gave no pair."""
        scored = self.manifest("scored")
        prompts = self._read("prompts", "source", *(["prompt_id"] if results else []))
        prompts = prompts.slice(0, scored.get("asked"))
        by_source = Counter(prompts["source"].to_pylist())
        if not results:
            return Asked(by_source)
        ids = prompts["prompt_id"].combine_chunks()
        paired = pc.is_in(ids, value_set=self._read("pairs", "prompt_id")["prompt_id"])
        set_aside = pc.is_in(ids, value_set=pa.array(list(scored["set_aside"]), type=pa.string()))
        numbers = np.fromiter(map(key_number, ids.to_pylist()), dtype=np.uint64)
        return Asked(by_source, numbers, pc.invert(pc.or_(paired, set_aside)).to_numpy(zero_copy_only=False))

    def _read(self, name: str, *columns: str) -> pa.Table:
        with told_of(self.artifact(name)):
            return pq.read_table(self.artifact(name), columns=list(columns))

    @property
    def committed(self) -> bool:
        """Whether the round is done, with the very phases that it was committed with."""
        return read_commit(self.path) is not None

    def committed_metrics(self) -> dict[str, float]:
        """What `commit` was given; a number that wasn't finite is NaN."""
        return read_numbers(read_json(self.path / "commit.json")["metrics"])
