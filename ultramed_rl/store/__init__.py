"""What a run keeps: atomic artifacts with the digest of their inputs, rounds, stages, and resume."""

from ultramed_rl.store.artifacts import ArtifactFolder
from ultramed_rl.store.round_record import RoundRecord
from ultramed_rl.store.run_directory import RunDirectory
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.store.samples import SampleFile, write_samples
from ultramed_rl.store.stage_directory import StageDirectory
from ultramed_rl.store.work_directory import WorkDirectory

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
