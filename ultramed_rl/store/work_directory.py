"""`runs/NAME/`: one writer, the resolved config, metrics. What else is in it is its kind's business."""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ultramed_rl.config import AnyConfig, config_difference, dump_config, load_any
from ultramed_rl.config.models import DECIDES, Endpoint
from ultramed_rl.store.artifacts import read_json
from ultramed_rl.store.atomic import (
    explain_full_disk,
    remove_leftovers,
    without_non_finite,
    write_json,
    write_whole,
)
from ultramed_rl.store.environment import FILE as ENVIRONMENT
from ultramed_rl.store.environment import write_environment
from ultramed_rl.store.remote import RemoteCopy, check_url
from ultramed_rl.store.remote.local import JOURNAL
from ultramed_rl.store.run_reader import read_rows

INPUTS = "inputs.json"
# Keys whose change doesn't change what a run computes.
_HARMLESS = (
    "run.directory",
    "run.scratch",
    "run.publish_every_s",
    "run.keep_checkpoints",
    "checkpoint.",
    "tracking.",
    "cluster.address",
    "cluster.start_timeout_s",
    "cluster.faults.",
    "cluster.workers",
    "max_failed_share",
)
# A reward server or judge may have moved: its address never told what answers there, so that another address tells no more
# than the same one. A judge's model, which decides, is named beside it.
_SERVICE = re.compile(r"reward\.terms\.\d+\.|benchmarks\.judge\.")
_WHERE_AND_HOW = {
    *("url", "base_url", "token_env", "api_key_env"),
    *("timeout_s", "retries", "concurrency", "batch_size"),
}
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
            self._check_copy(self._remote, resume)
            self._remote.take_up()
        if saved.is_file():
            self._check_saved(saved, resume)
        self._keep_inputs(inputs(), begun=saved.is_file())
        remove_leftovers(self.path)
        write_whole(saved, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        write_environment(self.path)
        if self._remote is not None:
            self._remote.start()

    def _keep_inputs(self, found: Mapping[str, str], *, begun: bool) -> None:
        """Compare with the start, and keep what couldn't be told then. Comes before the config is written, by which a run
        has begun. Raises ValueError for what is another one now."""
        file = self.path / INPUTS
        before = read_json(file) if begun and file.is_file() else {}
        changed = [
            f"{name}: {_short(before[name])} -> {_short(value)}"
            for name, value in found.items()
            if before.get(name, value) != value
        ]
        if changed:
            raise ValueError(
                f"{self.config.run.url or self.path}: was started with other inputs ({'; '.join(changed)}); put back what "
                "they were, or choose another run.name; to make it anew, delete the folder"
            )
        if found.keys() - before.keys():
            write_json(file, {**found, **before})

    def _check_copy(self, remote: RemoteCopy, resume: bool) -> None:
        """Check against the run at the URL before all of it is pulled."""
        content = remote.read_config() if remote.behind else None
        if content is not None:
            with tempfile.TemporaryDirectory() as folder:
                saved = Path(folder, "config.yaml")
                saved.write_bytes(content)
                self._check_saved(saved, resume)

    def _check_saved(self, saved: Path, resume: bool) -> None:
        before, shown = load_any(saved), self.config.run.url or self.path
        if before.type != self.config.type:
            raise ValueError(f"{shown}: holds a run of type {before.type}; choose another run.name")
        _check_resume(shown, before, self.config, resume)

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ValueError):
            self._forget_start()
        self._let_go(failed=error is not None)

    def _forget_start(self) -> None:
        """Where bad input stopped a run before it made anything, it can be mended under the same name."""
        remove_leftovers(self.path)
        beginnings = {".lock", "config.yaml", "status.json", INPUTS, ENVIRONMENT, JOURNAL}
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

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole lines of `metrics.jsonl`."""
        return list(read_rows(self.path / "metrics.jsonl"))

    def keep_metrics(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Forget all other lines of `metrics.jsonl`, and what a killed run wrote by halves."""
        path = self.path / "metrics.jsonl"
        if path.is_file():
            text = "".join(json.dumps(row) + "\n" for row in self.read_metrics() if wanted(row))
            write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _short(value: object) -> str:
    """A description with its digests cut."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1", str(value))


def _is_harmless(key: str) -> bool:
    if _SERVICE.match(key):
        return key.rpartition(".")[2] in _WHERE_AND_HOW
    return key.startswith(_HARMLESS) or (
        key.startswith("generators.") and key.rpartition(".")[2] in _ENDPOINT_LIMITS
    )


def _check_resume(path: Path | str, saved: AnyConfig, config: AnyConfig, resume: bool) -> None:
    if not resume:
        raise ValueError(
            f"{path}: holds a run already; go on with it by --resume, or choose another run.name"
        )
    changed = [line for line in config_difference(saved, config) if not _is_harmless(line.partition(":")[0])]
    if changed:
        raise ValueError(
            f"{path}: was started with another config ({'; '.join(changed)}); "
            "undo the change or choose another run.name"
        )
