"""A stage under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ultramed_rl.config.factory_stage import DataConfig
from ultramed_rl.tracking import Progress


@dataclass(frozen=True)
class Work:
    """A stage under way: `scratch` is kept until it is done and after, `output` appears whole at its end."""

    config: DataConfig
    identity: Sequence[str]
    scratch: Path
    output: Path
    progress: Progress
    retry_failed: bool = False
