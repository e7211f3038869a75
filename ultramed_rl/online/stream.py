"""A round's records under way all at once: each goes on to its next worker as soon as it is there."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby

from ultramed_rl.online.selection import Acceptance, PromptLookup, RoundSelection, asked_before
from ultramed_rl.online.training import RoundTraining
from ultramed_rl.records import PreferenceGroup, Prompt, ReferenceLogprobs, ScoredCompletion
from ultramed_rl.scheduling.pool import Outcome
from ultramed_rl.scheduling.scheduler import feed
from ultramed_rl.store.shards import ShardedPhase
from ultramed_rl.workers.online import OnlineWorkers
from ultramed_rl.workers.scorers import Scored


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
                self.workers.engines.close()
            if not self._unfinished:
                continue
            for training in self.trainings:
                training.advance()
            self.workers.check_weights()
            self.workers.scheduler.hold("rollout", not self.workers.scorers.has_capacity)
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
        self._select(prompt, scored.answers, {})

    def _select(
        self, prompt: Prompt, answers: Sequence[ScoredCompletion], known: Mapping[str, ReferenceLogprobs]
    ) -> None:
        """A prompt's pair to the reference, if it has one and was without reference logprobs; and what is known of it to the training."""
        pair = self.selection.take(prompt, answers)
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
