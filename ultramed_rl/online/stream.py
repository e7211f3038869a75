"""A round's records under way all at once: each goes on to its next worker as soon as it is there. What the round asks of its
prompts, which answers it takes, and the pairs that it chooses as scored answers pass.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ultramed_rl.evaluation.metrics import RoundMetrics
from ultramed_rl.learning.pairs import PairSelector
from ultramed_rl.online.training import RoundTraining
from ultramed_rl.records import (
    Completion,
    PreferenceGroup,
    Prompt,
    ReferenceLogprobs,
    SamplingRequest,
    ScoredCompletion,
)
from ultramed_rl.scheduling.pool import Outcome
from ultramed_rl.scheduling.scheduler import feed
from ultramed_rl.store import RoundRecord
from ultramed_rl.store.shards import ShardedPhase
from ultramed_rl.workers.online import OnlineWorkers
from ultramed_rl.workers.sampling import check_version
from ultramed_rl.workers.scorers import Scored


@dataclass(frozen=True)
class RoundSpec:
    """What a round asks for.

    Attributes:
        request: a prompt's request to the engines.
        extra: a prompt's answer that is scored beside the policy's, or None.
        selector: chooses the round's pairs, from its first prompt on.
        version: the policy's, which every completion must carry.
        reference_version: the reference's; None where no reference logprobs are wanted.
    """

    request: Callable[[Prompt], SamplingRequest]
    extra: Callable[[Prompt], Completion | None]
    selector: Callable[[], PairSelector]
    version: int
    reference_version: int | None


class Acceptance:
    """Takes what comes back of one round's prompts.

    Args:
        prompts: that the round has.
        share: of them, and at least one, may be set aside.
    """

    def __init__(
        self, spec: RoundSpec, index: int, prompts: int, share: float, say: Callable[[str], None]
    ) -> None:
        self.spec, self.index, self.share, self.say = spec, index, share, say
        self.limit = max(1, int(share * prompts))
        self.set_aside: dict[str, str] = {}

    def accept(self, outcome: Outcome) -> list[Completion]:
        """An engine's outcome: a prompt's completions, or none where it was set aside."""
        if outcome.error:
            self._set_aside(outcome.key, outcome.error)
            return []
        completions: list[Completion] = outcome.value
        check_version([c.policy_version for c in completions], self.spec.version)
        return completions

    def candidates(self, prompt: Prompt, completions: list[Completion]) -> list[Completion]:
        """What is scored: the policy's answers, and perhaps the data's own."""
        extra = self.spec.extra(prompt)
        return completions if extra is None else [*completions, extra]

    def accept_scored(self, scored: Scored) -> bool:
        """Whether there are scored answers; if not, the prompt is set aside."""
        if scored.error:
            self._set_aside(scored.prompt_id, scored.error)
        return not scored.error

    def _set_aside(self, prompt_id: str, error: str) -> None:
        self.set_aside[prompt_id] = error
        self.say(f"round {self.index}: prompt {prompt_id} is set aside: {error}")
        if len(self.set_aside) > self.limit:
            raise ValueError(
                f"round {self.index}: {len(self.set_aside)} prompts set aside, more than "
                f"cluster.faults.max_failed_prompt_share={self.share:g} allows ({self.limit}); the last: {error}; mend the cause "
                "and go on with --resume"
            )


class RoundSelection:
    """Each prompt is looked at once: its pair, if it gives one, goes to pairs.parquet, its numbers into the manifest's
    `summary`. What a killed run kept is looked at once more, and makes the same pairs.
    """

    def __init__(
        self,
        record: RoundRecord,
        selector: PairSelector,
        neutralised: Callable[[Sequence[Completion]], int],
        say_length: Callable[[int, float], None],
        first_look: int,
        *inputs: Any,
    ) -> None:
        """
        Args:
            neutralised: how many of these answers hold control tokens that the policy wrote.
            say_length: is told of how many prompts, and how reward and length correlate within them, at the end; in round 0
                also after the first `first_look`.

        Raises:
            ValueError: finished pairs that are of other answers.
        """
        self.record, self.selector, self.neutralised = record, selector, neutralised
        if record.finished("pairs") and record.finished("scored"):
            self._check_origin()
        else:  # begun, or of answers that are gone
            record.discard("pairs")
        self.phase = ShardedPhase(record, "pairs", PreferenceGroup, *inputs)
        self._metrics, self._neutralised = RoundMetrics(), 0
        self._say_length, self._first_look = say_length, first_look

    @property
    def pairs(self) -> int:
        """How many there are by now."""
        return self.selector.counts["pairs"]

    def take(
        self,
        prompt: Prompt,
        answers: Sequence[ScoredCompletion],
        neutralised: int | None = None,
    ) -> PreferenceGroup | None:
        """A prompt's pair, out of all of its answers; None where it gives none. `neutralised`: where it is known."""
        self._metrics.add_answers(prompt, answers)
        if neutralised is None:
            neutralised = self.neutralised([s.completion for s in answers])
        self._neutralised += neutralised
        pair = self.selector.choose(prompt, answers)
        if self.record.index == 0 and self.selector.counts.total() == self._first_look:
            self._say_length(self._first_look, self._metrics.length.correlation)
        if pair is not None:
            self._metrics.add_pair(pair)
            self.phase.keep([pair])
        return pair

    def finish(self) -> None:
        """All prompts have passed.

        Raises:
            ValueError: there is no pair.
        """
        audit = self.selector.audit
        if not audit.pairs:
            raise ValueError(
                f"round {self.record.index}: no pair out of {audit.prompts} prompts ({audit}); lower pairs.min_margin, "
                "raise sampling.n or sampling.temperature, or look at rounds/*/scored.parquet"
            )
        self._say_length(audit.prompts, self._metrics.length.correlation)
        summary = {**self._metrics.metrics(audit), "neutralised": self._neutralised}
        self.phase.finish({}, summary=summary, scored=self.record.digest("scored"))

    def _check_origin(self) -> None:
        made_from, scored = self.record.manifest("pairs")["scored"], self.record.digest("scored")
        if made_from != scored:
            raise ValueError(
                f"{self.record.artifact('pairs')}: made from other inputs ({made_from[:12]}, now {scored[:12]}); put back "
                "scored.parquet and scored.json, or delete pairs.parquet and pairs.json to compute them again"
            )


def asked_before(prompts: Iterable[Prompt], kept: Collection[str]) -> int:
    """How many prompts from the first on a killed run had asked, at least: up to the last of which something is kept."""
    if not kept:
        return 0
    return max(place for place, prompt in enumerate(prompts, start=1) if prompt.prompt_id in kept)


class PromptLookup:
    """Prompts by id, read once in their order: those passed over are kept until they are asked for.

    Answers come nearly in the order of their prompts, so few are kept.
    """

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._prompts = iter(prompts)
        self._passed: dict[str, Prompt] = {}

    def take(self, prompt_id: str) -> Prompt:
        """The prompt of this id, once."""
        while prompt_id not in self._passed:
            prompt = next(self._prompts)
            self._passed[prompt.prompt_id] = prompt
        return self._passed.pop(prompt_id)


class Stream:
    """The round's records on their way through the workers."""

    def __init__(
        self,
        workers: OnlineWorkers,
        acceptance: Acceptance,
        scored: ShardedPhase[ScoredCompletion],
        selection: RoundSelection,
        references: ShardedPhase[ReferenceLogprobs] | None,
        training: RoundTraining | None,
        beside: RoundTraining | None,
    ) -> None:
        """`training` learns the pairs as they come; `beside` is the round's before, and goes on meanwhile."""
        self.workers, self.acceptance, self.spec = workers, acceptance, acceptance.spec
        self.scored, self.selection, self.references, self.training = scored, selection, references, training
        self.trainings = [t for t in (training, beside) if t is not None]
        self.asks_policy = workers.scorers.config.asks_policy
        self._started = time.perf_counter()
        self._last: dict[str, float] = {}  # by step: seconds from the start until its last record
        self._prompts: dict[str, Prompt] = {}  # under way
        self._at_reference: dict[str, PreferenceGroup] = {}  # by group, for the training

    def run(self, prompts: Sequence[Prompt], wanted: int, advance: Callable[[int], None]) -> int:
        """Until as many pairs as are wanted, or all prompts, are through: scored, with reference logprobs, or set aside.

        Each turn of the loop
        - consumes prompts, as long as somebody downstream is not behind (`_has_capacity`), and all outcomes that are there;
        - waits for the next outcome of any engine, scorer or reference, and no longer than until a scorer that is no actor
          (a server, a function) may have something;
        - is unblocked by any of them, by a worker that is replaced, or by that time-out. Training never blocks it: steps are
          started and noted in passing.

        Returns how many prompts were asked. Raises LostWorkers, RanksLost.
        """
        kept = self._take_up(prompts)
        self.wanted, self.asked, self.least = wanted, len(kept), asked_before(prompts, kept)
        source = (p for p in prompts if p.prompt_id not in kept)
        more = True
        while more or self._unfinished:
            enough = not self._prompts and not self._needed
            if more and (enough or not feed(source, lambda: self._has_capacity, self._set_out)):
                more = False
                if not self.asks_policy:
                    self.workers.engines.close()
            if not self._unfinished:
                continue
            for training in self.trainings:
                training.advance()
            self.workers.check_weights()
            # Not where scorers wait for these very engines.
            behind = not self.workers.scorers.has_capacity and not self.asks_policy
            self.workers.scheduler.hold("rollout", behind)
            for outcome in self.workers.scheduler.outcomes(self.workers.scorers.timeout):
                self._route(outcome)
            for scored in self.workers.scorers.ready():
                self._keep(scored, advance)
        for training in self.trainings:
            training.advance()
        return self.asked

    def seconds_added(self, *steps: str) -> dict[str, float]:
        """What each step adds to the wall time after those before it; they sum up to the whole."""
        added, reached = {}, 0.0
        for step in steps:
            last = max(self._last.get(step, 0.0), reached)
            added[step], reached = last - reached, last
        return added

    def _note(self, step: str) -> None:
        self._last[step] = time.perf_counter() - self._started

    def _set_out(self, prompt: Prompt) -> None:
        self.asked += 1
        self._prompts[prompt.prompt_id] = prompt
        self.workers.offer(self.spec.request(prompt))

    @property
    def _needed(self) -> bool:
        """Whether another prompt is to be asked: while the pairs that there are, with one for each prompt under way, come to
        fewer than are wanted; and as far as a killed run had asked.

        So none is asked in vain, and which are asked doesn't depend on whose answers come first: they are the shortest
        beginning of the round's prompts that gives the pairs wanted.
        """
        return self.asked < self.least or self.selection.pairs + len(self._prompts) < self.wanted

    @property
    def _has_capacity(self) -> bool:
        """Whether another prompt may set out: it is needed, and nobody on its way is behind."""
        reference = self.references is None or self.workers.references.pool.has_capacity
        return (
            self._needed
            and self.workers.engines.has_capacity
            and self.workers.scorers.has_capacity
            and reference
        )

    @property
    def _unfinished(self) -> bool:
        at_reference = self.references is not None and self.workers.references.pool.unfinished
        return bool(self.workers.engines.unfinished or self.workers.scorers.unfinished or at_reference)

    def _route(self, outcome: Outcome) -> None:
        if self.workers.scorers.serves(outcome):
            return
        if outcome.role == "rollout":
            completions = self.acceptance.accept(outcome)
            prompt = self._prompts[outcome.key]
            if completions:
                self.workers.scorers.offer(prompt, self.acceptance.candidates(prompt, completions))
                self._note("completions")
            else:
                del self._prompts[outcome.key]
                self._pass_on(outcome.key, None, None)
        elif outcome.role == "reference":
            assert self.references is not None
            reference = self.workers.references.take(outcome)
            self.references.keep([reference])
            self._note("reference")
            if self.training is not None:
                pair = self._at_reference.pop(reference.group_id)
                self._pass_on(pair.prompt.prompt_id, pair, reference)
        else:
            self.workers.scorers.take(outcome)

    def _keep(self, scored: Scored, advance: Callable[[int], None]) -> None:
        prompt = self._prompts.pop(scored.prompt_id)
        if not self.acceptance.accept_scored(scored):
            self._pass_on(scored.prompt_id, None, None)
            return
        self.scored.keep(scored.answers)
        self._note("scored")
        advance(sum(s.completion.finish_reason != "reference" for s in scored.answers))
        self._select(prompt, scored.answers, {}, scored.neutralised)

    def _select(
        self,
        prompt: Prompt,
        answers: Sequence[ScoredCompletion],
        known: Mapping[str, ReferenceLogprobs],
        neutralised: int | None = None,
    ) -> None:
        """A prompt's pair to the reference, if it has one and was without reference logprobs; and what is known of it to the training."""
        pair = self.selection.take(prompt, answers, neutralised)
        reference = None if pair is None else known.get(pair.group_id)
        if pair is None or self.references is None or reference is not None:
            self._pass_on(prompt.prompt_id, pair, reference)
            return
        if self.training is not None:
            self._at_reference[pair.group_id] = pair
        self.workers.references.offer(pair)

    def _pass_on(
        self, prompt_id: str, pair: PreferenceGroup | None, reference: ReferenceLogprobs | None
    ) -> None:
        if self.training is not None:
            self.training.accept(prompt_id, pair, reference)

    def _take_up(self, prompts: Sequence[Prompt]) -> set[str]:
        """The prompts whose answers a killed run kept. Of their pairs those that were without reference logprobs go to the reference."""
        references = [] if self.references is None else self.references.read()
        known = {reference.group_id: reference for reference in references}
        kept = set()
        for prompt, answers in answered_prompts(prompts, self.scored):
            kept.add(prompt.prompt_id)
            self._select(prompt, answers, known)
        return kept


def answered_prompts(
    prompts: Iterable[Prompt], scored: ShardedPhase[ScoredCompletion]
) -> Iterator[tuple[Prompt, list[ScoredCompletion]]]:
    """The prompts whose scored answers are in files, with these."""
    lookup = PromptLookup(prompts)
    for prompt_id, answers in groupby(scored.read(), lambda s: s.completion.prompt_id):
        yield lookup.take(prompt_id), list(answers)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Records make no cycles: looking for some among millions of them every 2000 new objects is time for nothing."""
    before = gc.get_threshold()
    gc.set_threshold(500_000, 20, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
