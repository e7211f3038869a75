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
_COMMIT = "commit"  # a round's own JSON, beside its manifests


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
        artifact = self.artifact(name)
        if self.finished(name):
            self.verify(name, inputs)
            return artifact
        started = time.perf_counter()
        records = compute(*inputs)
        rows = write_whole(artifact, lambda temporary: write_records(records, kind, temporary))
        self.write_manifest(name, artifact, inputs, time.perf_counter() - started, rows=rows)
        return artifact

    def phase_directory(
        self, name: str, compute: Callable[[Path], dict[str, float]], *inputs: Any, sizes: bool = False
    ) -> tuple[Path, dict[str, float]]:
        """A directory of files and some numbers about it: kept ones, or those that `compute` makes.

        `compute` fills the directory that it is given and returns the numbers; a non-finite one reads back as NaN. With `sizes`
        the files are verified by their sizes alone. Raises like `file_of`, and for a directory that was pruned.
        """
        artifact = self.path / name
        if self.finished(name):
            return artifact, read_numbers(self.verify(name, inputs, artifact)["metrics"])
        remove(artifact)
        started = time.perf_counter()
        metrics = write_whole(artifact, compute, folder=True)
        seconds = time.perf_counter() - started
        self.write_manifest(name, artifact, inputs, seconds, metrics=metrics, sizes=sizes)
        return artifact, metrics

    def finished(self, name: str) -> bool:
        """Whether a phase's manifest, the last thing that it writes, is there."""
        return self._manifest_path(name).is_file()

    def directory(self, name: str) -> Path:
        """A finished directory artifact, verified. Raises ValueError if it is not what was written."""
        artifact = self.path / name
        self._verify_bytes(artifact, self.manifest(name))
        return artifact

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each finished phase took when it was computed."""
        return phase_seconds(self.manifests())

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
        """The digest of a finished phase."""
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

    def manifests(self) -> list[Manifest]:
        """Those of all finished phases."""
        return [self.manifest(p.stem) for p in sorted(self.path.glob("*.json")) if p.stem != _COMMIT]

    def artifact(self, name: str) -> Path:
        """Where a phase's records are."""
        return self.path / f"{name}.parquet"

    def verify(self, name: str, inputs: tuple[Any, ...], artifact: Path | None = None) -> Manifest:
        """The manifest of a finished phase, of records unless its artifact is given. Raises ValueError like `phase`."""
        artifact, manifest, now = artifact or self.artifact(name), self.manifest(name), digest_inputs(inputs)
        if manifest["inputs"] != now:
            raise ValueError(
                f"{artifact}: made from other inputs ({manifest['inputs'][:12]}, now {now[:12]}); {_fix(manifest)}"
            )
        return self._verify_bytes(artifact, manifest)

    def verify_again(self, name: str, fix: str | None = None) -> None:
        """What a finished phase left is there as it was written, as far as a look is cheap: records byte by byte, of a
        directory's large files sampled blocks. What was pruned, or left at a URL, is passed over. Raises ValueError like
        `phase`, with another fix if one is given."""
        manifest = self.manifest(name)
        artifact = self.path / name if "metrics" in manifest else self.artifact(name)
        left_at_url = artifact.is_dir() and not any(artifact.iterdir())  # see RemoteCopy
        if not (manifest.get("pruned") or left_at_url):
            # Manifests of records have no sampled digest, nor those of before there were any.
            self._verify_bytes(artifact, manifest, sampled="sampled" in manifest, fix=fix)

    def _verify_bytes(
        self, artifact: Path, manifest: Manifest, *, sampled: bool = False, fix: str | None = None
    ) -> Manifest:
        fix = fix or _fix(manifest)
        if not artifact.exists():
            pruned = manifest.get("pruned")
            why = "was pruned (run.keep_checkpoints)" if pruned else f"{manifest['name']}.json is there"
            raise ValueError(f"{artifact}: missing, {why}; {fix}")
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
    ) -> None:
        """The last thing of a phase: from here on it is finished."""
        sizes = extra.get("sizes", False)
        if "metrics" in extra and not sizes:
            extra["sampled"] = digest_path(artifact, sampled=True)
        if isinstance(seconds, dict):
            rounded: Any = {phase: round(value, 3) for phase, value in seconds.items()}
        else:
            rounded = round(seconds, 3)
        manifest = {
            "name": name,
            "inputs": digest_inputs(inputs),
            "digest": digest_path(artifact, sizes=sizes),
            "seconds": rounded,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **extra,
        }
        write_json(self._manifest_path(name), manifest)


def begin_parts(folder: Path, inputs: Iterable[Any]) -> None:
    """A folder for the files of something that is under way: those of the same inputs stay in it, others go."""
    digest, known = digest_inputs(inputs), folder / PARTS_INPUTS
    if not known.is_file() or read_json(known)["inputs"] != digest:
        remove(folder)
        folder.mkdir(parents=True)
        write_json(known, {"inputs": digest})


def _fix(manifest: Manifest) -> str:
    return f"put it back, or delete it and {manifest['name']}.json beside it to compute it again"


def read_json(path: Path) -> Manifest:
    """What `write_json` wrote.

    Raises:
        ValueError: the file cannot be read, or is no JSON object.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path}: not the JSON that was written ({why}); put it back or delete it") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(
            f"{path}: holds a {kind}, not the JSON object that was written; put it back or delete it"
        )
    return content


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
