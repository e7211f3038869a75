"""What a run keeps: atomic artifacts with the digest of their inputs, rounds, stages, and resume."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultramed_rl.store.artifacts import ArtifactFolder as ArtifactFolder
    from ultramed_rl.store.run_reader import RunReader as RunReader
    from ultramed_rl.store.tables import SampleFile as SampleFile
    from ultramed_rl.store.tables import write_samples as write_samples
    from ultramed_rl.store.work_directory import RoundRecord as RoundRecord
    from ultramed_rl.store.work_directory import RunDirectory as RunDirectory
    from ultramed_rl.store.work_directory import StageDirectory as StageDirectory
    from ultramed_rl.store.work_directory import WorkDirectory as WorkDirectory

_HOMES = {
    **dict.fromkeys(("RoundRecord", "RunDirectory", "StageDirectory", "WorkDirectory"), "work_directory"),
    **dict.fromkeys(("SampleFile", "write_samples"), "tables"),
    "ArtifactFolder": "artifacts",
    "RunReader": "run_reader",
}


def __getattr__(name: str) -> Any:
    """Load on first use: who reads a checkpoint's digest needs no tables."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
