"""One round's artifacts and the commit that ends it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from ultramed_rl.store.artifacts import ArtifactFolder, read_json, read_numbers
from ultramed_rl.store.atomic import write_json
from ultramed_rl.store.run_reader import read_commit
from ultramed_rl.store.tables import told_of


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

    def asked(self) -> Counter[int]:
        """How many of its prompts the round has asked, by their source."""
        prompts = self.artifact("prompts")
        with told_of(prompts):
            sources = pq.read_table(prompts, columns=["source"])["source"]
        return Counter(sources[: self.manifest("scored").get("asked")].to_pylist())

    @property
    def committed(self) -> bool:
        """Whether the round is done, with the very phases that it was committed with."""
        return read_commit(self.path) is not None

    def committed_metrics(self) -> dict[str, float]:
        """What `commit` was given; a number that wasn't finite is NaN."""
        return read_numbers(read_json(self.path / "commit.json")["metrics"])
