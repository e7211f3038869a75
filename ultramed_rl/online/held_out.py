"""The held-out prompts: the same seeds every time, so that policies are compared in pairs with the starting one.

prompts --> engines --> reward --> evaluation.parquet --> judges --> judges.parquet --> changes against the start
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ultramed_rl.config import RunConfig
from ultramed_rl.evaluation.metrics import (
    AnswerMetrics,
    agreement,
    change_metrics,
    judge_metrics,
    means_by_prompt,
    prompt_means,
    tokens_by_prompt,
)
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.online.length import PROMPTS, fit_length_slope
from ultramed_rl.records import Completion, JudgedAnswer, Prompt, SamplingRequest, ScoredCompletion
from ultramed_rl.store import RoundRecord
from ultramed_rl.tracking import Progress
from ultramed_rl.workers.online import OnlineWorkers

Metrics = dict[str, float]


@dataclass(frozen=True)
class Evaluated:
    """A policy's held-out answers with their rewards, and what judges say of them, in the same order."""

    answers: Sequence[ScoredCompletion]
    judged: Sequence[JudgedAnswer] = ()

    @property
    def names(self) -> list[str]:
        """The judges'."""
        return list(self.judged[0].scores) if self.judged else []

    def means(self, judge: str) -> dict[str, float]:
        """A judge's mean by prompt."""
        return means_by_prompt((one.prompt_id, one.scores[judge]) for one in self.judged)

    def scores(self, judge: str) -> dict[str, list[tuple[float, float]]]:
        """By prompt, the reward and the judge's score of each answer."""
        found: dict[str, list[tuple[float, float]]] = {}
        for answer, one in zip(self.answers, self.judged, strict=True):
            found.setdefault(one.prompt_id, []).append((answer.reward, one.scores[judge]))
        return found


class HeldOutEvaluation:
    """Evaluates policies on the held-out prompts. `begin` comes first: the starting policy is what others are compared with."""

    start: Evaluated

    def __init__(
        self, config: RunConfig, workers: OnlineWorkers, prompts: Sequence[Prompt], progress: Progress
    ) -> None:
        self.config, self.workers, self.prompts, self.progress = config, workers, prompts, progress

    def begin(self, record: RoundRecord) -> None:
        """The starting policy's answers, now or as they are kept; before them, what length pays, where that is taken off."""
        if self.config.reward.length_slope == "fit":
            n, temperature = self.config.sampling.n, self.config.sampling.temperature
            asked = [
                sampling_request(self.config, p, n, temperature, "length") for p in self.prompts[:PROMPTS]
            ]
            answer = partial(self._scored, asked, self.workers.version, "reward against length")
            self.workers.scorers.length_slope = fit_length_slope(record, answer, self.progress.say)
        self.start = self._evaluated(record, 0)

    def evaluate(self, record: RoundRecord, version: int) -> Metrics:
        """The answers of the policy that the engines hold, and what reward and judges say of them against the start."""
        now = self._evaluated(record, version)
        short, long = tokens_by_prompt(self.start.answers), tokens_by_prompt(now.answers)
        gaps = {prompt: long[prompt] - short[prompt] for prompt in long}
        how = self.config.evaluation.bootstrap, self.config.run.seed, gaps
        answers, first = AnswerMetrics(now.answers).metrics(), AnswerMetrics(self.start.answers).metrics()
        answers["length_change"] = answers["length_mean"] / first["length_mean"] - 1
        answers |= change_metrics(prompt_means(self.start.answers), prompt_means(now.answers), *how)
        metrics = {f"eval_{name}": value for name, value in answers.items()}
        for judge in now.names:
            metrics |= judge_metrics(judge, self.start.means(judge), now.means(judge), *how)
            old, new = self.start.scores(judge), now.scores(judge)
            metrics[f"judge_{judge}_agreement"] = agreement(old[prompt] + new[prompt] for prompt in new)
        return metrics

    def _evaluated(self, record: RoundRecord, version: int) -> Evaluated:
        answers = record.phase("evaluation", self._answer, version, kind=ScoredCompletion)
        if self.workers.judges is None:
            return Evaluated(answers)

        def judge(_: str) -> list[JudgedAnswer]:
            completions = [answer.completion for answer in answers]
            with (
                self.workers.scheduler.phase("evaluate"),
                self.progress.phase(f"judge policy {version}", len(completions), "completions") as bar,
            ):
                return self.workers.judge(self.prompts, completions, bar.advance)

        return Evaluated(
            answers, record.phase("judges", judge, record.digest("evaluation"), kind=JudgedAnswer)
        )

    def _answer(self, version: int) -> list[ScoredCompletion]:
        """The policy's answers; where a judge compares, it sees the starting policy's beside them, of which its score is half."""
        evaluation = self.config.evaluation
        temperature = evaluation.temperature
        temperature = self.config.sampling.temperature if temperature is None else temperature
        requests = [
            sampling_request(self.config, p, evaluation.samples, temperature, "evaluation")
            for p in self.prompts
        ]
        compares = self.config.reward.compares and version > 0
        first = [answer.completion for answer in self.start.answers] if compares else []
        beside = [replace(one, sample=one.sample + evaluation.samples) for one in first]
        return self._scored(requests, version, f"evaluate policy {version}", beside)

    def _scored(
        self, requests: Sequence[SamplingRequest], version: int, name: str, beside: Sequence[Completion] = ()
    ) -> list[ScoredCompletion]:
        """What the engines, whose policy is this version, answer, and its rewards, with other answers `beside` them."""
        total = sum(request.n for request in requests)
        with (
            self.workers.scheduler.phase("evaluate"),
            self.progress.phase(name, total, "completions") as bar,
        ):
            completions = self.workers.generate(requests, version, bar.advance)
            prompts = [request.prompt for request in requests]
            return self.workers.score(prompts, [*completions, *beside], lambda _: None)[: len(completions)]


def sampling_request(
    config: RunConfig, prompt: Prompt, n: int, temperature: float, occasion: object
) -> SamplingRequest:
    """n answers to a prompt; the same occasion has the same seeds."""
    return SamplingRequest(
        prompt=prompt,
        n=n,
        temperature=temperature,
        top_p=config.sampling.top_p,
        max_new_tokens=config.sampling.max_new_tokens,
        seed=derive_seed(config.run.seed, occasion, prompt.prompt_id),
    )
