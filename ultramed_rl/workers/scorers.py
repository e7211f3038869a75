"""All that gives completions a reward: reward models, rules, services; and how their numbers become one.

                        +--> each reward model's pool --> take(outcome) --+
offer(prompt, answers) -+                                                 +--> ready(): what has all its numbers
                        +--> the terms' thread ---------------------------+
                                 ^ what judges on engines are asked goes out with `ready` and comes back with `take`
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.config.judges import BenchmarkJudge, JudgeChoice, ModelJudge
from ultramed_rl.config.rewards import RAW, Reward
from ultramed_rl.models.checks import check_reward_model
from ultramed_rl.models.reading import RewardReader
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, JudgedAnswer, Prompt, ScoredCompletion
from ultramed_rl.rewards import Columns, Term, TermScorer, combine_members, make_term, weighted_sum
from ultramed_rl.rewards.judge_client import JudgeClient
from ultramed_rl.scheduling.dispatch import WorkItem
from ultramed_rl.scheduling.pool import Outcome
from ultramed_rl.scheduling.scheduler import Scheduler, feed
from ultramed_rl.workers.deployment import Replicas
from ultramed_rl.workers.judges import EngineJudge

logger = logging.getLogger(__name__)
Advance = Callable[[int], None]


@dataclass
class _Pending:
    """A prompt's answers and what is known of their rewards by now."""

    completions: Sequence[Completion]
    neutralised: int
    columns: Columns = field(default_factory=dict)
    details: list[dict[str, float]] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class Scored:
    """A prompt's scored answers in their order, and why it is to be set aside: no reward model could be brought to it, so that
    there are none; or a term has no numbers for them.

    Attributes:
        neutralised: see `Scorers.neutralised`.
    """

    prompt_id: str
    answers: list[ScoredCompletion]
    neutralised: int
    error: str = ""


class AnswerScorers(ABC):
    """Several scorers over the same answers. Terms are made before, so that a missing secret shows before anything starts;
    the reward models are added when they have started.

    Prompts are offered with their answers, outcomes of the scheduler are handed back, and `ready` has what is
    complete: every model's numbers and every term's.
    """

    def __init__(
        self, policy: ChatTokenizer, readers: Mapping[str, RewardReader], terms: Mapping[str, Term]
    ) -> None:
        """`readers` of the reward models and `terms`, by their columns."""
        self.policy = policy
        self.readers = list(readers.values())
        self.terms = TermScorer(terms)
        self.models: list[Replicas] = []
        self.engine_judges: list[EngineJudge] = []
        # Columns in the order of models and terms, whoever comes first.
        self._model_columns = list(readers)
        self._columns = [*readers, *terms]
        self._pending: dict[str, _Pending] = {}
        self._ready: list[Scored] = []

    @property
    @abstractmethod
    def shown_columns(self) -> Sequence[str]:
        """The scorers whose numbers are kept beside the reward."""

    @abstractmethod
    def rewards_of(self, columns: Columns) -> list[float]:
        """The rewards of a prompt's answers from each scorer's numbers of them."""

    @property
    def groups(self) -> list[WorkerGroup]:
        """The actors of reward models and judges."""
        return [model.group for model in self.models] + [judge.group for judge in self.engine_judges]

    def judge_on(self, engines: Sequence[EngineJudge]) -> None:
        """Let terms whose judge is on engines ask these, of which there may be others' too."""
        clients = [getattr(term, "judge", None) for term in self.terms.terms.values()]
        for judge in engines:
            own = [c for c in clients if isinstance(c, JudgeClient) and c.engine == judge.engine]
            if own:
                judge.clients = own
                self.engine_judges.append(judge)

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """All reward models and judges on their devices within."""
        with ExitStack() as stack:
            for group in self.groups:
                stack.enter_context(group.on_device())
            yield

    def neutralised(
        self, completions: Sequence[Completion], spelt: Sequence[Sequence[int]] | None = None
    ) -> int:
        """How many answers of the policy's own hold a control token of the policy or of a reward model: sampled before
        their end, or as letters. Reward models read the letters: `spelt`, where they have read these answers."""
        tokenizers = [self.policy, *(r.tokenizer for r in self.readers if not r.shared)]
        spelt = self.policy.spell_out([c.token_ids for c in completions]) if spelt is None else spelt
        # Few hold any: one look at the letters of all of them spares a look at each.
        text = "\n".join([c.text for c in completions])
        tokenizers = [tokenizer for tokenizer in tokenizers if tokenizer.controls.count(text)]
        return sum(
            new is not c.token_ids or any(tokenizer.controls.count(c.text) for tokenizer in tokenizers)
            for c, new in zip(completions, spelt, strict=True)
            if c.finish_reason != "reference"
        )

    # -- prompt by prompt ----------------------------------------------------------------------------------

    @property
    def has_capacity(self) -> bool:
        """Whether more prompts may be offered; if not, those upstream are to wait."""
        return self.terms.has_capacity and all(model.pool.has_capacity for model in self.models)

    @property
    def unfinished(self) -> int:
        """Prompts offered that `ready` has not given."""
        return len(self._pending) + len(self._ready)

    def offer(self, prompt: Prompt, completions: Sequence[Completion]) -> None:
        """Answers to be scored."""
        assert prompt.prompt_id not in self._pending, f"{prompt.prompt_id} is under way"
        spelt = None
        for model, reader in zip(self.models, self.readers, strict=True):
            group = reader.read(prompt, completions)
            spelt = group.answers if reader.takes_tokens(completions) else spelt
            tokens = group.packed_tokens
            model.pool.offer(WorkItem(prompt.prompt_id, tokens, float(tokens)), group)
        self.terms.offer(prompt, completions)
        # Counted now, while the processor has the answers in its cache.
        self._pending[prompt.prompt_id] = _Pending(completions, self.neutralised(completions, spelt))

    def serves(self, outcome: Outcome) -> bool:
        """Whether an outcome of the scheduler is a judge's reply, which its term has then."""
        return any(judge.take(outcome) for judge in self.engine_judges)

    def take(self, outcome: Outcome) -> None:
        """A reward model's or a judge's outcome from the scheduler."""
        if self.serves(outcome):
            return
        number = next(k for k, model in enumerate(self.models) if model.pool.role == outcome.role)
        self._note(outcome.key, {self._model_columns[number]: outcome.value}, outcome.error)

    def ready(self) -> list[Scored]:
        """Prompts that have become complete since the last time. Judges' engines get what terms ask them meanwhile."""
        for judge in self.engine_judges:
            judge.pump()
        for prompt_id, columns, details, error in self.terms.results():
            if prompt_id in self._pending:
                self._pending[prompt_id].details = details
            self._note(prompt_id, columns, error)
        ready, self._ready = self._ready, []
        return ready

    def forget(self) -> None:
        """Drop all that is under way, for a caller that gave up; the scheduler forgets its part itself."""
        self._pending, self._ready = {}, []
        if self.terms.busy:
            self.terms.stop()
            self.terms = TermScorer(self.terms.terms)
        for judge in self.engine_judges:
            judge.forget()

    @property
    def timeout(self) -> float:
        """Seconds that the scheduler may be waited for: terms are no part of it."""
        return 0.05 if self.terms.busy else 1.0

    # -- all at once ---------------------------------------------------------------------------------------

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        advance: Advance,
        scheduler: Scheduler,
    ) -> list[ScoredCompletion]:
        """The reward of each completion, in order, with each scorer's own number where there are several.

        A non-finite reward is kept; selection quarantines it.

        Raises:
            RuntimeError: answers that no scorer could be brought to.
        """
        by_prompt: dict[str, list[Completion]] = {p.prompt_id: [] for p in prompts}
        for completion in completions:
            by_prompt[completion.prompt_id].append(completion)
        answers: dict[tuple[str, int], ScoredCompletion] = {}
        source = ((p, by_prompt[p.prompt_id]) for p in prompts if by_prompt[p.prompt_id])
        with self.on_device(), ExitStack() as gave_up:
            gave_up.callback(scheduler.forget)
            gave_up.callback(self.forget)
            for scored in self.stream(source, scheduler):
                if scored.error and not scored.answers:
                    raise RuntimeError(f"{scored.prompt_id}: its answers could not be scored: {scored.error}")
                if scored.error:
                    logger.warning("prompt %s has no reward: %s", scored.prompt_id, scored.error)
                answers |= {(scored.prompt_id, s.completion.sample): s for s in scored.answers}
                advance(len(scored.answers))
            gave_up.pop_all()
        return [answers[completion.prompt_id, completion.sample] for completion in completions]

    def stream(
        self, source: Iterator[tuple[Prompt, Sequence[Completion]]], scheduler: Scheduler
    ) -> Iterator[Scored]:
        """Each prompt's scored answers as soon as they are complete; prompts are taken as there is room."""
        more = True
        while more or self.unfinished:
            more = more and feed(source, lambda: self.has_capacity, lambda item: self.offer(*item))
            yield from self.ready()
            if self.unfinished:
                for outcome in scheduler.outcomes(self.timeout):
                    self.take(outcome)

    # -- inside --------------------------------------------------------------------------------------------

    def _note(self, prompt_id: str, columns: Columns, error: str) -> None:
        pending = self._pending[prompt_id]
        pending.columns |= columns
        pending.error = pending.error or error
        if len(pending.columns) == len(self._columns):
            del self._pending[prompt_id]
            answers = [] if None in pending.columns.values() else self._combine(pending)
            self._ready.append(Scored(prompt_id, answers, pending.neutralised, pending.error))

    def _combine(self, pending: _Pending) -> list[ScoredCompletion]:
        rewards, shown = self.rewards_of(pending.columns), self.shown_columns
        details = pending.details or [{}] * len(rewards)
        return [
            ScoredCompletion(
                completion, reward, {name: pending.columns[name][i] for name in shown}, details[i]
            )
            for i, (completion, reward) in enumerate(zip(pending.completions, rewards, strict=True))
        ]


class Scorers(AnswerScorers):
    """What gives a run's answers their reward.

    Raises:
        ValueError: a reward model that cannot be read, or a term that cannot be made.
    """

    def __init__(self, config: Reward, policy: ChatTokenizer) -> None:
        self.config, count = config, len(config.paths)
        columns = ["model"] if count == 1 else [f"model_{k}" for k in range(1, count + 1)]
        readers = [_reader(path, policy, config) for path in config.paths]
        terms = {term.name: make_term(term, policy) for term in config.terms}
        super().__init__(policy, dict(zip(columns, readers, strict=True)), terms)
        # Reward per token that is taken off. One that is to be fitted isn't known yet.
        self.length_slope = 0.0 if config.length_slope in (None, "fit") else float(config.length_slope)

    @property
    def shown_columns(self) -> Sequence[str]:
        """What is kept beside the reward: nothing where it is one scorer's."""
        return self._columns if len(self._columns) > 1 else ()

    def rewards_of(self, columns: Columns) -> list[float]:
        """The models' reward and each term's, summed by weight."""
        models = [columns[name] for name in self._model_columns]
        weights = [term.weight for term in self.config.terms]
        values = [columns[term.name] for term in self.config.terms]
        if models:
            ensemble = self.config.ensemble
            weights.insert(0, self.config.weight)
            values.insert(0, models[0] if ensemble is None else combine_members(ensemble, models))
        return weighted_sum(weights, values)

    def _combine(self, pending: _Pending) -> list[ScoredCompletion]:
        scored = super()._combine(pending)
        if self.config.length_slope is None:
            return scored
        lengths = [self.length_slope * answer.completion.answer_tokens for answer in scored]
        return [
            replace(answer, reward=answer.reward - length, terms={**answer.terms, RAW: answer.reward})
            for answer, length in zip(scored, lengths, strict=True)
        ]


class Judges(AnswerScorers):
    """Who judges held-out answers, beside benchmarks. They give no reward.

    Raises:
        ValueError: a model that cannot be read, or a judge that cannot be made.
    """

    def __init__(self, judges: Sequence[JudgeChoice], policy: ChatTokenizer) -> None:
        readers = {j.name: _reader(j.path, policy, j) for j in judges if isinstance(j, ModelJudge)}
        others = [j for j in judges if not isinstance(j, ModelJudge | BenchmarkJudge)]
        super().__init__(policy, readers, {judge.name: make_term(judge, policy) for judge in others})

    @property
    def shown_columns(self) -> Sequence[str]:
        """Every judge."""
        return self._columns

    def rewards_of(self, columns: Columns) -> list[float]:
        """None."""
        return [math.nan] * max(map(len, columns.values()))

    def judge(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        advance: Advance,
        scheduler: Scheduler,
    ) -> list[JudgedAnswer]:
        """What each judge says of each completion, in order."""
        scored = self.score(prompts, completions, advance, scheduler)
        return [JudgedAnswer(s.completion.prompt_id, s.completion.sample, s.terms) for s in scored]


def _reader(path: str | None, policy: ChatTokenizer, config: Reward | ModelJudge) -> RewardReader:
    """How a reward model is read; one that the run trains itself has the policy's tokens."""
    trust, thoughts = config.trust_remote_code, config.reads == "all"
    if path is None:
        return RewardReader(policy, thoughts=thoughts)
    check_reward_model(path, trained=True, trust_remote_code=trust)
    return RewardReader.of(path, policy, trust_remote_code=trust, thoughts=thoughts)
