"""Metrics and samples as TensorBoard's event files: `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultramed_rl.tracking.kinds import PANELS, Kind
from ultramed_rl.tracking.round_files import Made, Sample

if TYPE_CHECKING:
    from ultramed_rl.tracking.kinds import TrackedConfig

INSTALL = "pip install 'ultramed_rl[tensorboard]'"


class TensorboardEvents:
    """Event files in RUN/tensorboard; a resumed run adds another one beside the first."""

    name = "tensorboard"

    def __init__(self, directory: Path, config: TrackedConfig) -> None:
        self.directory, self.config = directory / "tensorboard", config
        self.writer: Any = None

    def start(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"tracking.tensorboard=true needs the package tensorboard: {INSTALL}"
            ) from error
        self.writer = SummaryWriter(log_dir=str(self.directory))
        self.writer.add_text("config", _verbatim(json.dumps(self.config.model_dump(mode="json"), indent=1)))

    def log(self, kind: Kind, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(f"{PANELS[kind][1]}/{name}", value, step)
        self.writer.flush()

    def show(self, samples: Sequence[Sample], step: int) -> None:
        for sample in samples:
            head = f"reward {sample.reward:.4g} {sample.chosen}".rstrip()
            text = f"{sample.prompt}\n\n{sample.completion}"
            tag = f"samples/{sample.prompt_id}/{sample.sample}"
            self.writer.add_text(tag, f"{head}\n\n{_verbatim(text)}", step)

    def keep(self, made: Sequence[Made]) -> None:
        for item in made:
            lineage = {"digest": item.digest, "path": str(item.path), "parents": dict(item.parents)}
            text = _verbatim(json.dumps(lineage, indent=1))
            self.writer.add_text(f"lineage/{item.name}", text, item.version)

    def finish(self, failed: bool) -> None:
        if self.writer is not None:
            self.writer.close()


def _verbatim(text: str) -> str:
    """As a block of code: what a model wrote is no markup."""
    return "\n".join(f"    {line}" for line in text.splitlines())
