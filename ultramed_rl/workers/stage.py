"""The workers of offline stages: training ranks; engines and reward models, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.trainer import RewardTrainWorker, TrainWorker
from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.cluster.transport import RayScheduler
from ultramed_rl.config import EvaluateConfig, RewardBenchConfig
from ultramed_rl.config.stages import StageConfig
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, JudgedAnswer, Prompt, ScoredCompletion
from ultramed_rl.rewards.judge_client import JudgeClient, Turn
from ultramed_rl.tracking import Progress
from ultramed_rl.workers.deployment import Deployment, Replicas
from ultramed_rl.workers.judges import EngineJudge, launch_engine_judges, served
from ultramed_rl.workers.policy import TrainingRanks
from ultramed_rl.workers.sampling import Advance, SamplingWorkers
from ultramed_rl.workers.scorers import AnswerScorers, Judges, Scorers

Metrics = dict[str, float]


class StageWorkers(TrainingRanks):
    """The training ranks of a stage, from when it is made to `stop`."""

    def __init__(self, config: StageConfig, worker: type[PolicyWorker | RewardTrainWorker]) -> None:
        self.config, self._deployment = config, Deployment(config)
        super().__init__(self._deployment, "trainer", worker, config.run.seed)

    def load(self, extra: object = None) -> None:
        """Load the starting model on every rank; `extra` is the worker's own argument."""
        model, training = self.config.model, self.settled(self.config.training)
        self.finish(self.begin_load(model, model.precision, self.config.cluster.trainer, training, extra))

    def train(self, place: TrainingPlace, start: int, stop: int) -> Iterator[Metrics]:
        """Optimizer steps [start, stop); yields each one's metrics."""
        return self.run(TrainWorker.train, self.config.training, place, start, stop)

    def evaluate(self) -> Metrics:
        """The metrics of the held-out data."""
        return list(self.run(TrainWorker.evaluate, self.config.training.micro_batch_tokens))[-1]

    def score_start(self, groups: Sequence[AnswerGroup], advance: Advance) -> list[list[float]]:
        """Logprobs of all answers under the starting model, which must not have been trained yet; the groups are dealt to
        the ranks in turn, the same to ranks that share their passes. `advance` is told of each pass's answers."""
        sharing, budget = (
            self.config.cluster.trainer.sequence_parallel,
            self.config.training.micro_batch_tokens,
        )
        count = len(self) // sharing
        values: list[list[float | None]] = [[None] * len(g.answers) for g in groups]
        shards = [(groups[rank // sharing :: count], budget) for rank in range(len(self))]
        for rank, numbers in self.generate(PolicyWorker.score_base, shards).follow():
            if rank % sharing:  # another rank has said the same
                continue
            for group, answer, number in numbers:
                values[rank // sharing + group * count][answer] = number
            advance(len(numbers))
        assert all(v is not None for row in values for v in row), "an answer was not scored"
        return [[float(v) for v in row if v is not None] for row in values]

    def save(self, directory: Path) -> None:
        """Write the model as a Hugging Face checkpoint."""
        self.finish(self.start(TrainWorker.save, str(directory)))

    def save_state(self, directory: Path) -> None:
        """Write all that `load_state` needs to go on exactly."""
        self.finish(self.start(TrainWorker.save_state, str(directory)))

    def load_state(self, directory: Path, skipped: int) -> None:
        """Go on from what `save_state` wrote, after so many skipped steps."""
        self.finish(self.start(TrainWorker.load_state, str(directory), skipped))

    def stop(self) -> None:
        """End the ranks and give the devices back."""
        super().stop()
        self._deployment.release()


class RewardWorkers:
    """Starts a config's reward models and judges, on devices of their own, with the first answers that they are to read."""

    def __init__(self, config: EvaluateConfig | RewardBenchConfig) -> None:
        self.config = config
        self._deployment: Deployment | None = None
        self._models: list[Replicas] = []
        self._judges: list[EngineJudge] = []

    def score(
        self,
        scorers: Scorers,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        advance: Advance,
    ) -> list[ScoredCompletion]:
        """The reward of each completion, in order, by `scorers` on the one set of reward models."""
        scheduler = self._serve(scorers)
        scorers.models = self._models
        return scorers.score(prompts, completions, advance, scheduler)

    def judge(
        self, judges: Judges, prompts: Sequence[Prompt], completions: Sequence[Completion], advance: Advance
    ) -> list[JudgedAnswer]:
        """What each judge says of each completion, in order."""
        return judges.judge(prompts, completions, advance, self._serve(judges))

    def _serve(self, scorers: AnswerScorers) -> RayScheduler:
        """Let these ask the judges' engines: each policy's scorers have clients of their own."""
        scheduler, scorers.engine_judges = self._started().scheduler, []
        scorers.judge_on(self._judges)
        return scheduler

    @contextmanager
    def served(self, client: JudgeClient) -> Iterator[Turn]:
        """Turns of a benchmark judge's engines."""
        scheduler = self._started().scheduler
        with served(self._judges, client, scheduler) as turn:
            yield turn

    def _started(self) -> Deployment:
        if self._deployment is not None:
            return self._deployment
        config = self.config
        deployment = self._deployment = Deployment(config)
        if isinstance(config, EvaluateConfig):
            self._judges = launch_engine_judges(deployment, config.judge_engines.values())
        if config.reward is not None:
            paths = [path for path in config.reward.paths if path is not None]
            self._models = deployment.launch_reward_models(config.reward, config.cluster.reward, paths)
        for model in self._models:
            deployment.scheduler.wait_for_start(model.pool, model.loads, config.cluster.faults.start_s)
        return deployment

    def stop(self) -> None:
        """End all actors and give the devices back."""
        for group in [model.group for model in self._models] + [judge.group for judge in self._judges]:
            group.stop()
        if self._deployment is not None:
            self._deployment.release()


@dataclass(frozen=True)
class ComparedPolicy:
    """A policy that is evaluated; without a tokenizer it scores options and answers nothing."""

    name: str
    path: str
    tokenizer: ChatTokenizer | None

    @property
    def chat(self) -> ChatTokenizer:
        """The tokenizer of a policy that answers."""
        assert self.tokenizer is not None
        return self.tokenizer


class EvaluationWorkers:
    """Engines for one policy after the other, then reward models on the same devices. Starts what is asked for when it is
    asked for; `rewards` scores by the scorers of the policy that answered."""

    def __init__(self, config: EvaluateConfig, progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.sampling: SamplingWorkers | None = None
        self.policy = ""
        self.rewards = RewardWorkers(config)

    def start_policy(self, policy: ComparedPolicy) -> SamplingWorkers:
        """Engines with this policy's weights: those that there are, or new ones instead of another policy's."""
        if self.sampling is None or self.policy != policy.name:
            self.stop_rollout()
            with self.progress.phase(f"start engines with {policy.name}", 1, "groups") as bar:
                self.sampling, self.policy = SamplingWorkers(self.config, policy.tokenizer), policy.name
                self.sampling.start_rollout(policy.path, 0)
                bar.advance(1)
        return self.sampling

    def stop_rollout(self) -> None:
        """End the engines, if there are any."""
        if self.sampling is not None:
            self.sampling.stop()
            self.sampling = None

    def stop(self) -> None:
        """End all actors and give the devices back."""
        self.stop_rollout()
        self.rewards.stop()
