"""Benchmarks on rollout engines: every question of a suite, under each protocol, of one policy after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ultramed_rl.actors.options import OptionRequest
from ultramed_rl.actors.rollout import SamplingRequest
from ultramed_rl.config.benchmarks import Benchmarks, Greedy, Likelihood, SelfConsistency
from ultramed_rl.config.rewards import StatementJudge
from ultramed_rl.evaluation.grading import Outcome, grade_answers, grade_likelihoods, grade_votes
from ultramed_rl.evaluation.items import Item
from ultramed_rl.evaluation.report import PolicyReport, report_policy, sample_curves
from ultramed_rl.evaluation.suite import (
    AskedTask,
    Question,
    all_questions,
    check_room,
    encode_options,
    encode_question,
    likelihood_questions,
)
from ultramed_rl.evaluation.voting import CurvePoint
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.models.tokenizer import ChatTokenizer, load_tokenizer
from ultramed_rl.records import Completion, OptionLogprobs, Prompt, ScoredCompletion
from ultramed_rl.rewards.statements import StatementGrader
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.store.shards import ShardedPhase, in_order
from ultramed_rl.tracking import Progress

R = TypeVar("R")
T = TypeVar("T")
Score = Callable[[Sequence[Prompt], Sequence[Completion]], list[ScoredCompletion]]
_SCORED_PROMPTS = 256  # as many prompts' samples go to the reward models at a time


class Engines(Protocol):
    """Rollout engines that hold a policy."""

    def stream_options(self, requests: Sequence[OptionRequest], version: int) -> Iterator[OptionLogprobs]: ...

    def stream_completions(
        self, requests: Sequence[SamplingRequest], version: int
    ) -> Iterator[list[Completion]]: ...


@dataclass(frozen=True)
class Candidate:
    """A policy's questions in its own tokens: as options to weigh, and as chats to answer."""

    name: str
    path: str
    options: tuple[OptionRequest, ...]
    prompts: tuple[Prompt, ...]


@dataclass
class Answers:
    """What a policy gave, in the order of the questions that a protocol asks."""

    likelihoods: list[OptionLogprobs] = field(default_factory=list)
    greedy: list[Completion] = field(default_factory=list)
    samples: list[Completion] = field(default_factory=list)
    rewards: list[ScoredCompletion] = field(default_factory=list)


@dataclass(frozen=True)
class Sitting:
    """Where a policy's answers are kept, and which version of the policy gives them."""

    folder: ArtifactFolder
    version: int = 0
    suffix: str = ""


class Examiner:
    """Asks a suite's questions. What is answered is kept as it comes, so that a killed run asks only the rest."""

    def __init__(
        self, config: Benchmarks, suite: Sequence[AskedTask], seed: int, max_length: int, progress: Progress
    ) -> None:
        self.config, self.suite, self.seed, self.progress = config, suite, seed, progress
        self.max_length = max_length
        self.protocols: dict[str, Any] = {protocol.type: protocol for protocol in config.protocols}

    # -- questions -----------------------------------------------------------------------------------------

    def admit(
        self, name: str, path: str, tokenizer: ChatTokenizer | None, *, trust_remote_code: bool = False
    ) -> Candidate:
        """A policy's questions. Without a chat tokenizer it is asked for likelihoods alone.

        Raises:
            ValueError: no tokenizer, or questions that exceed the context.
        """
        options: tuple[OptionRequest, ...] = ()
        prompts: tuple[Prompt, ...] = ()
        asked = self.likelihood_questions
        if asked and "likelihood" in self.protocols:
            plain = (
                tokenizer.backend if tokenizer else load_tokenizer(path, trust_remote_code=trust_remote_code)
            )
            options = tuple(OptionRequest(q.question_id, *encode_options(plain, q)) for q in asked)
            self._check_room(asked, [len(o.context) + max(map(len, o.options)) for o in options], 0)
        asked = self.chat_questions
        if asked and self.protocols.keys() - {"likelihood"}:
            assert tokenizer is not None, "who answers in words needs a chat tokenizer"
            prompts = tuple(encode_question(tokenizer, q, self.config.system) for q in asked)
            self._check_room(asked, [len(p.token_ids) for p in prompts], self.config.max_new_tokens)
        return Candidate(name, path, options, prompts)

    @property
    def likelihood_questions(self) -> list[Question]:
        """What is asked for likelihoods."""
        return likelihood_questions(self.suite)

    @property
    def chat_questions(self) -> list[Question]:
        """What is asked for one answer."""
        return all_questions(self.suite)

    @property
    def voted_questions(self) -> list[Question]:
        """What is asked for several answers: choices and names, in the data's own order of options."""
        return [q for q in self.chat_questions if q.place == 0 and q.task.form != "statements"]

    def _check_room(self, questions: Sequence[Question], lengths: Sequence[int], answer: int) -> None:
        found = [(q.task.name, length) for q, length in zip(questions, lengths, strict=True)]
        check_room(found, self.max_length, answer)

    # -- answers -------------------------------------------------------------------------------------------

    def ask(self, candidate: Candidate, sitting: Sitting, engines: Callable[[], Engines]) -> Answers:
        """All answers of a policy. `engines` is called only where something is left to ask."""
        answers = Answers()
        for name, protocol in self.protocols.items():
            match protocol:
                case Likelihood():
                    answers.likelihoods = self._weigh(candidate, sitting, engines)
                case Greedy():
                    requests = [self._greedy(prompt, protocol) for prompt in candidate.prompts]
                    answers.greedy = self._answer(name, candidate, sitting, engines, requests)
                case SelfConsistency():
                    asked = {q.question_id for q in self.voted_questions}
                    prompts = [p for p in candidate.prompts if p.prompt_id in asked]
                    requests = [self._samples(prompt, protocol) for prompt in prompts]
                    answers.samples = self._answer(name, candidate, sitting, engines, requests)
        return answers

    def reward(self, candidate: Candidate, sitting: Sitting, answers: Answers, score: Score) -> None:
        """The reward of every sample of a choice, for reranking."""
        choices = {q.question_id for q in self.voted_questions if q.task.form == "choice"}
        prompts = {p.prompt_id: p for p in candidate.prompts if p.prompt_id in choices}
        samples: dict[str, list[Completion]] = {}
        for sample in answers.samples:
            if sample.prompt_id in prompts:
                samples.setdefault(sample.prompt_id, []).append(sample)

        def stream(left: list[list[Completion]]) -> Iterator[list[ScoredCompletion]]:
            for start in range(0, len(left), _SCORED_PROMPTS):
                groups = left[start : start + _SCORED_PROMPTS]
                asked = [prompts[group[0].prompt_id] for group in groups]
                scored = score(asked, [sample for group in groups for sample in group])
                by_prompt: dict[str, list[ScoredCompletion]] = {}
                for item in scored:
                    by_prompt.setdefault(item.completion.prompt_id, []).append(item)
                yield from by_prompt.values()

        answers.rewards = self._collect(
            "rewards", candidate, sitting, samples, stream, ScoredCompletion, lambda s: s.completion.prompt_id
        )

    # -- what they come to ---------------------------------------------------------------------------------

    def report(self, candidate: Candidate, answers: Answers) -> PolicyReport:
        """Every answer graded, by task and protocol. K-QA's wait for their judge."""
        graded: dict[str, list[Outcome]] = {}
        samples: dict[str, int] = dict.fromkeys(self.protocols, 1)
        curves: dict[str, list[CurvePoint]] = {}
        if answers.likelihoods:
            graded["likelihood"] = grade_likelihoods(self.likelihood_questions, answers.likelihoods)
        if answers.greedy:
            pairs = zip(self.chat_questions, answers.greedy, strict=True)
            graded["greedy"] = grade_answers([p for p in pairs if p[0].task.form != "statements"])
        if answers.samples:
            count = samples["self_consistency"] = self.protocols["self_consistency"].samples
            groups = [answers.samples[i : i + count] for i in range(0, len(answers.samples), count)]
            graded["self_consistency"] = grade_votes(self.voted_questions, groups)
            curves = sample_curves(self.voted_questions, groups, answers.rewards, self.seed)
        return report_policy(candidate.name, self.suite, graded, samples, curves)

    def statements(self, answers: Answers) -> list[tuple[Item, Completion]]:
        """The items whose answers a judge reads, with these."""
        pairs = zip(self.chat_questions, answers.greedy, strict=True) if answers.greedy else ()
        return [(q.item, answer) for q, answer in pairs if q.task.form == "statements"]

    # -- requests ------------------------------------------------------------------------------------------

    def _weigh(
        self, candidate: Candidate, sitting: Sitting, engines: Callable[[], Engines]
    ) -> list[OptionLogprobs]:
        def stream(left: list[OptionRequest]) -> Iterator[list[OptionLogprobs]]:
            return ([scored] for scored in engines().stream_options(left, sitting.version))

        requests = {option.question_id: option for option in candidate.options}
        return self._collect(
            "likelihood", candidate, sitting, requests, stream, OptionLogprobs, lambda o: o.question_id
        )

    def _answer(
        self,
        name: str,
        candidate: Candidate,
        sitting: Sitting,
        engines: Callable[[], Engines],
        requests: Sequence[SamplingRequest],
    ) -> list[Completion]:
        def stream(left: list[SamplingRequest]) -> Iterator[list[Completion]]:
            return engines().stream_completions(left, sitting.version)

        by_id = {request.prompt.prompt_id: request for request in requests}
        return self._collect(name, candidate, sitting, by_id, stream, Completion, lambda c: c.prompt_id)

    def _collect(
        self,
        name: str,
        candidate: Candidate,
        sitting: Sitting,
        requests: Mapping[str, R],
        stream: Callable[[list[R]], Iterator[list[T]]],
        kind: type[T],
        key: Callable[[T], str],
    ) -> list[T]:
        """One artifact of a sitting: what `stream` gives for the requests that are not answered yet."""

        artifact = f"benchmark-{name}{sitting.suffix}"
        inputs = (list(requests.values()), candidate.path, sitting.version)
        phase = ShardedPhase(sitting.folder, artifact, kind, *inputs)
        if not phase.finished:
            done = {key(record) for record in phase.read()}
            left = [request for question, request in requests.items() if question not in done]
            title = f"{candidate.name}, {name.replace('_', '-')}"
            started = time.perf_counter()
            if left:
                answers = stream(left)  # engines start here, so that the phase's rate is theirs
                with self.progress.phase(title, len(left), "questions") as bar, phase.kept():
                    for records in answers:
                        phase.keep(records)
                        bar.advance(1)
            phase.finish({artifact: time.perf_counter() - started})
        return in_order(phase.read(), key, list(requests))

    def _greedy(self, prompt: Prompt, protocol: Greedy) -> SamplingRequest:
        return SamplingRequest(prompt, 1, 0.0, 1.0, protocol.max_new_tokens, 0)

    def _samples(self, prompt: Prompt, protocol: SelfConsistency) -> SamplingRequest:
        how = (protocol.samples, protocol.temperature, protocol.top_p, protocol.max_new_tokens)
        return SamplingRequest(prompt, *how, derive_seed(self.seed, "benchmark", prompt.prompt_id))


def make_judge(suite: Sequence[AskedTask], config: StatementJudge | None) -> StatementGrader | None:
    """Who reads the answers of tasks that need a judge. Raises ValueError where its key isn't set."""
    needed = any(asked.task.form == "statements" for asked in suite)
    return StatementGrader(config) if needed and config is not None else None
