r"""From a round's prompts to scored answers and reference logprobs, everything under way at once.

    prompts --> engines --completions--> reward models --scored--> pair selection --pairs--> reference
       ^                                                |                                       |
       +-- fed while nobody downstream is behind        +--> scored.parquet                     +--> reference.parquet

What is done is kept in files as it comes; a killed run goes on with the prompts and pairs that are not there yet.
With barriers the same three steps come one after the other, and give the same records.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby

from ultramed_rl.actors.rollout import SamplingRequest
from ultramed_rl.cluster.pool import Outcome
from ultramed_rl.config import RunConfig
from ultramed_rl.crew.online import Crew
from ultramed_rl.crew.sampling import check_version
from ultramed_rl.crew.scorers import Scored
from ultramed_rl.online.training import RoundTraining
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs, ScoredCompletion
from ultramed_rl.store import RoundRecord
from ultramed_rl.store.atomic import write_lines
from ultramed_rl.store.shards import RecordFiles, ShardedPhase
from ultramed_rl.tracking import Progress
from ultramed_rl.tracking.progress import Bar

Select = Callable[[Prompt, Sequence[ScoredCompletion]], PreferenceGroup | None]


@dataclass(frozen=True)
class Rules:
    """What a round asks for.

    Attributes:
        request: a prompt's request to the engines.
        extra: a prompt's answer that is scored beside the policy's, or None.
        select: a prompt's pair out of its scored answers, or None.
        version: the policy's, which every completion must carry.
        reference_version: the reference's; None where no reference logprobs are wanted.
    """

    request: Callable[[Prompt], SamplingRequest]
    extra: Callable[[Prompt], Completion | None]
    select: Select
    version: int
    reference_version: int | None


@dataclass
class Gathered:
    """Scored answers, and the prompts that were set aside with their errors."""

    scored: RecordFiles[ScoredCompletion]
    set_aside: dict[str, str]


@dataclass
class _Watch:
    """Seconds from the start until each step gave its last record."""

    started: float = field(default_factory=time.perf_counter)
    last: dict[str, float] = field(default_factory=dict)

    def note(self, step: str) -> None:
        self.last[step] = time.perf_counter() - self.started

    def added(self, *steps: str) -> dict[str, float]:
        """What each step adds to the wall time after those before it; they sum up to the whole."""
        found, reached = {}, 0.0
        for step in steps:
            last = max(self.last.get(step, 0.0), reached)
            found[step], reached = last - reached, last
        return found


class Gatherer:
    """Gathers one round's records. `gather` comes first, then `weigh` for the pairs that were selected.

    A `training` is told of each pair as it is ready.
    """

    def __init__(
        self,
        config: RunConfig,
        crew: Crew,
        progress: Progress,
        record: RoundRecord,
        rules: Rules,
        training: RoundTraining | None = None,
    ) -> None:
        self.config, self.crew, self.progress = config, crew, progress
        self.record, self.rules, self.training = record, rules, training
        self.set_aside: dict[str, str] = {}
        self._limit = 1
        self._weighed_s = 0.0  # that the streamed references took after the last score

    def gather(self, prompts: Sequence[Prompt]) -> Gathered:
        """Scored answers of all prompts but those set aside.

        Raises:
            ValueError: too many prompts are set aside.
            LostWorkers, RanksLost: what was done is kept.
        """
        self._limit = max(1, int(self.config.cluster.faults.set_aside_share * len(prompts)))
        phase = ShardedPhase(self.record, "scored", ScoredCompletion, *self._inputs)
        if not phase.finished:
            if self.config.cluster.has_barriers:
                self._in_turn(phase, prompts)
            else:
                self._streamed(phase, prompts)
        self.record.discard("completions")  # which the scored ones hold, all of them
        return Gathered(phase.read(), dict(self.record.manifest("scored")["set_aside"]))

    def weigh(self, pairs: Sequence[PreferenceGroup]) -> list[ReferenceLogprobs] | None:
        """Each pair's reference logprobs, in the pairs' order; None where the objective has no reference."""
        phase = self._reference_phase()
        if phase is None:
            return None
        if not phase.finished:
            known = {reference.group_id for reference in phase.read()}
            left = [pair for pair in pairs if pair.group_id not in known]
            started = time.perf_counter()
            if left:
                total = sum(len(p.completions) for p in left)
                with self._phase("reference logprobs", total) as bar:
                    for reference in self.crew.reference_logprobs(left, bar.advance):
                        phase.keep([reference])
            phase.finish({"reference": self._weighed_s + time.perf_counter() - started})
        found = {reference.group_id: reference for reference in phase.read()}
        return [found[pair.group_id] for pair in pairs]

    # -- all at once ---------------------------------------------------------------------------------------

    def _streamed(self, phase: ShardedPhase[ScoredCompletion], prompts: Sequence[Prompt]) -> None:
        references = self._reference_phase() if self._streams_references else None
        if self.training is not None:
            self.training.begin()
        stream = _Stream(self, phase, references)
        total = len(prompts) * self.config.sampling.n
        with ExitStack() as stack:
            stack.enter_context(_seldom_collected())
            bar = stack.enter_context(self._phase("generate and score", total))
            stack.enter_context(self.crew.rollout.awake())
            stack.enter_context(self.crew.scorers.awake())
            if references is not None:
                stack.enter_context(self.crew.reference_awake())
            stack.callback(self._forget)
            stack.enter_context(phase.beside())
            if references is not None:
                stack.enter_context(references.beside())
            stream.run(prompts, bar.advance)
        seconds = stream.watch.added("completions", "scored", "reference")
        if references is not None:
            references.flush()
            self._weighed_s = seconds["reference"]
        self._finish(phase, {name: seconds[name] for name in ("completions", "scored")}, prompts)

    @property
    def _streams_references(self) -> bool:
        # KTO's mismatched answers are of other pairs, which are not there yet.
        return self.config.objective.uses_reference and self.config.objective.kl != "mismatched"

    # -- one after the other -------------------------------------------------------------------------------

    def _in_turn(self, phase: ShardedPhase[ScoredCompletion], prompts: Sequence[Prompt]) -> None:
        completions = ShardedPhase(self.record, "completions", Completion, *self._inputs)
        if not completions.finished:
            self._generate(completions, prompts)
        seconds = self.record.seconds["completions"]
        self.set_aside = dict(self.record.manifest("completions")["set_aside"])
        started = time.perf_counter()
        self._score(phase, completions.read(), {p.prompt_id: p for p in prompts})
        self._finish(phase, {"completions": seconds, "scored": time.perf_counter() - started}, prompts)

    def _generate(self, phase: ShardedPhase[Completion], prompts: Sequence[Prompt]) -> None:
        done = {c.prompt_id for c in phase.read()}
        started = time.perf_counter()
        left = [p for p in prompts if p.prompt_id not in done]
        with self._phase("generate", len(left) * self.config.sampling.n) as bar:
            for outcome in self.crew.answer(map(self.rules.request, left)):
                completions = self.accept(outcome)
                if completions:
                    phase.keep(completions)
                    bar.advance(len(completions))
        phase.finish({"completions": time.perf_counter() - started}, set_aside=self.set_aside)

    def _score(
        self,
        phase: ShardedPhase[ScoredCompletion],
        completions: Iterable[Completion],
        prompts: dict[str, Prompt],
    ) -> None:
        done = {s.completion.prompt_id for s in phase.read()}
        source = (
            (prompts[prompt_id], self.candidates(prompts[prompt_id], list(answers)))
            for prompt_id, answers in groupby(completions, lambda c: c.prompt_id)
            if prompt_id not in done
        )
        total = (len(prompts) - len(done)) * self.config.sampling.n
        with self._phase("score", total) as bar, self.crew.scorers.awake(), ExitStack() as stack:
            stack.callback(self._forget)
            for scored in self.crew.scorers.stream(source, self.crew.exchange):
                if self.accept_scored(scored):
                    phase.keep(scored.answers)
                    bar.advance(len(scored.answers))

    # -- shared --------------------------------------------------------------------------------------------

    def accept(self, outcome: Outcome) -> list[Completion]:
        """An engine's outcome: a prompt's completions, or none where it was set aside."""
        if outcome.error:
            self._set_aside(outcome.key, outcome.error)
            return []
        completions: list[Completion] = outcome.value
        check_version([c.policy_version for c in completions], self.rules.version)
        return completions

    def candidates(self, prompt: Prompt, completions: list[Completion]) -> list[Completion]:
        """What is scored: the policy's answers, and perhaps the data's own."""
        extra = self.rules.extra(prompt)
        return completions if extra is None else [*completions, extra]

    def accept_scored(self, scored: Scored) -> bool:
        """Whether there are scored answers; if not, the prompt is set aside."""
        if scored.error:
            self._set_aside(scored.prompt_id, scored.error)
        return not scored.error

    def _set_aside(self, prompt_id: str, error: str) -> None:
        self.set_aside[prompt_id] = error
        self.progress.say(f"round {self.record.index}: prompt {prompt_id} is set aside: {error}")
        if len(self.set_aside) > self._limit:
            share = self.config.cluster.faults.set_aside_share
            raise ValueError(
                f"round {self.record.index}: {len(self.set_aside)} prompts set aside, more than "
                f"cluster.faults.set_aside_share={share:g} allows ({self._limit}); the last: {error}; mend the cause "
                "and go on with --resume"
            )

    def _finish(
        self, phase: ShardedPhase[ScoredCompletion], seconds: dict[str, float], prompts: Sequence[Prompt]
    ) -> None:
        if self.set_aside:
            texts = {p.prompt_id: p.messages[-1]["content"] for p in prompts if p.prompt_id in self.set_aside}
            rows = [{"prompt_id": k, "error": e, "prompt": texts[k]} for k, e in self.set_aside.items()]
            write_lines(self.record.path / "set_aside.jsonl", rows)
        phase.finish(seconds, set_aside=self.set_aside)

    def _reference_phase(self) -> ShardedPhase[ReferenceLogprobs] | None:
        version = self.rules.reference_version
        if version is None:
            return None
        return ShardedPhase(self.record, "reference", ReferenceLogprobs, *self._inputs, version)

    @property
    def _inputs(self) -> tuple[int, str]:
        """What every phase here is made from: the round's prompts, whose files have a digest already."""
        return self.record.index, self.record.digest("prompts")

    def _forget(self) -> None:
        """After an error nothing of this round may come back in a later one."""
        self.crew.exchange.forget()
        self.crew.scorers.forget()
        if self.config.objective.uses_reference:
            self.crew.references.forget()

    def _phase(self, name: str, total: int) -> AbstractContextManager[Bar]:
        self.crew.exchange.phase = name
        return self.progress.phase(f"round {self.record.index} {name}", total, "completions")


class _Stream:
    """The round's records on their way through the crew."""

    def __init__(
        self,
        gatherer: Gatherer,
        scored: ShardedPhase[ScoredCompletion],
        references: ShardedPhase[ReferenceLogprobs] | None,
    ) -> None:
        self.gatherer, self.crew, self.rules = gatherer, gatherer.crew, gatherer.rules
        self.scored, self.references = scored, references
        self.training = gatherer.training
        self.watch = _Watch()
        self._prompts: dict[str, Prompt] = {}  # under way
        self._weighing: dict[str, PreferenceGroup] = {}  # by group, for the training

    def run(self, prompts: Sequence[Prompt], advance: Callable[[int], None]) -> None:
        """Until every prompt is scored and every pair weighed, or set aside."""
        source = self._left(prompts)
        more = True
        while more or self._unfinished:
            while more and self._wanted:
                prompt = next(source, None)
                if prompt is None:
                    more = False
                    self.crew.engines.close()
                else:
                    self._prompts[prompt.prompt_id] = prompt
                    self.crew.offer(self.rules.request(prompt))
            if not self._unfinished:
                continue
            if self.training is not None:
                self.training.advance()
            self.crew.exchange.hold("rollout", not self.crew.scorers.wanted)
            for outcome in self.crew.exchange.outcomes(self.crew.scorers.patience):
                self._route(outcome)
            for scored in self.crew.scorers.ready():
                self._keep(scored, advance)
        if self.training is not None:
            self.training.advance()

    @property
    def _wanted(self) -> bool:
        """Whether another prompt may set out: nobody on its way is behind."""
        reference = self.references is None or self.crew.references.pool.wanted
        return self.crew.engines.wanted and self.crew.scorers.wanted and reference

    @property
    def _unfinished(self) -> bool:
        weighing = self.references is not None and self.crew.references.pool.unfinished
        return bool(self.crew.engines.unfinished or self.crew.scorers.unfinished or weighing)

    def _route(self, outcome: Outcome) -> None:
        if outcome.role == "rollout":
            completions = self.gatherer.accept(outcome)
            prompt = self._prompts[outcome.key]
            if completions:
                self.crew.scorers.offer(prompt, self.gatherer.candidates(prompt, completions))
                self.watch.note("completions")
            else:
                del self._prompts[outcome.key]
                self._settle(outcome.key, None, None)
        elif outcome.role == "reference":
            assert self.references is not None
            reference = self.crew.references.take(outcome)
            self.references.keep([reference])
            self.watch.note("reference")
            if self.training is not None:
                pair = self._weighing.pop(reference.group_id)
                self._settle(pair.prompt.prompt_id, pair, reference)
        else:
            self.crew.scorers.take(outcome)

    def _keep(self, scored: Scored, advance: Callable[[int], None]) -> None:
        prompt = self._prompts.pop(scored.prompt_id)
        if not self.gatherer.accept_scored(scored):
            self._settle(scored.prompt_id, None, None)
            return
        self.scored.keep(scored.answers)
        self.watch.note("scored")
        advance(sum(s.completion.finish_reason != "reference" for s in scored.answers))
        self._select(prompt, scored.answers, {})

    def _select(
        self, prompt: Prompt, answers: Sequence[ScoredCompletion], weighed: Mapping[str, ReferenceLogprobs]
    ) -> None:
        """A prompt's pair to the reference, if it has one and was not weighed; and what is known of it to the training."""
        if self.references is None and self.training is None:
            return
        pair = self.rules.select(prompt, answers)
        reference = None if pair is None else weighed.get(pair.group_id)
        if pair is None or self.references is None or reference is not None:
            self._settle(prompt.prompt_id, pair, reference)
            return
        if self.training is not None:
            self._weighing[pair.group_id] = pair
        self.crew.references.offer(pair)

    def _settle(
        self, prompt_id: str, pair: PreferenceGroup | None, reference: ReferenceLogprobs | None
    ) -> None:
        if self.training is not None:
            self.training.settle(prompt_id, pair, reference)

    def _left(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """Prompts that an earlier, killed run had not kept; of those that it had, the pairs still to be weighed."""
        kept = {prompt_id for prompt_id, _ in self._kept()}
        if kept:
            found = [] if self.references is None else self.references.read()
            weighed = {reference.group_id: reference for reference in found}
            by_id = {p.prompt_id: p for p in prompts if p.prompt_id in kept}
            for prompt_id, answers in self._kept():
                self._select(by_id[prompt_id], answers, weighed)
        return (p for p in prompts if p.prompt_id not in kept)

    def _kept(self) -> Iterator[tuple[str, list[ScoredCompletion]]]:
        for prompt_id, answers in groupby(self.scored.read(), lambda s: s.completion.prompt_id):
            yield prompt_id, list(answers)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Records make no cycles: looking for some among millions of them every 2000 new objects is time for nothing."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
