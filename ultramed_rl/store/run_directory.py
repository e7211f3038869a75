"""`runs/NAME/` of an online run: a folder for each round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultramed_rl.store.round_record import RoundRecord
from ultramed_rl.store.work_directory import WorkDirectory


class RunDirectory(WorkDirectory):
    """The store of an online run."""

    @property
    def initial(self) -> RoundRecord:
        """What is made before the first round."""
        return RoundRecord(self.path / "initial", -1)

    def round(self, index: int) -> RoundRecord:
        """A round's record; its folder is made if need be."""
        return RoundRecord(self._round_path(index), index)

    def committed_rounds(self) -> int:
        """How many rounds from the first on are done."""
        count = 0
        while (self._round_path(count) / "commit.json").is_file() and self.round(count).committed:
            count += 1
        return count

    def _round_path(self, index: int) -> Path:
        return self.path / "rounds" / f"{index:03d}"

    def prune_checkpoints(self, keep: int) -> None:
        """Keep the checkpoints of the last `keep` committed rounds only."""
        for index in range(self.committed_rounds() - keep):
            for name in ("checkpoint", "reference_model"):
                self.round(index).prune(name)

    def discard_metrics_after(self, rounds: int) -> None:
        """Forget lines of rounds that aren't committed, and of the run's end: they will be logged again. The steps of a
        round whose checkpoint is there won't be taken again, and stay."""
        trained = self._round_path(rounds) / "checkpoint.json"

        def stays(row: dict[str, Any]) -> bool:
            index = float(row.get("round", row.get("round_index", -1)))
            return index < rounds or ("step_index" in row and index == rounds and trained.is_file())

        self.keep_metrics(stays)
