"""One round's artifacts. A finished phase is read back; a new one is computed and written whole."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ultramed_rl.store.atomic import remove, remove_leftovers, write_json, write_whole
from ultramed_rl.store.digests import digest_inputs, digest_path
from ultramed_rl.store.tables import read_records, write_records

T = TypeVar("T")
Manifest = dict[str, Any]


class RoundRecord:
    """A folder of artifacts, each beside a manifest with its digest and the digest of its inputs."""

    def __init__(self, path: Path, index: int) -> None:
        self.path, self.index = path, index
        self.path.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.path)

    def phase(self, name: str, compute: Callable[..., list[T]], *inputs: Any, kind: type[T]) -> list[T]:
        """The records of a phase: read back if it is finished, else `compute(*inputs)`, then kept.

        Raises:
            ValueError: the artifact is of other inputs, or not what was written.
        """
        artifact = self.path / f"{name}.parquet"
        if self.finished(name):
            self._verify(name, artifact, inputs)
            return read_records(kind, artifact)
        started = time.perf_counter()
        records = compute(*inputs)
        seconds = time.perf_counter() - started
        write_whole(artifact, lambda temporary: write_records(records, kind, temporary))
        self._write_manifest(name, artifact, inputs, seconds, rows=len(records))
        return records

    def phase_directory(
        self, name: str, compute: Callable[[Path], dict[str, float]], *inputs: Any
    ) -> tuple[Path, dict[str, float]]:
        """A directory of files and some numbers about it: kept ones, or those that `compute` makes."""
        artifact = self.path / name
        if self.finished(name):
            return artifact, self._verify(name, artifact, inputs)["metrics"]
        remove(artifact)
        started = time.perf_counter()

        def write(temporary: Path) -> dict[str, float]:
            temporary.mkdir()
            return compute(temporary)

        metrics = write_whole(artifact, write)
        self._write_manifest(name, artifact, inputs, time.perf_counter() - started, metrics=metrics)
        return artifact, metrics

    def finished(self, name: str) -> bool:
        """Whether a phase's manifest, the last thing that it writes, is there."""
        return self._manifest_path(name).is_file()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each finished phase took when it was computed."""
        manifests = [json.loads(p.read_text()) for p in sorted(self.path.glob("*.json")) if p.stem != "commit"]
        return {m["name"]: m["seconds"] for m in manifests}

    def commit(self, metrics: dict[str, float]) -> None:
        """The round is done: nothing of it will be computed again."""
        write_json(self.path / "commit.json", {"round": self.index, "metrics": metrics})

    @property
    def committed(self) -> bool:
        """Whether the round is done."""
        return (self.path / "commit.json").is_file()

    def committed_metrics(self) -> dict[str, float]:
        """What `commit` was given."""
        metrics: dict[str, float] = json.loads((self.path / "commit.json").read_text())["metrics"]
        return metrics

    def prune(self, name: str) -> None:
        """Delete a directory artifact that is no longer needed; its manifest says so."""
        if not (self.path / name).is_dir():
            return
        manifest = json.loads(self._manifest_path(name).read_text())
        write_json(self._manifest_path(name), {**manifest, "pruned": True})
        remove(self.path / name)

    def _manifest_path(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _verify(self, name: str, artifact: Path, inputs: tuple[Any, ...]) -> Manifest:
        manifest: Manifest = json.loads(self._manifest_path(name).read_text())
        cure = f"delete {self.path} to compute it again"
        if not artifact.exists():
            raise ValueError(f"{artifact}: missing though its manifest is there; {cure}")
        expected = digest_inputs(inputs)
        if manifest["inputs"] != expected:
            raise ValueError(
                f"{artifact}: made from other inputs ({manifest['inputs'][:12]}, now {expected[:12]}); {cure}"
            )
        found = digest_path(artifact)
        if manifest["digest"] != found:
            raise ValueError(f"{artifact}: not what was written ({manifest['digest'][:12]}, found {found[:12]}); {cure}")
        return manifest

    def _write_manifest(
        self, name: str, artifact: Path, inputs: tuple[Any, ...], seconds: float, **extra: Any
    ) -> None:
        manifest = {
            "name": name,
            "inputs": digest_inputs(inputs),
            "digest": digest_path(artifact),
            "seconds": round(seconds, 3),
            **extra,
        }
        write_json(self._manifest_path(name), manifest)
