"""Metrics: `metrics.jsonl` always, wandb beside it. Tracking never stops a run."""

from __future__ import annotations

import os
import secrets
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from tenacity import Retrying, stop_after_attempt, wait_random_exponential

from ultramed_rl.config import (
    DataConfig,
    EvaluateConfig,
    PreferenceConfig,
    RewardBenchConfig,
    RewardConfig,
    RunConfig,
    SftConfig,
)

TrackedConfig = (
    RunConfig | SftConfig | RewardConfig | PreferenceConfig | EvaluateConfig | RewardBenchConfig | DataConfig
)
Kind = Literal["step", "round", "evaluation", "data"]
# The axis and the prefix under which wandb shows each kind.
_PANELS: dict[Kind, tuple[str, str]] = {
    "step": ("policy_step", "train"),
    "round": ("round", "round_metrics"),
    "evaluation": ("policy_step", "held_out"),
    "data": ("data_step", "data"),
}


class MetricsSink(Protocol):
    """What the tracker needs of a run directory."""

    path: Path

    def append_metrics(self, metrics: dict[str, Any]) -> None: ...


class Tracker:
    """Logs the metrics of optimizer steps and of rounds. Use as a context manager."""

    def __init__(self, sink: MetricsSink, config: TrackedConfig) -> None:
        self.sink, self.config = sink, config
        self.run: Any = None

    def __enter__(self) -> Tracker:
        mode = self.config.tracking.wandb
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        if mode != "disabled":
            self._try("start", lambda: self._start(mode))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.run is not None:
            self._try("finish", lambda: self.run.finish(exit_code=0 if kind is None else 1))

    def log(self, metrics: dict[str, float], step: int, kind: Kind) -> None:
        """Log the metrics of an optimizer step, of a round, or of an evaluation after `step` steps."""
        self.sink.append_metrics({f"{kind}_index": step, **metrics})
        if self.run is not None:
            axis, prefix = _PANELS[kind]
            row = {f"{prefix}/{name}": value for name, value in metrics.items()}
            self._try("log", lambda: self.run.log({axis: step, **row}))

    def _start(self, mode: str) -> None:
        import wandb

        self.run = wandb.init(
            project=self.config.tracking.project,
            name=self.config.run.name,
            group=self.config.tracking.group,
            tags=self.config.tracking.tags,
            id=self._run_id(),
            resume="allow" if mode == "online" else None,
            dir=str(self.sink.path),
            mode=mode,  # type: ignore[arg-type]
            config=self.config.model_dump(mode="json"),
            # Nothing of the machine or the code is collected: a secret could stand anywhere in them.
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
                # A network that is down costs a minute or two, never the run; offline files stay.
                init_timeout=30.0,
                finish_timeout=60.0,
            ),
        )
        for axis, prefix in _PANELS.values():
            self.run.define_metric(f"{prefix}/*", step_metric=axis)

    def _run_id(self) -> str:
        """The same id on resume, so that wandb goes on with the same run."""
        path = self.sink.path / "wandb_run_id"
        if not path.is_file():
            path.write_text(secrets.token_hex(4))
        return path.read_text().strip()

    def _try(self, what: str, action: Any) -> None:
        retry = Retrying(stop=stop_after_attempt(3), wait=wait_random_exponential(0.1, max=2), reraise=True)
        try:
            retry(action)
        except Exception as error:
            self.run = None
            text = f"wandb failed to {what} ({error}); going on with metrics.jsonl alone"
            warnings.warn(text, stacklevel=2)
