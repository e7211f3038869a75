"""Held-out prompts of an evaluation: every policy answers them with the same seeds, one reward scores all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ultramed_rl.actors.rollout import SamplingRequest
from ultramed_rl.config import EvaluateConfig
from ultramed_rl.crew.evaluation import EvaluationCrew, Policy
from ultramed_rl.crew.scorers import Scorers
from ultramed_rl.data.pool import split_pool
from ultramed_rl.data.prompts import PromptPool, load_prompts
from ultramed_rl.evaluation.metrics import AnswerMetrics, compare, prompt_means
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.records import Completion, Prompt, ScoredCompletion
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.tracking import Progress

Metrics = dict[str, float]


@dataclass(frozen=True)
class Entrant:
    """A policy that is compared: the held-out prompts in its own tokens, and scorers that read these."""

    policy: Policy
    prompts: tuple[Prompt, ...]
    scorers: Scorers


class HeldOut:
    """The prompts of one evaluation and what policies made of them."""

    def __init__(self, config: EvaluateConfig, policies: Sequence[Policy], progress: Progress) -> None:
        self.config, self.progress = config, progress
        self.entrants = {entrant.policy.name: entrant for entrant in enter(config, policies, progress)}
        self.answers: dict[str, list[Completion]] = {}
        self.scored: dict[str, list[ScoredCompletion]] = {}

    def ask(self, crew: EvaluationCrew, artifacts: ArtifactFolder, policy: Policy) -> None:
        """One policy's answers."""
        entrant = self.entrants[policy.name]

        def compute(prompts: Sequence[Prompt], path: str) -> list[Completion]:
            engines = crew.start_policy(policy)
            total = len(prompts) * self.config.sampling.samples
            with self.progress.phase(f"answers of {policy.name}", total, "completions") as bar:
                return engines.generate([self._request(prompt) for prompt in prompts], 0, bar.advance)

        inputs = (list(entrant.prompts), policy.path)
        self.answers[policy.name] = artifacts.phase(
            f"completions-{policy.name}", compute, *inputs, kind=Completion
        )

    def score(self, crew: EvaluationCrew, artifacts: ArtifactFolder, policy: Policy) -> None:
        """The reward of each of its answers."""
        entrant = self.entrants[policy.name]

        def compute(completions: Sequence[Completion]) -> list[ScoredCompletion]:
            with self.progress.phase(f"score {policy.name}", len(completions), "completions") as bar:
                return crew.score(entrant.scorers, entrant.prompts, completions, bar.advance)

        self.scored[policy.name] = artifacts.phase(
            f"scored-{policy.name}", compute, self.answers[policy.name], kind=ScoredCompletion
        )

    def compare(self) -> dict[str, Metrics]:
        """Each policy's rewards and lengths, and its change against the first with a paired interval."""
        first = prompt_means(next(iter(self.scored.values())))
        figures = {}
        for name, answers in self.scored.items():
            change, wins = compare(first, prompt_means(answers), self.config.bootstrap, self.config.run.seed)
            figures[name] = {
                **AnswerMetrics(answers).metrics(),
                "change": change.mean,
                "change_low": change.low,
                "change_high": change.high,
                "win_rate": wins,
            }
        return figures

    def _request(self, prompt: Prompt) -> SamplingRequest:
        sampling = self.config.sampling
        seed = derive_seed(self.config.run.seed, "evaluation", prompt.prompt_id)
        how = (sampling.samples, sampling.temperature, sampling.top_p, sampling.max_new_tokens)
        return SamplingRequest(prompt, *how, seed)


def enter(config: EvaluateConfig, policies: Sequence[Policy], progress: Progress) -> list[Entrant]:
    """All that can go wrong before an engine starts: prompts, scorers.

    A prompt that is too long for one policy's tokenizer is left out for all, so that all answer the same ones.
    """
    assert config.prompts is not None and config.reward is not None
    pools = {p.name: load_prompts(config.prompts, p.chat.encode_chat) for p in policies}
    common = set.intersection(*({p.prompt_id for p in pool.training} for pool in pools.values()))
    held_out = {}
    for name, pool in pools.items():
        shared = PromptPool(tuple(p for p in pool.training if p.prompt_id in common))
        held_out[name] = split_pool(shared, config.prompts.held_out, config.run.seed).held_out
    lost = max(len(pool.training) for pool in pools.values()) - len(common)
    note = f", {lost} left out that are too long for one of the policies" if lost else ""
    progress.say(f"prompts: {config.prompts.held_out} held out of {len(common)}{note}")
    return [Entrant(p, held_out[p.name], Scorers(config.reward, p.chat)) for p in policies]
