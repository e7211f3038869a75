r"""From a round's prompts to scored answers and reference logprobs, everything under way at once.

    prompts --> engines --completions--> reward models --scored--> pair selection --pairs--> reference
       ^                                                |                                       |
       +-- fed while nobody downstream is behind        +--> scored.parquet                     +--> reference.parquet

What is done is kept in files as it comes; a killed run goes on with the prompts and pairs that are not there yet.
With `cluster.sequential_phases` the same three steps come one after the other, and give the same records.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby, islice

from ultramed_rl.cluster.plan import needs_reference
from ultramed_rl.config import RunConfig
from ultramed_rl.learning.length import length_warning, length_words
from ultramed_rl.online.stream import (
    Acceptance,
    PromptLookup,
    RoundSelection,
    RoundSpec,
    Stream,
    answered_prompts,
    asked_before,
    seldom_collected,
)
from ultramed_rl.online.training import RoundTraining
from ultramed_rl.records import Completion, Prompt, ReferenceLogprobs, ScoredCompletion
from ultramed_rl.store import RoundRecord
from ultramed_rl.store.atomic import write_lines
from ultramed_rl.store.shards import RoundPairs, ShardedPhase
from ultramed_rl.tracking import Progress
from ultramed_rl.tracking.console import Bar
from ultramed_rl.workers.online import OnlineWorkers


class RoundRollout:
    """One round's records: `roll_out` scored answers and pairs, then `compute_references` for the pairs' reference logprobs.

    A `training` is told of each pair as it is ready; one `beside` it, of the round before, goes on meanwhile.
    """

    def __init__(
        self,
        config: RunConfig,
        workers: OnlineWorkers,
        progress: Progress,
        record: RoundRecord,
        spec: RoundSpec,
        training: RoundTraining | None = None,
        beside: RoundTraining | None = None,
    ) -> None:
        self.config, self.workers, self.progress = config, workers, progress
        self.record, self.spec, self.training, self.beside = record, spec, training, beside
        self.wanted = config.prompts.per_round  # pairs
        self._references_s = 0.0  # that the streamed references took after the last score

    def roll_out(self, prompts: Sequence[Prompt]) -> None:
        """Scored answers of all prompts but those set aside, and their pairs.

        Raises:
            ValueError: too many prompts are set aside, or none gives a pair.
            LostWorkers, RanksLost: what was done is kept.
        """
        # Of this attempt: prompts that an earlier one set aside are asked again.
        share = self.config.cluster.faults.max_failed_prompt_share
        self.prompts = prompts
        self.acceptance = Acceptance(self.spec, self.record.index, self.wanted, share, self.progress.say)
        self.scored = ShardedPhase(self.record, "scored", ScoredCompletion, *self._inputs)
        training = self.config.training  # where steps don't wait for all answers, neither does the first look
        self.selection = RoundSelection(
            self.record,
            self.spec.selector(),
            self.workers.scorers.neutralised,
            self._say_length,
            min(64, training.batch_size) if training.overlap_training else 0,
            *self._inputs,
        )
        if not self.scored.finished and self.config.cluster.runs_phases_in_turn:
            self._in_turn()
        elif not self.scored.finished:
            self._streamed()
        elif not self.selection.phase.finished:
            for prompt, answers in answered_prompts(prompts, self.scored):
                self.selection.take(prompt, answers)
        if not self.selection.phase.finished:
            self.selection.finish()
        self.record.discard("completions")  # which the scored ones hold, all of them

    def compute_references(self) -> None:
        """Each pair's reference logprobs, where the objective has a reference."""
        phase = self._reference_phase()
        if phase is None or phase.finished:
            return
        started = time.perf_counter()
        kept = phase.read()
        if len(kept) < self.record.manifest("pairs")["rows"]:  # else each was streamed
            known = {reference.group_id for reference in kept}
            pairs = RoundPairs(self.record.path)
            total = sum(
                n for name, n in zip(pairs.ids, pairs.answer_counts, strict=True) if name not in known
            )
            with self._phase("reference logprobs", int(total)) as bar, phase.kept():
                for reference in self.workers.reference_logprobs(pairs, bar.advance, known):
                    phase.keep([reference])
        phase.finish({"reference": self._references_s + time.perf_counter() - started})

    # -- all at once ---------------------------------------------------------------------------------------

    def _streamed(self) -> None:
        references = self._reference_phase() if self._streams_references else None
        if references is not None:
            # Answers that are lost are asked for again, and their reference logprobs too.
            references.after = self.scored
        if self.training is not None:
            self.training.begin()
        if self.beside is not None:
            self.beside.begin_beside()
        stream = Stream(
            self.workers, self.acceptance, self.scored, self.selection, references, self.training, self.beside
        )
        with ExitStack() as stack:
            stack.enter_context(seldom_collected())
            bar = stack.enter_context(self._phase("generate and score", self.wanted * self.config.sampling.n))
            stack.enter_context(self.workers.rollout.on_device())
            stack.enter_context(self.workers.scorers.on_device())
            if references is not None:
                stack.enter_context(self.workers.reference_on_device())
            stack.callback(self._forget)
            for kept in (self.scored, self.selection.phase, references):
                if kept is not None:
                    stack.enter_context(kept.kept())
            asked = stream.run(self.prompts, self.wanted, bar.advance)
        seconds = stream.seconds_added("completions", "scored", "reference")
        self._references_s = seconds.pop("reference")
        self._finish(seconds, asked)

    @property
    def _streams_references(self) -> bool:
        # KTO's mismatched answers are of other pairs, which are not there yet; a policy that is its own reference, and learns
        # meanwhile, has no time.
        objective, alone = self.config.objective, needs_reference(self.config)
        return objective.uses_reference and objective.kl != "mismatched" and (alone or self.beside is None)

    # -- one after the other -------------------------------------------------------------------------------

    def _in_turn(self) -> None:
        """First as many prompts as pairs are wanted, then as many as pairs are missing: the same prompts as in a stream."""
        completions = ShardedPhase(self.record, "completions", Completion, *self._inputs)
        seconds = dict.fromkeys(("completions", "scored"), 0.0)
        done = set()
        for prompt, answers in answered_prompts(self.prompts, self.scored):
            done.add(prompt.prompt_id)
            self.selection.take(prompt, answers)
        kept = {c.prompt_id for c in completions.read()} | done
        begun, asked = 0, max(self.wanted, asked_before(self.prompts, kept))
        lookup = PromptLookup(self.prompts)
        while True:
            asked = min(asked, len(self.prompts))
            left = [p for p in islice(self.prompts, begun, asked) if p.prompt_id not in kept]
            with _timed(seconds, "completions"):
                self._generate(completions, left)
            with _timed(seconds, "scored"):
                self._score(completions.read(), lookup, done)
            begun, asked = asked, asked + self.wanted - self.selection.pairs
            if asked <= begun or begun == len(self.prompts):
                break
        self._finish(seconds, begun)

    def _generate(self, phase: ShardedPhase[Completion], prompts: Sequence[Prompt]) -> None:
        with self._phase("generate", len(prompts) * self.config.sampling.n) as bar, phase.kept():
            for outcome in self.workers.answer(map(self.spec.request, prompts)):
                completions = self.acceptance.accept(outcome)
                if completions:
                    phase.keep(completions)
                    bar.advance(len(completions))

    def _score(self, completions: Sequence[Completion], lookup: PromptLookup, done: set[str]) -> None:
        """All that are there and not done, which they are then."""
        under_way: dict[str, Prompt] = {}

        def source() -> Iterator[tuple[Prompt, list[Completion]]]:
            for prompt_id, answers in groupby(completions, lambda c: c.prompt_id):
                if prompt_id not in done:
                    done.add(prompt_id)
                    prompt = under_way[prompt_id] = lookup.take(prompt_id)
                    yield prompt, self.acceptance.candidates(prompt, list(answers))

        total = len(completions) - len(done) * self.config.sampling.n
        with self._phase("score", total) as bar, self.workers.scorers.on_device(), ExitStack() as stack:
            stack.callback(self._forget)
            stack.enter_context(self.scored.kept())
            stack.enter_context(self.selection.phase.kept())
            for scored in self.workers.scorers.stream(source(), self.workers.scheduler):
                prompt = under_way.pop(scored.prompt_id)
                if self.acceptance.accept_scored(scored):
                    self.scored.keep(scored.answers)
                    self.selection.take(prompt, scored.answers, scored.neutralised)
                    bar.advance(len(scored.answers))

    def _say_length(self, prompts: int, correlation: float) -> None:
        """Before a step is taken, and at the end of the round's answers."""
        warning = length_warning(correlation, self.config.reward.length_slope is not None)
        words = f"{length_words(correlation)} ({prompts} prompts)"
        self.progress.say(f"round {self.record.index}: {words}{warning}")

    # -- shared --------------------------------------------------------------------------------------------

    def _finish(self, seconds: dict[str, float], asked: int) -> None:
        if set_aside := self.acceptance.set_aside:
            texts = {p.prompt_id: p.messages[-1]["content"] for p in self.prompts if p.prompt_id in set_aside}
            rows = [{"prompt_id": k, "error": e, "prompt": texts[k]} for k, e in set_aside.items()]
            write_lines(self.record.path / "set_aside.jsonl", rows)
        self.scored.finish(seconds, set_aside=set_aside, asked=asked)

    def _reference_phase(self) -> ShardedPhase[ReferenceLogprobs] | None:
        version = self.spec.reference_version
        if version is None:
            return None
        return ShardedPhase(self.record, "reference", ReferenceLogprobs, *self._inputs, version)

    @property
    def _inputs(self) -> tuple[int, str]:
        """What every phase here is made from: the round's prompts, whose files have a digest already."""
        return self.record.index, self.record.digest("prompts")

    def _forget(self) -> None:
        """After an error nothing of this round may come back in a later one."""
        self.workers.scheduler.forget()
        self.workers.scorers.forget()
        if self.config.objective.uses_reference:
            self.workers.references.forget()

    @contextmanager
    def _phase(self, name: str, total: int) -> Iterator[Bar]:
        with (
            self.workers.scheduler.phase(name),
            self.progress.phase(f"round {self.record.index} {name}", total, "completions") as bar,
        ):
            yield bar


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - started
