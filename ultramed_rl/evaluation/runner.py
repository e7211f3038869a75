"""Benchmarks on engines: every question of a suite, under each protocol, of one policy after another.

suite --> a policy's questions in its own tokens --> engines --> answers, kept as they come --> report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any, Protocol, TypeVar

from ultramed_rl.config.benchmarks import Benchmarks
from ultramed_rl.evaluation.items import JUDGED, READ_GREEDILY, Form, Item
from ultramed_rl.evaluation.report import PolicyReport, report_policy
from ultramed_rl.evaluation.results import (
    GradedAnswer,
    grade_answers,
    grade_likelihoods,
    grade_votes,
    sample_curves,
)
from ultramed_rl.evaluation.suite import AskedTask, check_room, encode_options
from ultramed_rl.evaluation.voting import CurvePoint
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.models.tokenizer import ChatTokenizer, load_tokenizer
from ultramed_rl.records import (
    Completion,
    Message,
    OptionLogprobs,
    OptionRequest,
    Prompt,
    SamplingRequest,
    ScoredCompletion,
)
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.store.shards import ShardedPhase, in_order
from ultramed_rl.token_ids import TokenIds
from ultramed_rl.tracking import Progress

R = TypeVar("R")
T = TypeVar("T")
ScoreAnswers = Callable[[Sequence[Prompt], Sequence[Completion]], list[ScoredCompletion]]
_SCORED_PROMPTS = 256  # as many prompts' samples go to the reward models at a time
# By what is kept: the question that it answers.
_QUESTION: dict[type, Callable[[Any], str]] = {
    OptionLogprobs: attrgetter("question_id"),
    Completion: attrgetter("prompt_id"),
    ScoredCompletion: attrgetter("completion.prompt_id"),
}


class Engines(Protocol):
    """Rollout engines that hold a policy."""

    def stream_options(self, requests: Sequence[OptionRequest], version: int) -> Iterator[OptionLogprobs]: ...

    def stream_completions(
        self, requests: Sequence[SamplingRequest], version: int
    ) -> Iterator[list[Completion]]: ...


@dataclass
class AskedPolicy:
    """A policy, the questions in its own tokens, as options to weigh and as chats to answer, and what it gave: in the
    order of the questions that a protocol asks."""

    name: str
    path: str
    options: Sequence[OptionRequest] = ()
    prompts: Sequence[Prompt] = ()
    likelihoods: Sequence[OptionLogprobs] = ()
    greedy: Sequence[Completion] = ()
    samples: Sequence[Completion] = ()
    rewards: Sequence[ScoredCompletion] = ()
    chat: ChatTokenizer | None = None
    # Second turns, of the questions that have one.
    second_prompts: Sequence[Prompt] = ()
    seconds: Sequence[Completion] = ()


@dataclass(frozen=True)
class AnswerPlace:
    """Where a policy's answers are kept, and which version of the policy gives them."""

    folder: ArtifactFolder
    version: int = 0
    suffix: str = ""


class BenchmarkRunner:
    """Asks a suite's questions. What is answered is kept as it comes, so that a killed run asks only the rest."""

    def __init__(
        self, config: Benchmarks, suite: Sequence[AskedTask], seed: int, max_length: int, progress: Progress
    ) -> None:
        self.config, self.suite, self.seed, self.progress = config, suite, seed, progress
        self.max_length = max_length
        self.protocols: dict[str, Any] = {protocol.type: protocol for protocol in config.protocols}
        # By protocol: options to weigh; everything, once; and what can be voted on, in the data's own order of options.
        self.chat_questions = [question for asked in suite for question in asked.questions]
        self.likelihood_questions = [q for q in self.chat_questions if q.task.continuations is not None]
        self.voted_questions = [q for q in self.chat_questions if q.place == 0 and q.task.form not in JUDGED]
        self.sampled_questions = [
            q for q in self.chat_questions if q.place == 0 and q.task.form not in READ_GREEDILY
        ]

    def prepare(
        self, name: str, path: str, tokenizer: ChatTokenizer | None, *, trust_remote_code: bool = False
    ) -> AskedPolicy:
        """A policy with its questions. Without a chat tokenizer it is asked for likelihoods alone.

        Raises:
            ValueError: no tokenizer, or questions that exceed the context.
        """
        policy = AskedPolicy(name, path, chat=tokenizer)
        weighed, chats = self.likelihood_questions, self.chat_questions
        if weighed and "likelihood" in self.protocols:
            plain = tokenizer and tokenizer.backend
            plain = plain or load_tokenizer(path, trust_remote_code=trust_remote_code)
            policy.options = [OptionRequest(q.question_id, *encode_options(plain, q)) for q in weighed]
            lengths = [len(o.context) + max(map(len, o.options)) for o in policy.options]
            tasks = (question.task.name for question in weighed)
            check_room(zip(tasks, lengths, strict=True), self.max_length, 0)
        if chats and self.protocols.keys() - {"likelihood"}:
            assert tokenizer is not None, "who answers in words needs a chat tokenizer"
            system, answer = self.config.system, self.config.max_new_tokens
            before = () if system is None else (Message(role="system", content=system),)
            prompts = []
            for question in chats:
                # A prompt doesn't hold the key: scorers that compare with a reference would make reranking an oracle.
                item = question.item
                messages = (
                    *before,
                    *(item.turns or (Message(role="user", content=question.task.ask(item)),)),
                )
                tokens = TokenIds(tokenizer.encode_chat(messages))
                prompts.append(Prompt(question.question_id, messages, tokens, kind=question.task.name))
            check_room(((p.kind, len(p.token_ids)) for p in prompts), self.max_length, answer)
            both = [
                (p.kind, len(tokenizer.encode_chat(_second_turn(p, "x", q.item))) + answer)
                for q, p in zip(chats, prompts, strict=True)
                if q.item.follow_up
            ]
            check_room(both, self.max_length, answer)
            policy.prompts = prompts
        return policy

    def ask(self, policy: AskedPolicy, place: AnswerPlace, engines: Callable[[], Engines]) -> None:
        """All answers of a policy. `engines` is called only where something is left to ask."""
        if "likelihood" in self.protocols:
            options = {option.question_id: option for option in policy.options}

            def weigh(left: list[OptionRequest]) -> Iterator[list[OptionLogprobs]]:
                return ([scored] for scored in engines().stream_options(left, place.version))

            policy.likelihoods = self._keep("likelihood", policy, place, options, weigh, OptionLogprobs)

        def answer(left: list[SamplingRequest]) -> Iterator[list[Completion]]:
            return engines().stream_completions(left, place.version)

        def answers_to(protocol: str, requests: Sequence[SamplingRequest]) -> list[Completion]:
            by_id = {request.prompt.prompt_id: request for request in requests}
            return self._keep(protocol, policy, place, by_id, answer, Completion)

        if (greedy := self.protocols.get("greedy")) is not None:
            requests = [SamplingRequest(p, 1, 0.0, 1.0, greedy.max_new_tokens, 0) for p in policy.prompts]
            policy.greedy = answers_to("greedy", requests)
            if seconds := self._second_prompts(policy):
                again = [SamplingRequest(p, 1, 0.0, 1.0, greedy.max_new_tokens, 0) for p in seconds]
                policy.second_prompts, policy.seconds = seconds, answers_to("greedy_second", again)
        if (sampled := self.protocols.get("self_consistency")) is not None:
            how = (sampled.samples, sampled.temperature, sampled.top_p, sampled.max_new_tokens)
            voted = {q.question_id for q in self.sampled_questions}
            requests = [
                SamplingRequest(prompt, *how, derive_seed(self.seed, "benchmark", prompt.prompt_id))
                for prompt in policy.prompts
                if prompt.prompt_id in voted
            ]
            policy.samples = answers_to("self_consistency", requests)

    def reward(self, policy: AskedPolicy, place: AnswerPlace, score: ScoreAnswers) -> None:
        """The reward of every sample of a choice, for reranking."""
        choices = {q.question_id for q in self.voted_questions if q.task.form == "choice"}
        prompts = {p.prompt_id: p for p in policy.prompts if p.prompt_id in choices}
        samples: dict[str, list[Completion]] = {}
        for sample in policy.samples:
            if sample.prompt_id in prompts:
                samples.setdefault(sample.prompt_id, []).append(sample)

        def stream(left: list[list[Completion]]) -> Iterator[list[ScoredCompletion]]:
            for start in range(0, len(left), _SCORED_PROMPTS):
                groups = left[start : start + _SCORED_PROMPTS]
                asked = [prompts[group[0].prompt_id] for group in groups]
                by_prompt: dict[str, list[ScoredCompletion]] = {}
                for item in score(asked, [sample for group in groups for sample in group]):
                    by_prompt.setdefault(item.completion.prompt_id, []).append(item)
                yield from by_prompt.values()

        policy.rewards = self._keep("rewards", policy, place, samples, stream, ScoredCompletion)

    def _keep(
        self,
        name: str,
        policy: AskedPolicy,
        place: AnswerPlace,
        requests: Mapping[str, R],
        stream: Callable[[list[R]], Iterator[list[T]]],
        kind: type[T],
    ) -> list[T]:
        """One artifact: what `stream` gives for the requests that are not answered yet."""
        question_of, artifact = _QUESTION[kind], f"benchmark-{name}{place.suffix}"
        inputs = (list(requests.values()), policy.path, place.version)
        phase = ShardedPhase(place.folder, artifact, kind, *inputs)
        if not phase.finished:
            done = {question_of(record) for record in phase.read()}
            left = [request for question, request in requests.items() if question not in done]
            title = f"{policy.name}, {name.replace('_', '-')}"
            started = time.perf_counter()
            if left:
                answers = stream(left)  # engines start here, so that the phase's rate is theirs
                with self.progress.phase(title, len(left), "questions") as bar, phase.kept():
                    for records in answers:
                        phase.keep(records)
                        bar.advance(1)
            phase.finish({artifact: time.perf_counter() - started})
        return in_order(phase.read(), question_of, list(requests))

    def report(self, policy: AskedPolicy) -> PolicyReport:
        """Every answer graded, by task and protocol. K-QA's wait for their judge."""
        graded: dict[str, list[GradedAnswer]] = {}
        curves: dict[str, list[CurvePoint]] = {}
        samples = 1
        if policy.likelihoods:
            graded["likelihood"] = grade_likelihoods(self.likelihood_questions, policy.likelihoods)
        if policy.greedy:
            pairs = zip(self.chat_questions, policy.greedy, strict=True)
            graded["greedy"] = grade_answers([p for p in pairs if p[0].task.form not in JUDGED])
        if policy.samples:
            samples = self.protocols["self_consistency"].samples
            drawn = zip(self.sampled_questions, self._sampled(policy), strict=True)
            groups = [answers for question, answers in drawn if question.task.form not in JUDGED]
            graded["self_consistency"] = grade_votes(self.voted_questions, groups)
            curves = sample_curves(self.voted_questions, groups, policy.rewards, self.seed)
        return report_policy(policy.name, self.suite, graded, samples, curves)

    def _sampled(self, policy: AskedPolicy) -> list[Sequence[Completion]]:
        samples = self.protocols["self_consistency"].samples if policy.samples else 1
        return [policy.samples[i : i + samples] for i in range(0, len(policy.samples), samples)]

    def rubrics(self, policy: AskedPolicy) -> dict[tuple[str, str], list[tuple[Item, Sequence[Completion]]]]:
        """By task and protocol, the items whose answers a grader reads, with these."""
        alone = [[answer] for answer in policy.greedy]
        found: dict[tuple[str, str], list[tuple[Item, Sequence[Completion]]]] = {}
        for protocol, questions, answers in (
            ("greedy", self.chat_questions, alone),
            ("self_consistency", self.sampled_questions, self._sampled(policy)),
        ):
            for question, own in zip(questions, answers, strict=True) if answers else ():
                if question.task.form == "rubric":
                    found.setdefault((question.task.name, protocol), []).append((question.item, own))
        return found

    def judged(self, policy: AskedPolicy, form: Form) -> list[tuple[Item, Completion]]:
        """The items of a form whose answers a judge reads, with these."""
        pairs = zip(self.chat_questions, policy.greedy, strict=True) if policy.greedy else ()
        return [(q.item, answer.without_thought()) for q, answer in pairs if q.task.form == form]

    def chats(self, policy: AskedPolicy) -> tuple[list[Prompt], list[Completion]]:
        """MT-Bench's chats with their answers, each with its reference where there is one: first turns, then second ones. A
        second turn's answer is of another prompt, and called so."""
        prompts, answers = list[Prompt](), list[Completion]()
        rows = zip(self.chat_questions, policy.prompts, policy.greedy, strict=True)
        firsts = [row for row in rows if row[0].task.form == "chat"]
        for question, prompt, answer in firsts:
            prompts.append(replace(prompt, answer=(*question.item.beside, "")[0]))
            answers.append(answer.without_thought())
        for (question, *_), prompt, answer in zip(firsts, policy.second_prompts, policy.seconds, strict=True):
            name = f"{prompt.prompt_id}/second"
            prompts.append(replace(prompt, prompt_id=name, answer=(*question.item.beside, "", "")[1]))
            answers.append(replace(answer.without_thought(), prompt_id=name))
        return prompts, answers

    def _second_prompts(self, policy: AskedPolicy) -> list[Prompt]:
        """The chats that go on, after what the policy answered first."""
        found = []
        for question, prompt, answer in zip(self.chat_questions, policy.prompts, policy.greedy, strict=True):
            if question.item.follow_up:
                assert policy.chat is not None
                messages = _second_turn(prompt, answer.answer, question.item)
                tokens = TokenIds(policy.chat.encode_chat(messages))
                found.append(replace(prompt, messages=messages, token_ids=tokens))
        return found


def _second_turn(prompt: Prompt, answer: str, item: Item) -> tuple[Message, ...]:
    """A first turn, an answer to it, and the second turn."""
    turns = (Message(role="assistant", content=answer), Message(role="user", content=item.follow_up))
    return (*prompt.messages, *turns)
