"""`runs/NAME/`: one writer, the resolved config, metrics. What else is in it is its kind's business."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from ultramed_rl.config import AnyConfig, config_difference, dump_config, load_any
from ultramed_rl.config.models import DECIDES, Endpoint
from ultramed_rl.store.artifacts import ArtifactFolder, read_json
from ultramed_rl.store.atomic import (
    explain_full_disk,
    remove,
    remove_leftovers,
    without_non_finite,
    write_json,
    write_whole,
)
from ultramed_rl.store.environment import FILE as ENVIRONMENT
from ultramed_rl.store.environment import write_environment
from ultramed_rl.store.remote import OWN, RemoteCopy, check_url
from ultramed_rl.store.run_reader import read_rows

Metrics = dict[str, float]
INPUTS = "inputs.json"
# Keys whose change doesn't change what a run computes.
_HARMLESS = (
    *(
        "run.directory",
        "run.scratch",
        "run.publish_every_s",
        "run.keep_checkpoints",
        "checkpoint.",
        "tracking.",
    ),
    *("cluster.address", "cluster.start_timeout_s", "cluster.faults.", "cluster.workers", "max_failed_share"),
)
# A reward server or judge may have moved: its address never told what answers there, so that another address tells no more
# than the same one. A judge's model, which decides, is named beside it.
_SERVICE = re.compile(r"reward\.terms\.\d+\.|benchmarks\.judge\.")
_WHERE = {"url", "base_url", "token_env", "api_key_env", "timeout_s", "retries", "concurrency", "batch_size"}
_ENDPOINT_LIMITS = Endpoint.model_fields.keys() - DECIDES


class WorkDirectory:
    """The one writer of a run. Use `open`, as a context manager."""

    def __init__(self, path: Path, config: AnyConfig) -> None:
        self.path, self.config = path, config
        self._remote: RemoteCopy | None = None
        self._lock = (path / ".lock").open("w")
        try:
            # The kernel frees it with its owner, however that ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(
                f"{path}/.lock: another process is writing this run; wait for it or stop it"
            ) from None

    @classmethod
    def open(cls, config: AnyConfig, resume: bool, inputs: Callable[[], Mapping[str, str]] = dict) -> Self:
        """Start a run's directory, or take up the one that is there.

        Where `run.directory` is a URL, a run that is there is pulled first, and published from then on.

        Args:
            inputs: what the run is made from, by name: digests of models, prompts and data. Kept in `inputs.json` at the
                start, and compared whenever the run is taken up.

        Raises:
            ValueError: it is there and `resume` isn't set, it is of another config or of other inputs, or it is in use.
            RuntimeError: the disk is full, or the URL cannot be reached.
        """
        check_url(config)
        # Workers on other nodes, or of a cluster that was there before, have other working directories.
        path = config.run.folder.absolute()
        path.mkdir(parents=True, exist_ok=True)
        directory = cls(path, config)
        try:
            directory._take_up(resume, inputs)
        except BaseException:
            directory._let_go(failed=True)
            raise
        return directory

    def _take_up(self, resume: bool, inputs: Callable[[], Mapping[str, str]]) -> None:
        """Check against an earlier start, clear what a killed run left, keep inputs and config. Holds the lock."""
        saved, text = self.path / "config.yaml", dump_config(self.config)
        if self.config.run.url is not None:
            self._remote = RemoteCopy(self.config.run.url, self.path, self.config.run.publish_every_s)
            self._remote.take_up(lambda saved: self._check_saved(saved, resume))
        if saved.is_file():
            self._check_saved(saved, resume)
        self._keep_inputs(inputs(), begun=saved.is_file())
        remove_leftovers(self.path)
        write_whole(saved, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        write_environment(self.path)
        if self._remote is not None:
            self._remote.start()

    def _keep_inputs(self, now: Mapping[str, str], *, begun: bool) -> None:
        """Compare with the start, and keep what couldn't be told then. Comes before the config is written, by which a run
        has begun. Raises ValueError for what is another one now."""
        file = self.path / INPUTS
        before = read_json(file) if begun and file.is_file() else {}
        changed = [
            f"{n}: {before[n]} -> {value}" for n, value in now.items() if before.get(n, value) != value
        ]
        if changed:
            told = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1", "; ".join(changed))  # digests, cut
            raise ValueError(
                f"{self.config.run.url or self.path}: was started with other inputs ({told}); put back what "
                "they were, or choose another run.name; to make it anew, delete the folder"
            )
        if now.keys() - before.keys():
            write_json(file, {**now, **before})

    def _check_saved(self, saved: Path, resume: bool) -> None:
        """Raises ValueError unless the run of a saved config may be taken up with this one."""
        before, shown = load_any(saved), self.config.run.url or self.path
        if before.type != self.config.type:
            raise ValueError(f"{shown}: holds a run of type {before.type}; choose another run.name")
        if not resume:
            raise ValueError(
                f"{shown}: holds a run already; go on with it by --resume, or choose another run.name"
            )
        lines = config_difference(before, self.config)
        changed = [line for line in lines if not _is_harmless(line.partition(":")[0])]
        if changed:
            raise ValueError(
                f"{shown}: was started with another config ({'; '.join(changed)}); "
                "undo the change or choose another run.name"
            )

    def _let_go(self, failed: bool) -> None:
        """Publish what is left, and let others write."""
        remote, self._remote = self._remote, None
        try:
            if remote is not None:
                remote.close(failed)
        finally:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError):
            self._forget_start()
        self._let_go(failed=error is not None)

    def _forget_start(self) -> None:
        """Where bad input stopped a run before it made anything, it can be mended under the same name."""
        remove_leftovers(self.path)
        beginnings = {".lock", "config.yaml", "status.json", INPUTS, ENVIRONMENT, OWN}
        if {path.name for path in self.path.iterdir()} <= beginnings:
            for name in ("config.yaml", INPUTS, ENVIRONMENT):
                (self.path / name).unlink(missing_ok=True)

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """One line of `metrics.jsonl`; a non-finite number becomes null."""
        path = self.path / "metrics.jsonl"
        line = json.dumps({"time": round(time.time(), 3), **without_non_finite(metrics)}, allow_nan=False)
        with explain_full_disk(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def keep_metrics(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Forget all other lines of `metrics.jsonl`, and what a killed run wrote by halves."""
        path = self.path / "metrics.jsonl"
        if path.is_file():
            text = "".join(json.dumps(row) + "\n" for row in read_rows(path) if wanted(row))
            write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class StageDirectory(WorkDirectory):
    """The store of a stage.

    data/ and reference.parquet are made before the first step, states/step-000000040/ and best/ on the way,
    model/ at the end.
    """

    @property
    def artifacts(self) -> ArtifactFolder:
        """What a stage makes once."""
        return ArtifactFolder(self.path)

    def save(self, folder: str, step: int, write: Callable[[Path], Metrics]) -> Path:
        """Write what belongs to `step` into states/ or best/, then drop those before, except the best weights
        that were so when the newest state was saved: whoever resumes there may find no better ones."""
        artifacts, states = ArtifactFolder(self.path / folder), ArtifactFolder(self.path / "states")
        path, _ = artifacts.phase_directory(_step_name(step), write, step, sizes=folder == "states")
        needed = {path.name}
        if folder == "best":
            counted_on = (states.metrics(name)["best_step"] for name in self._saved("states"))
            needed |= {_step_name(int(best)) for best in counted_on}
        for older in self._saved(folder):
            if older not in needed:
                artifacts.discard(older)
        return path

    def newest(self, folder: str) -> tuple[Path, Metrics] | None:
        """The latest of states/ or best/ and its numbers, verified; None where there is none."""
        names = self._saved(folder)
        if not names:
            return None
        artifacts = ArtifactFolder(self.path / folder)
        return artifacts.directory(names[-1]), artifacts.metrics(names[-1])

    def discard_after(self, step: int) -> None:
        """Forget what was logged and kept after `step`: it will be done again, at 0 the first evaluation too."""

        def stays(row: dict[str, Any]) -> bool:
            return step > 0 and row.get("step_index", -1) < step and row.get("evaluation_index", 0) <= step

        self.keep_metrics(stays)
        for name in self._saved("best"):
            if int(name.removeprefix("step-")) > step:
                ArtifactFolder(self.path / "best").discard(name)

    def discard_saved(self) -> None:
        """Forget all states and best weights: the stage has its model."""
        for folder in ("states", "best"):
            remove(self.path / folder)

    def _saved(self, folder: str) -> list[str]:
        return sorted(path.stem for path in (self.path / folder).glob("step-*.json"))


def _step_name(step: int) -> str:
    return f"step-{step:09d}"


def _is_harmless(key: str) -> bool:
    if _SERVICE.match(key):
        return key.rpartition(".")[2] in _WHERE
    return key.startswith(_HARMLESS) or (
        key.startswith("generators.") and key.rpartition(".")[2] in _ENDPOINT_LIMITS
    )
