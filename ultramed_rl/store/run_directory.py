"""`runs/NAME/`: the resolved config, metrics, and a folder for each round."""

from __future__ import annotations

import fcntl
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from ultramed_rl.config import RunConfig, config_difference, dump_config, load_config
from ultramed_rl.store.atomic import explain_full_disk, remove_leftovers, without_non_finite, write_whole
from ultramed_rl.store.round_record import RoundRecord

# Keys whose change doesn't change what a run computes.
_HARMLESS = (
    "run.directory",
    "run.keep_checkpoints",
    "tracking.",
    "cluster.address",
    "cluster.start_timeout_s",
)


class RunDirectory:
    """The one writer of a run. Use `open`, as a context manager."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path, self.config = path, config
        self._lock = (path / ".lock").open("w")
        try:
            # The kernel frees it with its owner, however that ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"{path}: another process is writing this run; wait for it or stop it") from None

    @property
    def initial(self) -> RoundRecord:
        """What is made before the first round."""
        return RoundRecord(self.path / "initial", -1)

    @classmethod
    def open(cls, config: RunConfig, resume: bool) -> RunDirectory:
        """Start a run's directory, or take up the one that is there.

        Raises:
            ValueError: it is there and `resume` isn't set, it is of another config, or it is in use.
            RuntimeError: the disk is full.
        """
        path = Path(config.run.directory) / config.run.name
        path.mkdir(parents=True, exist_ok=True)
        directory = cls(path, config)
        try:
            directory._take_up(resume)
        except BaseException:
            directory._lock.close()
            raise
        return directory

    def _take_up(self, resume: bool) -> None:
        """Check against an earlier start, clear what a killed run left, keep the config. Holds the lock."""
        saved, text = self.path / "config.yaml", dump_config(self.config)
        if saved.is_file():
            _check_resume(self.path, load_config(saved), self.config, resume)
        remove_leftovers(self.path)
        write_whole(saved, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

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

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`; a non-finite number becomes null."""
        path = self.path / "metrics.jsonl"
        line = json.dumps({"time": round(time.time(), 3), **without_non_finite(metrics)}, allow_nan=False)
        with explain_full_disk(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def discard_metrics_after(self, rounds: int) -> None:
        """Forget lines of rounds that aren't committed, and of the run's end: they will be logged again."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        text = "".join(line + "\n" for line in lines if _round_of(line) < rounds)
        write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _round_of(line: str) -> float:
    try:
        metrics = json.loads(line)
    except json.JSONDecodeError:  # the last line of a killed run
        return float("inf")
    return float(metrics.get("round", metrics.get("round_index", -1)))


def _check_resume(path: Path, saved: RunConfig, config: RunConfig, resume: bool) -> None:
    if not resume:
        raise ValueError(
            f"{path}: holds a run already; go on with it by --resume, or choose another run.name"
        )
    changed = [line for line in config_difference(saved, config) if not line.startswith(_HARMLESS)]
    if changed:
        raise ValueError(
            f"{path}: was started with another config ({'; '.join(changed)}); "
            "undo the change or choose another run.name"
        )
