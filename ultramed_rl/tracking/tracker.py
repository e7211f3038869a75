"""Metrics: `metrics.jsonl` always, wandb and TensorBoard beside it. Tracking never stops a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from ultramed_rl.tracking.guard import Guard
from ultramed_rl.tracking.kinds import Backend, Kind
from ultramed_rl.tracking.round_files import Made, made_by_stage, made_in_round, round_samples
from ultramed_rl.tracking.tensorboard_events import TensorboardEvents
from ultramed_rl.tracking.voice import tell
from ultramed_rl.tracking.wandb_run import WandbRun, wandb_mode

if TYPE_CHECKING:
    from ultramed_rl.tracking.kinds import TrackedConfig


class MetricsSink(Protocol):
    """What the tracker needs of a run directory."""

    path: Path

    def append_metrics(self, metrics: dict[str, Any]) -> None: ...


class _Guarded:
    """A backend whose metrics, and whose samples and artifacts, are given up each for themselves."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.metrics = Guard(backend.name)
        self.pictures = Guard(f"{backend.name}'s samples and artifacts", "the run directory has them all")

    def picture(self, what: str, action: Callable[[], object]) -> None:
        if self.metrics.working:
            self.pictures.attempt(what, action)


class Tracker:
    """Logs the metrics of optimizer steps and of rounds, and shows what a round left. A context manager.

    Args:
        backends: who shows it; by default those that the config names.
    """

    def __init__(
        self, sink: MetricsSink, config: TrackedConfig, backends: Sequence[Backend] | None = None
    ) -> None:
        self.sink, self.config = sink, config
        wanted = chosen_backends(sink.path, config) if backends is None else backends
        self._backends = [_Guarded(backend) for backend in wanted]

    @property
    def working(self) -> list[str]:
        """The names of the backends that haven't been given up."""
        return [guarded.backend.name for guarded in self._backends if guarded.metrics.working]

    def __enter__(self) -> Tracker:
        for guarded in self._backends:
            guarded.metrics.attempt("start", guarded.backend.start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for guarded in self._backends:
            backend = guarded.backend
            if kind is None:
                guarded.picture("keep what was made", lambda to=backend: to.keep(self._made_by_stage()))  # type: ignore[misc]
            guarded.metrics.attempt("finish", lambda to=backend: to.finish(kind is not None))  # type: ignore[misc]

    def log(self, metrics: dict[str, float], step: int, kind: Kind) -> None:
        """Log the metrics of an optimizer step, of a round, or of an evaluation after `step` steps."""
        self.sink.append_metrics({f"{kind}_index": step, **metrics})
        tell("metrics", kind=kind, index=step, metrics=metrics)
        for guarded in self._backends:
            guarded.metrics.attempt("log", lambda to=guarded.backend: to.log(kind, step, metrics))  # type: ignore[misc]
            if kind == "round":
                self._show_round(guarded, step)

    def _show_round(self, guarded: _Guarded, index: int) -> None:
        """Some of its samples and its lineage, out of its folder; a line about the whole run has none."""
        folder = self.sink.path / "rounds" / f"{index:03d}"
        if not folder.is_dir():
            return
        seed, prompts = self.config.run.seed, self.config.tracking.sample_prompts

        def show() -> None:
            samples = round_samples(folder, index, seed, prompts)
            if samples:
                guarded.backend.show(samples, index)

        guarded.picture("show samples", show)
        guarded.picture(
            "keep artifacts", lambda: guarded.backend.keep(made_in_round(folder, index, self._start))
        )

    def _made_by_stage(self) -> list[Made]:
        return made_by_stage(self.sink.path, self._start)

    @property
    def _start(self) -> str:
        """The model that the run began with; nothing where it has none."""
        model = getattr(self.config, "policy", None) or getattr(self.config, "model", None)
        return str(getattr(model, "path", "") or "")


def chosen_backends(directory: Path, config: TrackedConfig) -> list[Backend]:
    """Those that the config names."""
    mode = wandb_mode(config)
    found: list[Backend] = [WandbRun(directory, config, mode)] if mode is not None else []
    return found + ([TensorboardEvents(directory, config)] if config.tracking.tensorboard else [])
