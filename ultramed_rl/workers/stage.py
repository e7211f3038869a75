"""The workers of an offline stage: its training ranks, behind verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate

from ultramed_rl.actors.deepspeed_setup import engine_spec
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.trainer import RewardTrainWorker, TrainWorker
from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.cluster.group import P, WorkerGroup
from ultramed_rl.cluster.placement import connect, reserve
from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.cluster.scoring import number_answers
from ultramed_rl.config.stages import StageConfig
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.tracking.termination import keep_sigterm

Metrics = dict[str, float]


class StageWorkers:
    """Owns the ranks from `start` to `stop`."""

    def __init__(self, config: StageConfig, worker: type[PolicyWorker] | type[RewardTrainWorker]) -> None:
        self.config, self.load = config, worker.load
        self.plan = make_plan(config)
        connect(config.cluster)
        keep_sigterm()
        self.placement = reserve(self.plan, config.cluster)
        ranks, seed = config.cluster.trainer.ranks, config.run.seed
        members = self.plan.roles[0].members
        self.trainers = WorkerGroup.launch(
            worker,
            members,
            self.placement,
            lambda m: (m.rank, ranks, seed),
            takes_turns=False,
            timeout_s=config.cluster.faults.hang_s,
        )

    def start(self, *extra: Any) -> None:
        """Load the starting model on every rank; `extra` are the worker's own arguments."""
        model, cluster = self.config.model, self.config.cluster
        spec = engine_spec(cluster.device, model.precision, cluster.trainer, self.config.training)
        address = self.trainers.first(TrainWorker.rendezvous)
        self.trainers.wait(self.trainers.start(self.load, model, spec, address, *extra), self._model_s)

    def restart(self) -> None:
        """All ranks anew; `start` and `teach` have to follow.

        Raises:
            LostWorkers: they were lost too often.
        """
        self.trainers.respawn_all(self.config.cluster.faults.restarts)

    def teach(
        self, method: Callable[Concatenate[Any, P], None], *arguments: P.args, **named: P.kwargs
    ) -> None:
        """Set the task of every rank, by this method of theirs."""
        self.trainers.call(method, *arguments, **named)

    def train(self, place: TrainingPlace, start: int, stop: int) -> Iterator[Metrics]:
        """Optimizer steps [start, stop); yields each one's metrics."""
        arguments = (self.config.training, place, start, stop)
        for rank, metrics in self.trainers.stream(TrainWorker.train, [arguments] * len(self.trainers)):
            if rank == 0:
                yield metrics

    def evaluate(self) -> Metrics:
        """The metrics of the held-out data."""
        metrics: Metrics = self.trainers.last(TrainWorker.evaluate, self.config.training.micro_batch_tokens)
        return metrics

    def score_start(self, groups: Sequence[AnswerGroup], advance: Callable[[int], None]) -> list[list[float]]:
        """Logprobs of all answers under the starting model, which must not have been trained yet."""
        budget = self.config.training.micro_batch_tokens
        return number_answers(self.trainers, PolicyWorker.score_base, groups, (budget,), advance)

    def save(self, directory: Path) -> None:
        """Write the model as a Hugging Face checkpoint."""
        self.trainers.wait(self.trainers.start(TrainWorker.save, str(directory)), self._model_s)

    def save_state(self, directory: Path) -> None:
        """Write all that `load_state` needs to go on exactly."""
        self.trainers.wait(self.trainers.start(TrainWorker.save_state, str(directory)), self._model_s)

    def load_state(self, directory: Path, skipped: int) -> None:
        """Go on from what `save_state` wrote, after so many skipped steps."""
        self.trainers.wait(
            self.trainers.start(TrainWorker.load_state, str(directory), skipped), self._model_s
        )

    def stop(self) -> None:
        """End the ranks and give the devices back."""
        self.trainers.stop()
        self.placement.release()

    @property
    def _model_s(self) -> float:
        """Seconds that reading or writing a whole model may take."""
        return self.config.cluster.faults.start_s
