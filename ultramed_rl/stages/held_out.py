"""Held-out prompts of an evaluation: every policy answers them with the same seeds, one reward scores all."""

from __future__ import annotations

from collections.abc import Sequence

from ultramed_rl.config import EvaluateConfig
from ultramed_rl.data.prompts import PromptPool, load_prompts, split_pool
from ultramed_rl.evaluation.metrics import AnswerMetrics, compare, prompt_means
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.records import Completion, Prompt, SamplingRequest, ScoredCompletion
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.tracking import Progress
from ultramed_rl.workers.evaluation import ComparedPolicy, EvaluationWorkers
from ultramed_rl.workers.scorers import Scorers

Metrics = dict[str, float]


class HeldOutPrompts:
    """The prompts of one evaluation and what policies made of them."""

    def __init__(
        self, config: EvaluateConfig, policies: Sequence[ComparedPolicy], progress: Progress
    ) -> None:
        """All that can go wrong before an engine starts: prompts, scorers."""
        assert config.reward is not None
        self.config, self.progress = config, progress
        self.prompts = common_prompts(config, policies, progress)
        self.scorers = {policy.name: Scorers(config.reward, policy.chat) for policy in policies}
        self.answers: dict[str, list[Completion]] = {}
        self.scored: dict[str, list[ScoredCompletion]] = {}

    def ask(self, workers: EvaluationWorkers, artifacts: ArtifactFolder, policy: ComparedPolicy) -> None:
        """One policy's answers."""
        name, seed, how = policy.name, self.config.run.seed, self.config.sampling

        def request(prompt: Prompt) -> SamplingRequest:
            own = derive_seed(seed, "evaluation", prompt.prompt_id)
            return SamplingRequest(prompt, how.samples, how.temperature, how.top_p, how.max_new_tokens, own)

        def compute(prompts: Sequence[Prompt], path: str) -> list[Completion]:
            engines = workers.start_policy(policy)
            with self.progress.phase(f"answers of {name}", len(prompts) * how.samples, "completions") as bar:
                return engines.generate([request(prompt) for prompt in prompts], 0, bar.advance)

        inputs = (self.prompts[name], policy.path)
        self.answers[name] = artifacts.phase(f"completions-{name}", compute, *inputs, kind=Completion)

    def score(self, workers: EvaluationWorkers, artifacts: ArtifactFolder, policy: ComparedPolicy) -> None:
        """The reward of each of its answers."""
        name = policy.name

        def compute(completions: Sequence[Completion]) -> list[ScoredCompletion]:
            with self.progress.phase(f"score {name}", len(completions), "completions") as bar:
                return workers.rewards.score(self.scorers[name], self.prompts[name], completions, bar.advance)

        self.scored[name] = artifacts.phase(
            f"scored-{name}", compute, self.answers[name], kind=ScoredCompletion
        )

    def compare(self) -> dict[str, Metrics]:
        """Each policy's rewards and lengths, and its change against the first with a paired interval."""
        first = prompt_means(next(iter(self.scored.values())))
        figures = {}
        for name, answers in self.scored.items():
            change, wins = compare(first, prompt_means(answers), self.config.bootstrap, self.config.run.seed)
            changes = {"change": change.mean, "change_low": change.low, "change_high": change.high}
            figures[name] = AnswerMetrics(answers).metrics() | changes | {"win_rate": wins}
        return figures


def common_prompts(
    config: EvaluateConfig, policies: Sequence[ComparedPolicy], progress: Progress
) -> dict[str, list[Prompt]]:
    """The held-out prompts by policy, in its own tokens.

    A prompt that is too long for one policy's tokenizer is left out for all, so that all answer the same ones.
    """
    assert config.prompts is not None
    pools = {p.name: load_prompts(config.prompts, p.chat.encode_chat).training for p in policies}
    common = set.intersection(*({prompt.prompt_id for prompt in pool} for pool in pools.values()))
    lost = max(map(len, pools.values())) - len(common)
    note = f", {lost} left out that are too long for one of the policies" if lost else ""
    progress.say(f"prompts: {config.prompts.held_out} held out of {len(common)}{note}")
    shared = {name: tuple(p for p in pool if p.prompt_id in common) for name, pool in pools.items()}
    count, seed = config.prompts.held_out, config.run.seed
    return {name: list(split_pool(PromptPool(own), count, seed).held_out) for name, own in shared.items()}
