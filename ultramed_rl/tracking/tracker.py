"""Metrics: `metrics.jsonl` always, wandb and TensorBoard beside it. Tracking never stops a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from ultramed_rl.tracking.backends import Backend, Kind, chosen_backends
from ultramed_rl.tracking.console import tell

if TYPE_CHECKING:
    from ultramed_rl.tracking.backends import TrackedConfig

_ATTEMPTS = 3


class Guard:
    """One part of tracking, such as wandb's metrics; once given up it is left alone."""

    def __init__(self, name: str, kept: str = "metrics.jsonl has all metrics") -> None:
        self.name, self.kept, self.working = name, kept, True

    def attempt(self, what: str, action: Callable[[], object]) -> None:
        """Do it, unless this part was given up before."""
        if not self.working:
            return
        from tenacity import Retrying, stop_after_attempt, wait_random_exponential

        wait = wait_random_exponential(0.1, max=2)
        try:
            Retrying(stop=stop_after_attempt(_ATTEMPTS), wait=wait, reraise=True)(action)
        except Exception as error:
            self.working = False
            text = f"{self.name} failed to {what} ({error}); going on without it: {self.kept}"
            warnings.warn(text, stacklevel=2)


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
            if kind is None:
                guarded.picture("keep what was made", partial(self._keep_stage, guarded.backend))
            guarded.metrics.attempt("finish", partial(guarded.backend.finish, kind is not None))

    def log(self, metrics: dict[str, float], step: int, kind: Kind) -> None:
        """Log the metrics of an optimizer step, of a round, or of an evaluation after `step` steps."""
        self.sink.append_metrics({f"{kind}_index": step, **metrics})
        tell("metrics", kind=kind, index=step, metrics=metrics)
        for guarded in self._backends:
            guarded.metrics.attempt("log", partial(guarded.backend.log, kind, step, metrics))
            if kind == "round":
                self._show_round(guarded, step)

    def _show_round(self, guarded: _Guarded, index: int) -> None:
        """Some of its samples and its lineage, out of its folder; a line about the whole run has none."""
        from ultramed_rl.tracking.round_files import made_in_round, round_samples

        folder = self.sink.path / "rounds" / f"{index:03d}"
        if not folder.is_dir():
            return
        seed, prompts = self.config.run.seed, self.config.tracking.sample_prompts
        backend = guarded.backend

        def show() -> None:
            samples = round_samples(folder, index, seed, prompts)
            if samples:
                backend.show(samples, index)

        guarded.picture("show samples", show)
        guarded.picture("keep artifacts", lambda: backend.keep(made_in_round(folder, index, self._start)))

    def _keep_stage(self, backend: Backend) -> None:
        from ultramed_rl.tracking.round_files import made_by_stage

        backend.keep(made_by_stage(self.sink.path, self._start))

    @property
    def _start(self) -> str:
        """The model that the run began with; nothing where it has none."""
        model = getattr(self.config, "policy", None) or getattr(self.config, "model", None)
        return str(getattr(model, "path", "") or "")
