"""What a run keeps: atomic artifacts with the digest of their inputs, rounds, stages, and resume."""

from ultramed_rl.store.artifacts import ArtifactFolder
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.store.tables import SampleFile, write_samples
from ultramed_rl.store.work_directory import RoundRecord, RunDirectory, StageDirectory, WorkDirectory

__all__ = [
    "ArtifactFolder",
    "RoundRecord",
    "RunDirectory",
    "RunReader",
    "SampleFile",
    "StageDirectory",
    "WorkDirectory",
    "write_samples",
]
