"""A folder of artifacts. A finished phase is read back; a new one is computed and written whole."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ultramed_rl.store.atomic import remove, write_json, write_whole
from ultramed_rl.store.digests import digest_inputs, digest_path
from ultramed_rl.store.tables import read_records, write_records

T = TypeVar("T")
Manifest = dict[str, Any]
PARTS_INPUTS = "_inputs.json"  # readers of parquet folders pass over what begins so


class ArtifactFolder:
    """A folder of artifacts, each beside a manifest with its digest and the digest of its inputs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir(parents=True, exist_ok=True)

    def phase(self, name: str, compute: Callable[..., list[T]], *inputs: Any, kind: type[T]) -> list[T]:
        """The records of a phase, all in memory; like `file_of`."""
        return read_records(kind, self.file_of(name, compute, *inputs, kind=kind))

    def file_of(self, name: str, compute: Callable[..., Iterable[T]], *inputs: Any, kind: type[T]) -> Path:
        """The records of a phase in their file: verified if it is finished, else written as `compute(*inputs)` gives them.

        `inputs` are records, numbers, strings and lists of these; their digest is kept with the artifact.

        Raises:
            ValueError: the artifact is of other inputs, or not what was written.
            RuntimeError: the disk is full.
        """

        def write(file: Path) -> Manifest:
            return {"rows": write_records(compute(*inputs), kind, file)}

        artifact = self.artifact(name)
        self._once(name, artifact, write, inputs)
        return artifact

    def phase_directory(
        self, name: str, compute: Callable[[Path], dict[str, float]], *inputs: Any, sizes: bool = False
    ) -> tuple[Path, dict[str, float]]:
        """A directory of files and some numbers about it: kept ones, or those that `compute` makes. `compute` fills the
        directory that it is given and returns the numbers; a non-finite one reads back as NaN. With `sizes` the files
        are verified by their sizes alone. Raises like `file_of`, and for a directory that was pruned."""

        def write(folder: Path) -> Manifest:
            folder.mkdir()
            return {"metrics": compute(folder), "sizes": sizes}

        manifest = self._once(name, self.path / name, write, inputs)
        return self.path / name, read_numbers(manifest["metrics"])

    def _once(
        self, name: str, artifact: Path, write: Callable[[Path], Manifest], inputs: tuple[Any, ...]
    ) -> Manifest:
        """What a phase wrote about itself, now or before. `write` is given the artifact's temporary name."""
        if self.finished(name):
            return self.verify(name, inputs)
        remove(artifact)
        started = time.perf_counter()
        extra = write_whole(artifact, write)
        return self.write_manifest(name, artifact, inputs, time.perf_counter() - started, **extra)

    def finished(self, name: str) -> bool:
        """Whether a phase's manifest, the last thing that it writes, is there."""
        return self._manifest_path(name).is_file()

    def directory(self, name: str) -> Path:
        """A finished directory artifact, verified. Raises ValueError if it is not what was written."""
        self.verify(name)
        return self.path / name

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each finished phase took when it was computed."""
        return phase_seconds(read_manifests(self.path).values())

    def metrics(self, name: str) -> dict[str, float]:
        """The numbers that a finished directory phase returned."""
        return read_numbers(self.manifest(name)["metrics"])

    def manifest(self, name: str) -> Manifest:
        """What a finished phase wrote about itself. Raises ValueError for a file that is no manifest."""
        path = self._manifest_path(name)
        manifest = read_json(path)
        if not {"name", "inputs", "digest", "seconds"} <= manifest.keys():
            raise ValueError(f"{path}: not the manifest that was written; put it back or delete it")
        return manifest

    def digest(self, name: str) -> str:
        return str(self.manifest(name)["digest"])

    def discard(self, name: str) -> None:
        """Forget an artifact altogether."""
        remove(self._manifest_path(name))
        for left in (self.path / name, self.artifact(name), self.path / f"{name}.parts"):
            remove(left)

    def prune(self, name: str) -> None:
        """Delete a directory artifact that is no longer needed; its manifest says so."""
        if (self.path / name).is_dir():
            write_json(self._manifest_path(name), {**self.manifest(name), "pruned": True})
            remove(self.path / name)

    def _manifest_path(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def artifact(self, name: str) -> Path:
        """Where a phase's records are."""
        return self.path / f"{name}.parquet"

    def verify(
        self,
        name: str,
        inputs: tuple[Any, ...] | None = None,
        *,
        cheaply: bool = False,
        fix: str | None = None,
    ) -> Manifest:
        """The manifest of a finished phase that is of these inputs, if any are given, and as it was written.

        Args:
            cheaply: of a directory's large files look at sampled blocks; pass over one that was pruned, or left at a URL.
            fix: for the error, if it isn't to compute the phase again.

        Raises:
            ValueError: it is another one.
        """
        manifest = self.manifest(name)
        artifact = self.path / name if "metrics" in manifest else self.artifact(name)
        fix = fix or f"put it back, or delete it and {name}.json beside it to compute it again"
        now = manifest["inputs"] if inputs is None else digest_inputs(inputs)
        if manifest["inputs"] != now:
            raise ValueError(
                f"{artifact}: made from other inputs ({manifest['inputs'][:12]}, now {now[:12]}); {fix}"
            )
        left_at_url = artifact.is_dir() and not any(artifact.iterdir())  # see RemoteCopy
        if cheaply and (manifest.get("pruned") or left_at_url):
            return manifest
        if not artifact.exists():
            pruned = manifest.get("pruned")
            why = "was pruned (run.keep_checkpoints)" if pruned else f"{name}.json is there"
            raise ValueError(f"{artifact}: missing, {why}; {fix}")
        # Manifests of records have no sampled digest, nor those of before there were any.
        sampled = cheaply and "sampled" in manifest
        expected = manifest["sampled" if sampled else "digest"]
        now = digest_path(artifact, sizes=manifest.get("sizes", False), sampled=sampled)
        if expected != now:
            raise ValueError(f"{artifact}: not what was written ({expected[:12]}, found {now[:12]}); {fix}")
        return manifest

    def write_manifest(
        self,
        name: str,
        artifact: Path,
        inputs: tuple[Any, ...],
        seconds: float | dict[str, float],
        **extra: Any,
    ) -> Manifest:
        """The last thing of a phase: from here on it is finished."""
        sizes = extra.get("sizes", False)
        if "metrics" in extra and not sizes:
            extra["sampled"] = digest_path(artifact, sampled=True)
        manifest = {
            "name": name,
            "inputs": digest_inputs(inputs),
            "digest": digest_path(artifact, sizes=sizes),
            "seconds": {phase: round(value, 3) for phase, value in seconds.items()}
            if isinstance(seconds, dict)
            else round(seconds, 3),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **extra,
        }
        write_json(self._manifest_path(name), manifest)
        return manifest


def begin_parts(folder: Path, inputs: Iterable[Any]) -> None:
    """A folder for the files of something that is under way: those of the same inputs stay in it, others go."""
    digest, known = digest_inputs(inputs), folder / PARTS_INPUTS
    if not known.is_file() or read_json(known)["inputs"] != digest:
        remove(folder)
        folder.mkdir(parents=True)
        write_json(known, {"inputs": digest})


def read_json(path: Path) -> Manifest:
    """What `write_json` wrote. Raises ValueError: the file cannot be read, or is no JSON object."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path}: not the JSON that was written ({why}); put it back or delete it") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: holds a {type(content).__name__}, not the JSON object that was written; put it back or delete it"
        )
    return content


def read_manifests(folder: Path) -> dict[str, Manifest]:
    """Those of a folder's finished phases, by their names; other JSON, as a round's commit, is passed over."""
    contents = [read_json(path) for path in sorted(folder.glob("*.json"))]
    named = [content for content in contents if {"digest", "name"} <= content.keys()]
    return {str(m["name"]): m for m in named if isinstance(m.get("seconds"), int | float | dict)}


def phase_seconds(manifests: Iterable[Manifest]) -> dict[str, float]:
    """Seconds that each phase took, of one or several in a manifest."""
    phases: dict[str, float] = {}
    for manifest in manifests:
        seconds = manifest["seconds"]
        phases |= seconds if isinstance(seconds, dict) else {manifest["name"]: float(seconds)}
    return phases


def read_numbers(stored: dict[str, float | None]) -> dict[str, float]:
    """A manifest's metrics; a number that wasn't finite is NaN."""
    return {name: math.nan if value is None else value for name, value in stored.items()}
