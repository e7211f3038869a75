"""Engines for one policy after the other, then reward models on the same devices."""

from __future__ import annotations

from dataclasses import dataclass

from ultramed_rl.config import EvaluateConfig
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.tracking import Progress
from ultramed_rl.workers.rewards import RewardWorkers
from ultramed_rl.workers.sampling import SamplingWorkers


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
    """Starts what is asked for when it is asked for; `rewards` scores by the scorers of the policy that answered."""

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
