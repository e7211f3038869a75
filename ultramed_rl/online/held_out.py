"""The held-out prompts: the same seeds every time, so that policies are compared in pairs with the starting one.

prompts --> engines --> reward --> evaluation.parquet --> judges --> judges.parquet --> changes against the start
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

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
from ultramed_rl.learning.length import LengthFit, length_words
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.records import Completion, JudgedAnswer, Prompt, SamplingRequest, ScoredCompletion
from ultramed_rl.store import RoundRecord
from ultramed_rl.store.tables import write_records
from ultramed_rl.tracking import Progress
from ultramed_rl.workers.online import OnlineWorkers

Metrics = dict[str, float]
_SLOPE_PROMPTS = 256  # whose answers a slope of length is fitted on, at most


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
            self.workers.scorers.length_slope = self._fit_length_slope(record)
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

    def _fit_length_slope(self, initial: RoundRecord) -> float:
        """Reward per token within prompts, of the starting policy's answers; kept in `initial/length/`, so that a resumed run
        takes off the same.

        A slope must be known before the first pair is chosen, and stay: rewards of two rounds are compared. So it is fitted on
        answers sampled as the rounds sample, to held-out prompts: they make no pair, so none is asked twice. The evaluation's
        own answers don't serve: by default they are one a prompt, and another temperature's.

        Raises:
            ValueError: the slope is gone, and the answers are of a policy that has learnt.
        """
        n, temperature = self.config.sampling.n, self.config.sampling.temperature
        prompts = self.prompts[:_SLOPE_PROMPTS]
        asked = [sampling_request(self.config, prompt, n, temperature, "length") for prompt in prompts]

        def compute(folder: Path) -> Metrics:
            scored, fit = self._scored(asked, self.workers.version, "reward against length"), LengthFit()
            if any(s.completion.policy_version for s in scored):
                raise ValueError(f"{initial.path / 'length.json'}: missing; put it and length/ back")
            for _, answers in groupby(scored, lambda s: s.completion.prompt_id):
                fit.add_answers(answers)
            write_records(scored, ScoredCompletion, folder / "scored.parquet")
            return {"answers": len(scored), "correlation": fit.correlation, "slope": fit.slope}

        _, found = initial.phase_directory("length", compute)
        self.progress.say(
            f"start: {length_words(found['correlation'])} ({found['answers']:.0f} held-out answers); reward.length_slope=fit takes "
            f"{found['slope']:+.4g} a token off every reward"
        )
        return found["slope"]

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
