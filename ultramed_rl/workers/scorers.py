"""All that gives completions a reward: reward models, rules, services; and how their numbers become one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from operator import is_
from typing import Any

from ultramed_rl.actors.scorer import RewardWorker
from ultramed_rl.cluster.demands import reward_roles
from ultramed_rl.cluster.dispatch import WorkItem
from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.cluster.placement import Placement
from ultramed_rl.cluster.plan import Plan
from ultramed_rl.cluster.pool import Outcome, Pool, PoolRules
from ultramed_rl.cluster.scheduler import Scheduler, feed
from ultramed_rl.cluster.transport import RayScheduler, WorkerSet
from ultramed_rl.config.cluster import Cluster, Devices, Faults, ReplicaGroup, SamplingCluster, ScoringCluster
from ultramed_rl.config.models import resolve_precision
from ultramed_rl.config.rewards import Reward
from ultramed_rl.models.checks import check_reward_model
from ultramed_rl.models.reading import RewardReader
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, Prompt, ScoredCompletion
from ultramed_rl.rewards import combine_members, make_term, weighted_sum
from ultramed_rl.workers.pools import scorer_rules
from ultramed_rl.workers.terms import TermScorer

Advance = Callable[[int], None]
Load = tuple[Any, ...]  # a method of a worker, and its arguments


@dataclass
class _Pending:
    """A prompt's answers and what is known of their rewards by now: numbers by column."""

    completions: Sequence[Completion]
    columns: dict[str, list[float]] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Scored:
    """A prompt's scored answers in their order; none, and an error, where no scorer could be brought to it."""

    prompt_id: str
    answers: list[ScoredCompletion]
    error: str = ""


@dataclass(frozen=True)
class RewardModels:
    """The replicas of one reward model, the column that its numbers are told under, and their loads under way."""

    column: str
    group: WorkerGroup
    pool: Pool
    loads: Sequence[Any] = ()


class Scorers:
    """The scorers of one run. Terms are made at once, so that a missing secret shows before anything starts;
    the reward models' groups are added when they have started.

    Prompts are offered with their answers, outcomes of the scheduler are handed back, and `ready` has what is
    complete: every model's numbers and every term's.

    Raises:
        ValueError: a reward model that cannot be read, or a term that cannot be made.
    """

    def __init__(self, config: Reward, policy: ChatTokenizer) -> None:
        self.config = config
        self.policy = policy
        self.readers = [_reader(config, path, policy) for path in config.paths]
        self.terms = TermScorer({term.name: make_term(term, policy) for term in config.terms})
        self.models: list[RewardModels] = []
        self._pending: dict[str, _Pending] = {}
        self._ready: list[Scored] = []

    @property
    def groups(self) -> list[WorkerGroup]:
        """The reward models' actors."""
        return [model.group for model in self.models]

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """All reward models on their devices within."""
        with ExitStack() as stack:
            for group in self.groups:
                stack.enter_context(group.on_device())
            yield

    def neutralised(self, completions: Sequence[Completion]) -> int:
        """Of the policy's answers those that hold a control token of the policy or of a reward model: sampled before
        their end, or as letters. Reward models read the letters."""
        tokenizers = [self.policy, *(r.tokenizer for r in self.readers if not r.shared)]
        answers = [c.token_ids for c in completions]
        spelt = self.policy.spell_out(answers)
        # Few do: one look at the letters of all of them spares a look at each.
        text = "\n".join(c.text for c in completions)
        tokenizers = [tokenizer for tokenizer in tokenizers if tokenizer.controls.count(text)]
        if not tokenizers and all(map(is_, spelt, answers)):
            return 0
        return sum(
            new is not c.token_ids or any(tokenizer.controls.count(c.text) for tokenizer in tokenizers)
            for c, new in zip(completions, spelt, strict=True)
        )

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
        self._pending[prompt.prompt_id] = _Pending(completions)
        for model, reader in zip(self.models, self.readers, strict=True):
            group = reader.read(prompt, completions)
            tokens = group.packed_tokens
            model.pool.offer(WorkItem(prompt.prompt_id, tokens, float(tokens)), group)
        self.terms.offer(prompt, completions)

    def take(self, outcome: Outcome) -> None:
        """A reward model's outcome from the scheduler."""
        column = next(model.column for model in self.models if model.pool.role == outcome.role)
        self._note(outcome.key, {column: outcome.value}, outcome.error)

    def ready(self) -> list[Scored]:
        """Prompts that have become complete since the last time."""
        for prompt_id, columns in self.terms.results():
            self._note(prompt_id, columns, "")
        found, self._ready = self._ready, []
        return found

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
        found: dict[tuple[str, int], ScoredCompletion] = {}
        source = ((p, by_prompt[p.prompt_id]) for p in prompts if by_prompt[p.prompt_id])
        with self.on_device():
            for scored in self.stream(source, scheduler):
                if scored.error:
                    raise RuntimeError(f"{scored.prompt_id}: its answers could not be scored: {scored.error}")
                found |= {(scored.prompt_id, s.completion.sample): s for s in scored.answers}
                advance(len(scored.answers))
        return [found[completion.prompt_id, completion.sample] for completion in completions]

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

    def forget(self) -> None:
        """Drop all that is under way, for a caller that gave up; the scheduler forgets its part itself."""
        self._pending, self._ready = {}, []
        if self.terms.busy:
            self.terms.stop()
            self.terms = TermScorer(self.terms.terms)

    @property
    def timeout(self) -> float:
        """Seconds that the scheduler may be waited for: terms are no part of it."""
        return 0.05 if self.terms.busy else 1.0

    def _note(self, prompt_id: str, columns: dict[str, list[float]], error: str) -> None:
        pending = self._pending[prompt_id]
        pending.columns |= columns
        pending.error = pending.error or error
        if len(pending.columns) == len(self.models) + len(self.config.terms):
            del self._pending[prompt_id]
            answers = [] if pending.error else self._combine(pending)
            self._ready.append(Scored(prompt_id, answers, pending.error))

    def _combine(self, pending: _Pending) -> list[ScoredCompletion]:
        models = [pending.columns[model.column] for model in self.models]
        weights, values = [], []
        if models:
            weights.append(self.config.weight)
            ensemble = self.config.ensemble
            values.append(models[0] if ensemble is None else combine_members(ensemble, models))
        weights += [term.weight for term in self.config.terms]
        values += [pending.columns[term.name] for term in self.config.terms]
        # Columns in the order of models and terms, whoever came first.
        names = [*(model.column for model in self.models), *(term.name for term in self.config.terms)]
        shown = names if len(names) > 1 else []
        rewards = weighted_sum(weights, values)
        return [
            ScoredCompletion(completion, reward, {name: pending.columns[name][i] for name in shown})
            for i, (completion, reward) in enumerate(zip(pending.completions, rewards, strict=True))
        ]


def _reader(config: Reward, path: str | None, policy: ChatTokenizer) -> RewardReader:
    """How a reward model is read; one that the run trains itself has the policy's tokens."""
    if path is None:
        return RewardReader(policy)
    check_reward_model(path, trained=True, trust_remote_code=config.trust_remote_code)
    return RewardReader.of(path, policy, trust_remote_code=config.trust_remote_code)


def launch_scorers(
    scorers: Scorers,
    plan: Plan,
    placement: Placement,
    cluster: Cluster | SamplingCluster | ScoringCluster,
    paths: Sequence[str],
    scheduler: RayScheduler,
) -> None:
    """Start the reward models' groups on their slots; each one's `loads` are to be waited for."""
    config = scorers.config
    precision = resolve_precision(config.precision, cluster.device)
    roles = reward_roles(config)
    for number, (role, path) in enumerate(zip(roles, paths, strict=True), 1):
        replicas = Replicas(role, RewardWorker, cluster.reward, precision, config.micro_batch_tokens)
        load: Load = (RewardWorker.load, path, config.trust_remote_code)
        worker_set, loads = launch_replicas(plan, placement, cluster, replicas, _always(load))
        rules = replicas.rules(cluster.faults, "rollout")
        pool = scheduler.add(role, worker_set, rules)
        scorers.models.append(
            RewardModels("model" if len(roles) == 1 else f"model_{number}", worker_set.group, pool, loads)
        )


@dataclass(frozen=True)
class Replicas:
    """A forward-only role: who computes, how many, in which precision, how many tokens a pass."""

    role: str
    worker: type
    group: ReplicaGroup
    precision: str
    batch_tokens: int

    @property
    def shards(self) -> int:
        """Replicas that hold one model together; 1 where each has its own."""
        return self.group.replicas if self.group.shard else 1

    def rules(self, faults: Faults, upstream: str) -> PoolRules:
        """How the scheduler gives them work."""
        return scorer_rules(faults, self.batch_tokens, self.shards, upstream)


def launch_replicas(
    plan: Plan,
    placement: Placement,
    devices: Devices,
    replicas: Replicas,
    load: Callable[[], Load],
) -> tuple[WorkerSet, list[Any]]:
    """Replicas of a forward-only role, and their pending loads; sharded ones have joined each other.

    Args:
        load: a method and its arguments with which every actor begins, and a replacement too, whenever it comes.
    """
    members = next(r.members for r in plan.roles if r.role == replicas.role)
    arguments = (devices.device, replicas.precision, replicas.batch_tokens, replicas.shards)
    turns = plan.layout == "colocated"
    group = WorkerGroup.launch(
        replicas.worker,
        members,
        placement,
        lambda m: (m.rank, *arguments),
        takes_turns=turns,
        timeout_s=devices.faults.hang_s,
    )

    def prepare(actors: Sequence[Any]) -> list[Any]:
        pending = []
        if replicas.shards > 1:
            address = actors[0].rendezvous.remote()
            pending += [actor.join.remote(address) for actor in actors]
        method, *rest = load()
        return pending + [getattr(actor, method.__name__).remote(*rest) for actor in actors]

    worker_set = WorkerSet(group, prepare, lockstep=replicas.shards > 1)
    return worker_set, prepare(group.actors)


def _always(load: Load) -> Callable[[], Load]:
    return lambda: load
