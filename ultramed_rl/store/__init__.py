"""What a run keeps: atomic artifacts with the digest of their inputs, rounds, and resume."""

from ultramed_rl.store.round_record import RoundRecord
from ultramed_rl.store.run_directory import RunDirectory

__all__ = ["RoundRecord", "RunDirectory"]
