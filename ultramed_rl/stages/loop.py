"""A stage's training: steps, evaluations, saved states, early stop, and the model at the end."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.config.stages import StageConfig
from ultramed_rl.learning.batching import count_steps
from ultramed_rl.store import RunReader, StageDirectory
from ultramed_rl.store.cards import Input, ModelFacts, model_card, write_card
from ultramed_rl.tracking import Progress, Tracker
from ultramed_rl.workers.stage import StageWorkers

Metrics = dict[str, float]


@dataclass(frozen=True)
class Place:
    """Where a training stands."""

    step: int = 0
    best_loss: float = math.inf  # held-out
    best_step: int = 0
    waited: int = 0  # evaluations since then
    skipped: int = 0  # steps whose gradient was not finite; `training.max_skipped_steps` allows so many


class StageLoop:
    """Takes the steps of one stage. Everything it decides by is in `Place`, which is saved with each state."""

    def __init__(
        self,
        config: StageConfig,
        store: StageDirectory,
        workers: StageWorkers,
        samples: int,
        evaluates: bool,
        tracker: Tracker,
        progress: Progress,
    ) -> None:
        self.config, self.store, self.workers = config, store, workers
        self.evaluates, self.tracker, self.progress = evaluates, tracker, progress
        training = config.training
        self.steps = count_steps(samples, training.batch_size, training.epochs, training.max_steps)
        self.samples = samples
        self.schedule = TrainingPlace(0, 1, config.run.seed, training.max_steps)

    def run(self) -> tuple[Path, Metrics]:
        """All steps that aren't taken yet; returns the model's directory and the stage's figures."""
        training, place = self.config.training, self.take_up()
        if self.evaluates and place.step == 0:
            place = self.evaluate(place)
        patience = math.inf if training.patience is None else training.patience
        with self.progress.phase(f"train {self.config.type}", self.steps, "steps") as bar:
            bar.advance(place.step)
            while place.step < self.steps and place.waited < patience:
                # Train up to the next event and let it happen.
                stop = next_event(place.step, self.steps, training.evaluate_every, training.save_every)
                for metrics in self.workers.train(self.schedule, place.step, stop):
                    self.tracker.log(metrics, step=int(metrics["step"]), kind="step")
                    place = replace(place, skipped=place.skipped + math.isnan(metrics["grad_norm"]))
                    bar.advance(1)
                place = replace(place, step=stop)
                if self.evaluates and (stop == self.steps or is_due(stop, training.evaluate_every)):
                    place = self.evaluate(place)
                if stop < self.steps and is_due(stop, training.save_every):
                    self.save(place)
        return self.finish(place)

    def take_up(self) -> Place:
        """Where the newest saved state stands, loaded; or the start."""
        place = Place()
        if (saved := self.store.newest("states")) is not None:
            path, numbers = saved
            counts = {name: int(numbers.get(name, 0)) for name in ("step", "best_step", "waited", "skipped")}
            self.workers.load_state(path, counts["skipped"])
            best = numbers["best_loss"]
            place = Place(best_loss=math.inf if math.isnan(best) else best, **counts)
            self.progress.say(f"resuming after step {place.step} of {self.steps}")
        self.store.discard_after(place.step)
        return place

    def evaluate(self, place: Place) -> Place:
        """Measure the held-out data; keep the weights if they are the best so far and wanted.

        The start counts: a training that never gets below its loss ends with the weights it began with.
        """
        metrics = self.workers.evaluate()
        self.tracker.log(metrics, step=place.step, kind="evaluation")
        loss = metrics["loss"]
        if not math.isfinite(loss):
            raise ValueError(
                f"step {place.step}: the held-out loss is {loss}; lower training.learning_rate, or look at the "
                f"samples in {self.store.path / 'data'}"
            )
        self.progress.say(f"step {place.step}: held-out " + render(metrics))
        if not loss < place.best_loss:
            return replace(place, waited=place.waited + 1)
        if self.config.training.keep == "best":
            self.store.save("best", place.step, self._write_model)
        return replace(place, best_loss=loss, best_step=place.step, waited=0)

    def save(self, place: Place) -> None:
        """Write a state from which a killed stage goes on at exactly this place."""

        def write(directory: Path) -> Metrics:
            self.workers.save_state(directory)
            return {name: float(value) for name, value in asdict(place).items()}

        self.store.save("states", place.step, write)

    def finish(self, place: Place) -> tuple[Path, Metrics]:
        """Write the stage's model: the best weights, or the last."""

        def write(directory: Path) -> Metrics:
            best = self.store.newest("best") if self.config.training.keep == "best" else None
            if best is None:
                self.workers.save(directory)
            else:
                shutil.copytree(best[0], directory, dirs_exist_ok=True)
            figures = self.figures(place)
            write_stage_card(self.config, self.store, directory, figures)
            return figures

        path, metrics = self.store.artifacts.phase_directory("model", write)
        self.store.discard_saved()
        return path, metrics

    def figures(self, place: Place) -> Metrics:
        """What the stage came to."""
        losses = RunReader(self.store.path).rows("step")
        figures = {
            "samples": self.samples,
            "steps": place.step,
            "loss_first": losses[0]["loss"],
            "loss_last": losses[-1]["loss"],
            "tokens_per_second": sum(r["tokens"] for r in losses) / sum(r["seconds"] for r in losses),
            "mfu": sum(r["mfu"] for r in losses) / len(losses),
        }
        if self.evaluates:
            rows = RunReader(self.store.path).rows("evaluation")
            by_step = {int(row["evaluation_index"]): row for row in rows}
            kept = by_step[place.best_step if self.config.training.keep == "best" else place.step]
            for name, row in (("start_held_out", by_step.get(0, {})), ("held_out", kept)):
                figures |= {f"{name}_{k}": v for k, v in row.items() if k not in ("time", "evaluation_index")}
        return figures

    def _write_model(self, directory: Path) -> Metrics:
        self.workers.save(directory)
        return {}


def write_stage_card(
    config: StageConfig, store: StageDirectory, directory: Path, figures: Mapping[str, float]
) -> None:
    """README.md beside the weights, before the directory is digested."""
    samples = Input("samples that were trained on", "data/ of the run", store.artifacts.digest("data"))
    write_card(directory, model_card(config, ModelFacts(figures, [samples])))


def next_event(step: int, steps: int, *intervals: int | None) -> int:
    """The next step after `step` at which an interval ends, or the last one."""
    return min([steps, *((step // every + 1) * every for every in intervals if every is not None)])


def is_due(step: int, every: int | None) -> bool:
    """Whether an interval ends at `step`."""
    return every is not None and step % every == 0


def render(metrics: Metrics) -> str:
    """Metrics as words."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items())
