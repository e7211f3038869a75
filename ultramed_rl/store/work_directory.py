"""`runs/NAME/`: one writer, the resolved config, metrics; and what a stage and an online run keep there.

WorkDirectory <-- StageDirectory: states, best weights
              <-- RunDirectory: a folder of artifacts for each round, and the commit that ends it
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ultramed_rl.config import AnyConfig, RunConfig, config_difference, dump_config, load_any
from ultramed_rl.config.models import DECIDES, Endpoint
from ultramed_rl.store.artifacts import ArtifactFolder, read_json, read_manifests
from ultramed_rl.store.atomic import (
    explain_full_disk,
    remove,
    remove_leftovers,
    without_non_finite,
    write_json,
    write_text,
)
from ultramed_rl.store.digests import key_number
from ultramed_rl.store.remote import OWN, RemoteCopy
from ultramed_rl.store.remote_folder import RemoteFolder
from ultramed_rl.store.run_reader import ENVIRONMENT, RunReader, describe_environment, read_rows
from ultramed_rl.store.shards import read_columns

Metrics = dict[str, float]
INPUTS = "inputs.json"
# Keys whose change doesn't change what a run computes. A reward server or judge may have moved: its address never told what
# answers there, so that another address tells no more than the same one. A judge's model, which decides, is named beside it.
_HARMLESS = re.compile(
    r"run\.(directory|scratch|publish_every_s|keep_checkpoints)|checkpoint\.|tracking\.|max_failed_share"
    r"|cluster\.(address|start_timeout_s|faults\.|workers)"
    r"|((reward\.terms|evaluation\.judges)\.\d+|benchmarks\.judge)\.(.+\.)?"
    r"(url|base_url|token_env|api_key_env|timeout_s|retries|concurrency|batch_size|cache)$"
    rf"|generators\.(.+\.)?({'|'.join(Endpoint.model_fields.keys() - DECIDES)})$"
)
# Of a committed round what cannot be made again by itself: later rounds follow from it.
_FOLLOWED = ("scored", "checkpoint", "reference_model")


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
        if config.run.url is not None:
            RemoteFolder(config.run.url)  # which refuses what nothing opens, before anything is made
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
        saved = self.path / "config.yaml"
        if self.config.run.url is not None:
            self._remote = RemoteCopy(self.config.run.url, self.path, self.config.run.publish_every_s)
            self._remote.take_up(lambda saved: self._check_saved(saved, resume))
        if saved.is_file():
            self._check_saved(saved, resume)
        self._keep_inputs(inputs(), begun=saved.is_file())
        remove_leftovers(self.path)
        write_text(saved, dump_config(self.config))
        if not (environment := self.path / ENVIRONMENT).is_file():  # the first start's stays
            write_json(environment, describe_environment())
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
        if changed := changed_settings(before, self.config):
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
            write_text(path, "".join(json.dumps(row) + "\n" for row in read_rows(path) if wanted(row)))


class StageDirectory(WorkDirectory):
    """The store of a stage. data/ and reference.parquet are made before the first step, states/step-000000040/ and best/ on
    the way, model/ at the end."""

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


@dataclass(frozen=True)
class Asked:
    """The prompts that a round has asked."""

    by_source: Mapping[int, int]  # how many of each source
    numbers: np.ndarray  # [N] the prompts, by the `key_number` of their ids
    # [N] whether a prompt's answers were scored and gave no pair, for whatever reason. Not one that was set aside: that says
    # nothing of the prompt's difficulty.
    unpaired: np.ndarray


class RoundRecord(ArtifactFolder):
    """The folder of a round; -1 is what is made before the first."""

    def __init__(self, path: Path, index: int) -> None:
        super().__init__(path)
        self.index = index

    def commit(self, metrics: dict[str, float]) -> None:
        """The round is done: nothing of it will be computed again. Holds its phases' digests."""
        phases = {name: manifest["digest"] for name, manifest in read_manifests(self.path).items()}
        write_json(self.path / "commit.json", {"round": self.index, "metrics": metrics, "phases": phases})

    def asked(self) -> Asked:
        """Which of its prompts the round has asked, and which of them gave no pair."""
        scored = self.manifest("scored")
        prompts = read_columns(self.artifact("prompts"), "source", "prompt_id").slice(0, scored.get("asked"))
        by_source = Counter(prompts["source"].to_pylist())
        ids = prompts["prompt_id"].combine_chunks()
        paired = pc.is_in(ids, value_set=read_columns(self.artifact("pairs"), "prompt_id")["prompt_id"])
        set_aside = pc.is_in(ids, value_set=pa.array(list(scored.get("set_aside", ())), type=pa.string()))
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
        isn't committed is verified phase by phase as it is read back. Raises ValueError: naming the file that is another
        one. Records whose manifest is gone are no error: they follow from what is there, and are made again. What other
        rounds follow from is not: answers, and weights.
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

    def prune_checkpoints(self, keep: int, best: int | None = None) -> None:
        """Keep the last `keep` checkpoints of committed rounds only, and that of round `best`, if any."""
        saved = [index for index in range(self.committed_rounds()) if self._has_checkpoint(index)]
        for index in saved[:-keep]:
            for name in ("reference_model", *(["checkpoint"] if index != best else [])):
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


def _step_name(step: int) -> str:
    return f"step-{step:09d}"


def changed_settings(before: AnyConfig, now: AnyConfig) -> list[str]:
    """The keys, `key: before -> now`, in which two configs differ and of which it matters for what a run computes."""
    return [line for line in config_difference(before, now) if not _HARMLESS.match(line.partition(":")[0])]
