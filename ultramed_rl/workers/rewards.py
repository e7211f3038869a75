"""Reward models on devices of their own, started when there is something to score."""

from __future__ import annotations

from collections.abc import Sequence

from ultramed_rl.cluster.placement import Placement, connect, reserve
from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.cluster.transport import RayScheduler
from ultramed_rl.config import EvaluateConfig, RewardBenchConfig
from ultramed_rl.records import Completion, Prompt, ScoredCompletion
from ultramed_rl.tracking.termination import keep_sigterm
from ultramed_rl.workers.scorers import Advance, RewardModels, Scorers, launch_scorers


class RewardWorkers:
    """Starts a config's reward models with the first answers that they are to score."""

    def __init__(self, config: EvaluateConfig | RewardBenchConfig) -> None:
        self.config = config
        self.models: list[RewardModels] | None = None
        self.scheduler = RayScheduler()
        self.placement: Placement | None = None

    def score(
        self,
        scorers: Scorers,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        advance: Advance,
    ) -> list[ScoredCompletion]:
        """The reward of each completion, in order, by `scorers` on the one set of reward models."""
        if self.models is None:
            self._start(scorers)
        scorers.models = self.models or []
        return scorers.score(prompts, completions, advance, self.scheduler)

    def stop(self) -> None:
        """End all actors and give the devices back."""
        for model in self.models or ():
            model.group.stop()
        if self.placement is not None:
            self.placement.release()

    def _start(self, scorers: Scorers) -> None:
        config, plan = self.config, make_plan(self.config)
        connect(config.cluster)
        keep_sigterm()
        self.placement = reserve(plan, config.cluster)
        paths = [path for path in scorers.config.paths if path is not None]
        launch_scorers(scorers, plan, self.placement, config.cluster, paths, self.scheduler)
        self.models = scorers.models
        for model in self.models:
            self.scheduler.wait_for_start(model.pool, model.loads, config.cluster.faults.start_s)
