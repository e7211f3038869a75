"""`runs/NAME/` of an online run: a folder of artifacts for each round, and the commit that ends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultramed_rl.config import RunConfig
from ultramed_rl.store.artifacts import ArtifactFolder, read_json
from ultramed_rl.store.atomic import write_json
from ultramed_rl.store.digests import key_number
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.store.shards import read_columns
from ultramed_rl.store.work_directory import WorkDirectory

# Of a committed round what cannot be made again by itself: later rounds follow from it.
_FOLLOWED = ("scored", "checkpoint", "reference_model")


@dataclass(frozen=True)
class Asked:
    """The prompts that a round has asked."""

    by_source: Mapping[int, int]  # how many of each source
    # [N] the prompts, by the `key_number` of their ids. Empty where nobody wants their results.
    numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    # [N] whether a prompt's answers were scored and gave no pair, for whatever reason. Not one that was set aside: that says
    # nothing of the prompt's difficulty.
    unpaired: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))


class RoundRecord(ArtifactFolder):
    """The folder of a round; -1 is what is made before the first."""

    def __init__(self, path: Path, index: int) -> None:
        super().__init__(path)
        self.index = index

    def commit(self, metrics: dict[str, float]) -> None:
        """The round is done: nothing of it will be computed again. Holds its phases' digests."""
        phases = {manifest["name"]: manifest["digest"] for manifest in self.manifests()}
        commit = {"round": self.index, "metrics": metrics, "phases": phases}
        write_json(self.path / "commit.json", commit)

    def asked(self, results: bool = False) -> Asked:
        """Which of its prompts the round has asked; with `results` also which of them gave no pair."""
        scored = self.manifest("scored")
        prompts = read_columns(self.artifact("prompts"), "source", *(["prompt_id"] if results else []))
        prompts = prompts.slice(0, scored.get("asked"))
        by_source = Counter(prompts["source"].to_pylist())
        if not results:
            return Asked(by_source)
        ids = prompts["prompt_id"].combine_chunks()
        paired = pc.is_in(ids, value_set=read_columns(self.artifact("pairs"), "prompt_id")["prompt_id"])
        set_aside = pc.is_in(ids, value_set=pa.array(list(scored["set_aside"]), type=pa.string()))
        numbers = np.fromiter(map(key_number, ids.to_pylist()), dtype=np.uint64)
        return Asked(by_source, numbers, pc.invert(pc.or_(paired, set_aside)).to_numpy(zero_copy_only=False))


class RunDirectory(WorkDirectory):
    """The store of an online run."""

    config: RunConfig

    @property
    def initial(self) -> RoundRecord:
        """What is made before the first round."""
        return RoundRecord(self.path / "initial", -1)

    def round(self, index: int) -> RoundRecord:
        """A round's record; its folder is made if need be."""
        return RoundRecord(self._round_path(index), index)

    def committed_rounds(self) -> int:
        """How many rounds from the first on are done."""
        return len(RunReader(self.path).rounds)

    def verify_committed(self) -> None:
        """Nothing of the committed rounds has changed since.

        Looked at are each round's commit, the manifests of the phases that it names, and what these left: records (prompts,
        scored answers, pairs, reference logprobs, evaluations) byte by byte; checkpoints by sampled blocks of 64 KiB, those
        that were pruned not at all. The checkpoint that a run goes on from is read whole when it is taken up. A round that
        isn't committed is verified phase by phase as it is read back.

        Raises:
            ValueError: naming the file that is another one. Records whose manifest is gone are no error: they follow from
                what is there, and are made again. What other rounds follow from is not: answers, and weights.
        """
        for file in sorted((self.path / "rounds").glob("[0-9]*/commit.json")):
            phases, folder = read_json(file).get("phases"), ArtifactFolder(file.parent)
            if not isinstance(phases, dict):
                raise ValueError(f"{file}: lacks the round's phases; put it back or delete it")
            anew = f"put it back, or delete {file.parent} and the rounds after it to compute them again"
            for name, digest in phases.items():
                manifest, fix = file.parent / f"{name}.json", anew if name in _FOLLOWED else None
                if not folder.finished(name):
                    if fix:
                        raise ValueError(f"{manifest}: missing, the round was committed with it; {fix}")
                    continue
                if folder.digest(name) != digest:
                    raise ValueError(
                        f"{manifest}: not the one that the round was committed with ({digest[:12]}, found "
                        f"{folder.digest(name)[:12]}); {fix or 'put it back, or delete it to compute it again'}"
                    )
                folder.verify(name, cheaply=True, fix=fix)

    def _round_path(self, index: int) -> Path:
        return self.path / "rounds" / f"{index:03d}"

    def last_checkpoint(self, rounds: int) -> int | None:
        """The newest of the first `rounds` rounds that ended with a checkpoint."""
        return next((index for index in reversed(range(rounds)) if self._has_checkpoint(index)), None)

    def prune_checkpoints(self, keep: int) -> None:
        """Keep the last `keep` checkpoints of committed rounds only."""
        saved = [index for index in range(self.committed_rounds()) if self._has_checkpoint(index)]
        for index in saved[:-keep]:
            for name in ("checkpoint", "reference_model"):
                self.round(index).prune(name)

    def _has_checkpoint(self, index: int) -> bool:
        return (self._round_path(index) / "checkpoint.json").is_file()

    def discard_metrics_after(self, rounds: int) -> None:
        """Forget lines of rounds that aren't committed, and of the run's end: they will be logged again. The steps of a
        round whose checkpoint is there won't be taken again, and stay."""

        def stays(row: dict[str, Any]) -> bool:
            index = row.get("round", row.get("round_index", -1))
            if not isinstance(index, (int, float)):  # nobody of us wrote it
                return False
            return index < rounds or ("step_index" in row and trained(int(index)))

        trained = cache(self._has_checkpoint)
        self.keep_metrics(stays)
