"""A stage's training: what the ranks are taught, steps, evaluations, saved states, early stop, and the model at the end."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.trainer import RewardTrainWorker
from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.config.objectives import KTO, Objective
from ultramed_rl.config.stages import PreferenceConfig, RewardConfig, SftConfig, StageConfig
from ultramed_rl.learning.batching import count_steps
from ultramed_rl.learning.checks import check_references
from ultramed_rl.learning.length import length_accuracies
from ultramed_rl.learning.preference_data import read_reference, reference_answers
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs
from ultramed_rl.scheduling.pool import RanksLost
from ultramed_rl.store import RunReader, StageDirectory
from ultramed_rl.store.cards import Input, model_card, write_card
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
        samples: tuple[Sequence[Any], Sequence[Any] | None],
        tracker: Tracker,
        progress: Progress,
    ) -> None:
        """`samples`: to train on; and held out, if there are any."""
        self.config, self.store, self.workers = config, store, workers
        self.tracker, self.progress = tracker, progress
        self.training, self.held_out = samples
        rules = config.training
        self.steps = count_steps(len(self.training), rules.batch_size, rules.epochs, rules.max_steps)
        self.schedule = TrainingPlace(0, 1, config.run.seed, rules.max_steps)

    def train(self) -> tuple[Path, Metrics]:
        """Train to the end; ranks that are lost start again, from the newest state that was saved. Returns the model's
        directory and the stage's figures."""
        layers = self.config.trainable_layers if isinstance(self.config, RewardConfig) else None
        while True:
            try:
                with self.progress.phase("start the ranks", 1, "groups") as bar:
                    self.workers.load(layers)
                    bar.advance(1)
                self.teach()
                return self.run()
            except RanksLost as lost:
                self.progress.say(f"{lost}; starting again from the newest state")
                self.workers.respawn_all(self.config.cluster.faults.restarts)

    def teach(self) -> None:
        """Set the ranks' task. A preference stage's model is its own reference: it scores all answers before its first
        step."""
        config, held_out, length = self.config, self.held_out, self.config.model.max_length
        if isinstance(config, SftConfig):
            self.workers.call(PolicyWorker.learn_chats, self.training, held_out)
        elif isinstance(config, RewardConfig):
            wanted = (config.objective, length, held_out)
            self.workers.call(RewardTrainWorker.learn_ranking, self.training, *wanted)
        else:
            references = self._references(config, "reference", self.training)
            measured = None
            if held_out is not None:
                measured = (held_out, self._references(config, "reference_held_out", held_out))
            task = (references, self._objective(config), length, measured)
            self.workers.call(PolicyWorker.learn_preferences, self.training, *task)

    def _objective(self, config: PreferenceConfig) -> Objective:
        """The config's; of KTO with its weights."""
        objective = config.objective
        if not isinstance(objective, KTO):
            return objective
        wanted = sum(group.desirable for group in self.training)
        unwanted = sum(len(group.completions) for group in self.training) - wanted
        objective = objective.balanced(wanted, unwanted)
        weights = (objective.desirable_weight or 1.0, objective.undesirable_weight or 1.0)
        ratio = f"{weights[0] * wanted / (weights[1] * unwanted):.3g}" if unwanted else "inf"
        self.progress.say(
            f"kto: {wanted} wanted answers of weight {weights[0]:.4g}, {unwanted} unwanted of {weights[1]:.4g}; together "
            f"{ratio} to 1, where 1 to 1.5 is advised"
        )
        return objective

    def _references(
        self, config: PreferenceConfig, name: str, groups: Sequence[PreferenceGroup]
    ) -> list[ReferenceLogprobs] | None:
        if not config.objective.uses_reference:
            return None

        def compute(_: str) -> list[ReferenceLogprobs]:
            beside, length = config.objective.beside, config.model.max_length
            answers = [reference_answers(groups, i, beside, length) for i in range(len(groups))]
            total = sum(len(a.answers) for a in answers)
            with self.progress.phase("reference logprobs", total, "answers") as bar:
                values = self.workers.score_start(answers, bar.advance)
            references = [
                read_reference(group.group_id, len(group.completions), numbers)
                for group, numbers in zip(groups, values, strict=True)
            ]
            check_references(groups, references)
            return references

        artifacts = self.store.artifacts
        return artifacts.phase(name, compute, artifacts.digest("data"), kind=ReferenceLogprobs)

    def run(self) -> tuple[Path, Metrics]:
        """All steps that aren't taken yet."""
        training, place = self.config.training, self.take_up()
        if self.held_out is not None and place.step == 0:
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
                if self.held_out is not None and (
                    stop == self.steps or is_due(stop, training.evaluate_every)
                ):
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
        metrics = self.workers.evaluate() | self.length_alone
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

            def write(directory: Path) -> Metrics:
                self.workers.save(directory)
                return {}

            self.store.save("best", place.step, write)
        return replace(place, best_loss=loss, best_step=place.step, waited=0)

    @cached_property
    def length_alone(self) -> Metrics:
        """What length alone would get of a reward model's held-out pairs, beside what it gets."""
        if not isinstance(self.config, RewardConfig) or self.held_out is None:
            return {}
        return length_accuracies(self.held_out)

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
            "samples": len(self.training),
            "steps": place.step,
            "loss_first": losses[0]["loss"],
            "loss_last": losses[-1]["loss"],
            "tokens_per_second": sum(r["tokens"] for r in losses) / sum(r["seconds"] for r in losses),
            **{name: fmean(r[name] for r in losses) for name in ("mfu", "mfu_measured") if name in losses[0]},
        }
        if self.held_out is not None:
            rows = RunReader(self.store.path).rows("evaluation")
            by_step = {int(row["evaluation_index"]): row for row in rows}
            kept = by_step[place.best_step if self.config.training.keep == "best" else place.step]
            for name, row in (("start_held_out", by_step.get(0, {})), ("held_out", kept)):
                figures |= {f"{name}_{k}": v for k, v in row.items() if k not in ("time", "evaluation_index")}
        return figures


def data_inputs(config: StageConfig) -> tuple[str, str, int, int]:
    """What a stage's samples are made of."""
    what = json.dumps(config.data.model_dump(mode="json"), sort_keys=True)
    return what, config.model.path, config.model.max_length, config.run.seed


def write_stage_card(
    config: StageConfig, store: StageDirectory, directory: Path, figures: Mapping[str, float]
) -> None:
    """README.md beside the weights, before the directory is digested."""
    samples = Input("samples that were trained on", "data/ of the run", store.artifacts.digest("data"))
    write_card(directory, model_card(config, figures, [samples]))


def next_event(step: int, steps: int, *intervals: int | None) -> int:
    """The next step after `step` at which an interval ends, or the last one."""
    return min([steps, *((step // every + 1) * every for every in intervals if every is not None)])


def is_due(step: int, every: int | None) -> bool:
    """Whether an interval ends at `step`."""
    return every is not None and step % every == 0


def render(metrics: Metrics) -> str:
    """Metrics as words."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items())
