"""Rollout engines behind verbs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from ultramed_rl.actors.options import branches
from ultramed_rl.actors.rollout import EngineArguments, RolloutWorker
from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.cluster.transport import WorkerSet
from ultramed_rl.config import SamplingConfig
from ultramed_rl.config.models import resolve_precision
from ultramed_rl.config.rewards import ContrastSampling
from ultramed_rl.data.contrasts import Texts, build_contrasts
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import (
    Completion,
    Message,
    OptionLogprobs,
    OptionRequest,
    PreferenceGroup,
    Prompt,
    SamplingRequest,
)
from ultramed_rl.scheduling.dispatch import WorkItem
from ultramed_rl.scheduling.pool import Outcome, Pool, PoolRules
from ultramed_rl.tracking import Progress
from ultramed_rl.workers.deployment import WAVES, Deployment

Advance = Callable[[int], None]


class SamplingWorkers:
    """Owns the engines of one run. Groups start when first needed and stay until `stop`."""

    rollout: WorkerGroup
    engines: Pool  # the same, as workers of the scheduler

    def __init__(self, config: SamplingConfig, tokenizer: ChatTokenizer | None) -> None:
        """Without a tokenizer the engines score options and answer nothing."""
        self.cluster, self.model = config.cluster, config.policy
        self.stop_token = None if tokenizer is None else tokenizer.end_id
        self.thinking = None if tokenizer is None else tokenizer.thinking
        self.policy_precision = resolve_precision(config.policy.precision, config.cluster.device)
        self.weights: tuple[str, int] = ("", -1)  # what a replaced engine starts with
        self.deployment = Deployment(config)
        self.scheduler, self.turns = self.deployment.scheduler, self.deployment.turns
        self._starting: list[Any] = []

    def start_rollout(self, model: str, version: int) -> None:
        """Start the vLLM engines with this checkpoint's weights."""
        self.begin_rollout(model, version)
        self._finish_rollout()

    def begin_rollout(self, model: str, version: int) -> None:
        """Begin to start the engines; `start_learners` waits for them.

        Engines that share GPUs with the learners are waited for at once: they measure free memory.
        """
        self.weights = (model, version)
        self.rollout = self.deployment.launch("rollout", RolloutWorker, lambda m: (m.rank,))
        # Requests outlast a turn.
        rules = PoolRules(self.cluster.faults, WAVES * self.cluster.rollout.max_num_seqs, lasting=True)
        self.engines = self.scheduler.add("rollout", WorkerSet(self.rollout, self._prepare_engine), rules)
        self._starting = self._prepare_engine(self.rollout.actors)
        if self.turns and self.cluster.device == "cuda":
            self._finish_rollout()

    def _prepare_engine(self, actors: Sequence[Any]) -> list[Any]:
        model, version = self.weights
        arguments = self.engine_arguments(model)
        return [actor.start.remote(arguments, self.stop_token, version) for actor in actors]

    def _finish_rollout(self) -> None:
        if self._starting:
            self.scheduler.wait_for_start(self.engines, self._starting, self.cluster.faults.start_s)
            self._starting = []
            if self.turns:
                self.rollout.call_living(RolloutWorker.offload)

    def stop(self) -> None:
        """End all actors and give the devices back."""
        for group in self.groups.values():
            group.stop()
        self.deployment.release()

    @property
    def groups(self) -> dict[str, WorkerGroup]:
        """The groups that have started, by role."""
        return {"rollout": self.rollout} if hasattr(self, "rollout") else {}

    def engine_arguments(self, model: str) -> EngineArguments:
        """How a rollout engine of this run is started."""
        group = self.cluster.rollout
        precision = group.precision or self.model.precision
        begun = self.deployment.engine_arguments(model, self.model, group, precision)
        return replace(begun, thinking=self.thinking)

    # -- generate ------------------------------------------------------------------------------------------

    def offer(self, request: SamplingRequest | OptionRequest) -> None:
        """Something that an engine is to do; its outcome comes from the scheduler, under the request's key.

        Raises:
            ValueError: it doesn't fit the engine's context.
        """
        if isinstance(request, OptionRequest):
            tokens = len(request.context) * len(branches(request.options))
            item = WorkItem(request.question_id, len(request.options), float(tokens))
        else:
            load = len(request.prompt.token_ids) + request.n * request.max_new_tokens
            item = WorkItem(request.prompt.prompt_id, request.n, float(load))
        _check_length(request, self.model.max_length)
        self.engines.offer(item, request)

    def generate(
        self, requests: Sequence[SamplingRequest], version: int, advance: Advance
    ) -> list[Completion]:
        """Completions in the order of requests, all of policy `version`; none lost, none doubled."""
        answers: dict[str, list[Completion]] = {}
        for completions in self.stream_completions(requests, version):
            answers[completions[0].prompt_id] = completions
            advance(len(completions))
        return [completion for request in requests for completion in answers[request.prompt.prompt_id]]

    def stream_completions(
        self, requests: Iterable[SamplingRequest], version: int
    ) -> Iterator[list[Completion]]:
        """Each prompt's n completions as soon as an engine has them; none lost, none doubled.

        Raises:
            ValueError: a request that doesn't fit the engine's context.
            RuntimeError: a request that no engine could answer.
        """
        for outcome in self.answer(requests):
            completions: list[Completion] = _value_of(outcome)
            check_version([c.policy_version for c in completions], version)
            yield completions

    def stream_options(self, requests: Iterable[OptionRequest], version: int) -> Iterator[OptionLogprobs]:
        """Each question's options with their logprobs, as soon as an engine has them. Raises as `stream_completions`."""
        for outcome in self.answer(requests):
            scored: OptionLogprobs = _value_of(outcome)
            check_version([scored.policy_version], version)
            yield scored

    def answer(self, requests: Iterable[SamplingRequest | OptionRequest]) -> Iterator[Outcome]:
        """What the engines make of requests, as it comes. Requests are taken as there is room for them."""
        with self.rollout.on_device():
            for outcome in self.scheduler.stream(self.engines, iter(requests), self.offer):
                self.check_weights()
                yield outcome

    def check_weights(self) -> None:
        """Raise where an engine holds other weights than it should; here all have those that they began with."""


def sample_contrasts(
    data: ContrastSampling,
    prompts: Sequence[Prompt],
    workers: SamplingWorkers,
    tokenizer: ChatTokenizer,
    seed: int,
    progress: Progress,
) -> list[PreferenceGroup]:
    """Pairs out of the answers of policy 0, sampled calmly and wildly. The same seed gives the same ones."""
    chosen = prompts[-data.prompts :]  # the end of the pool: rounds draw from all of it, seeded
    answers: dict[str, list[Completion]] = {}
    kinds = (("calm", data.calm_answers, data.calm_temperature), ("wild", 1, data.wild_temperature))
    for name, n, temperature in kinds:
        requests = [
            SamplingRequest(p, n, temperature, 1.0, data.max_new_tokens, derive_seed(seed, name, p.prompt_id))
            for p in chosen
        ]
        with progress.phase(f"sample {name} answers", n * len(requests), "completions") as bar:
            answers[name] = workers.generate(requests, 0, bar.advance)

    def encode(messages: Sequence[Message], answer: str) -> list[int]:
        _, (tokens,) = tokenizer.encode_answers(messages, [answer])
        return tokens

    texts = Texts(encode, tokenizer.decode, tokenizer.end_id)
    return build_contrasts(chosen, answers["calm"], answers["wild"], texts=texts, seed=seed)


def _value_of(outcome: Outcome) -> Any:
    if outcome.error:
        raise RuntimeError(f"{outcome.key}: no engine could answer it: {outcome.error}")
    return outcome.value


def _check_length(request: SamplingRequest | OptionRequest, limit: int) -> None:
    """Refuse what an engine with a context of `limit` tokens cannot hold."""
    if isinstance(request, OptionRequest):
        longest = len(request.context) + max(map(len, request.options))
        if longest > limit:
            raise ValueError(
                f"question {request.question_id} has {longest} tokens with its longest option, over the "
                f"context of {limit}: raise policy.max_length"
            )
        return
    length = len(request.prompt.token_ids)
    if length + request.max_new_tokens > limit:
        raise ValueError(
            f"prompt {request.prompt.prompt_id} has {length} tokens; with {request.max_new_tokens} new ones "
            f"it exceeds the context of {limit}: lower prompts.max_prompt_tokens or raise policy.max_length"
        )


def check_version(versions: Sequence[int], expected: int) -> None:
    """An answer of another policy than the one that was asked is a defect of ours."""
    stale = set(versions) - {expected}
    assert not stale, f"answers of policy {sorted(stale)}, expected {expected}"
