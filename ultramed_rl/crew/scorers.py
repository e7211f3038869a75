"""All that gives completions a reward: reward models, rules, services; and how their numbers become one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ultramed_rl.actors.scorer import RewardWorker
from ultramed_rl.cluster.demands import reward_roles
from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.cluster.placement import Placement
from ultramed_rl.cluster.plan import Plan
from ultramed_rl.cluster.scoring import number_answers
from ultramed_rl.config.cluster import Cluster, Devices, ReplicaGroup
from ultramed_rl.config.models import Reward
from ultramed_rl.config.precision import resolve_precision
from ultramed_rl.config.reward_bench import ScoringCluster
from ultramed_rl.config.sampling import SamplingCluster
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.models.load import check_reward_model
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, Prompt, ScoredCompletion
from ultramed_rl.rewards import combine_members, make_term, score_terms, weighted_sum

Advance = Callable[[int], None]


class Scorers:
    """The scorers of one run. Terms are made at once, so that a missing secret shows before anything starts;
    the reward models' groups are given to `groups` when they have started.

    Raises:
        ValueError: a reward model that cannot be read, or a term that cannot be made.
    """

    def __init__(self, config: Reward, policy: ChatTokenizer) -> None:
        self.config = config
        self.tokenizers = [_own_tokenizer(config, path, policy) for path in config.paths]
        self.terms = {term.name: make_term(term, policy) for term in config.terms}
        self.groups: list[WorkerGroup] = []

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], advance: Advance
    ) -> list[ScoredCompletion]:
        """The reward of each completion, in order, with each scorer's own number where there are several.

        A non-finite reward is kept; selection quarantines it.
        """
        columns = self._models(prompts, completions, advance)
        weights, values = [], []
        if columns:
            weights.append(self.config.weight)
            values.append(self._combine(list(columns.values())))
        terms = score_terms(self.terms, prompts, completions)
        weights += [term.weight for term in self.config.terms]
        values += [terms[term.name] for term in self.config.terms]
        if not columns:
            advance(len(completions))
        columns |= terms
        rewards = weighted_sum(weights, values)
        shown = columns if len(columns) > 1 else {}
        return [
            ScoredCompletion(completion, reward, {name: numbers[i] for name, numbers in shown.items()})
            for i, (completion, reward) in enumerate(zip(completions, rewards, strict=True))
        ]

    def _combine(self, members: list[list[float]]) -> list[float]:
        ensemble = self.config.ensemble
        return members[0] if ensemble is None else combine_members(ensemble, members)

    def _models(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], advance: Advance
    ) -> dict[str, list[float]]:
        """Each reward model's numbers, one for each completion."""
        by_prompt: dict[str, list[int]] = {p.prompt_id: [] for p in prompts}
        for index, completion in enumerate(completions):
            by_prompt[completion.prompt_id].append(index)
        asked = [p for p in prompts if by_prompt[p.prompt_id]]
        columns: dict[str, list[float]] = {}
        for number, (group, tokenizer) in enumerate(zip(self.groups, self.tokenizers, strict=True), 1):
            answers = [
                reward_tokens(tokenizer, p, [completions[i] for i in by_prompt[p.prompt_id]]) for p in asked
            ]
            first = number == 1
            found = number_answers(group, "score", answers, (), advance if first else lambda _: None)
            rewards: dict[int, float] = {}
            for prompt, values in zip(asked, found, strict=True):
                rewards |= zip(by_prompt[prompt.prompt_id], values, strict=True)
            name = "model" if len(self.groups) == 1 else f"model_{number}"
            columns[name] = [rewards[i] for i in range(len(completions))]
        return columns


def reward_tokens(
    own: ChatTokenizer | None, prompt: Prompt, completions: Sequence[Completion]
) -> AnswerGroup:
    """What a reward model reads: the policy's own tokens, or the same chat in its `own` tokens."""
    if own is None:
        return AnswerGroup(prompt.token_ids, [c.token_ids for c in completions])
    texts = [own.encode_text(c.text) for c in completions]
    ends = [[own.end_id] if c.finish_reason != "length" or not c.text else [] for c in completions]
    return AnswerGroup(own.encode_chat(prompt.messages), [[*t, *e] for t, e in zip(texts, ends, strict=True)])


def _own_tokenizer(config: Reward, path: str | None, policy: ChatTokenizer) -> ChatTokenizer | None:
    """A reward model's tokenizer, or None where the policy's tokens are its own."""
    if path is None:
        return None
    check_reward_model(path, trained=True, trust_remote_code=config.trust_remote_code)
    own = ChatTokenizer(path, trust_remote_code=config.trust_remote_code)
    return None if own.same_as(policy) else own


def launch_scorers(
    scorers: Scorers,
    plan: Plan,
    placement: Placement,
    cluster: Cluster | SamplingCluster | ScoringCluster,
    paths: Sequence[str],
) -> list[Any]:
    """Start the reward models' groups on their slots; returns the pending loads."""
    config, pending = scorers.config, []
    precision = resolve_precision(config.precision, cluster.device)
    for role, path in zip(reward_roles(config), paths, strict=True):
        group = launch_replicas(
            plan, placement, role, RewardWorker, cluster, cluster.reward, precision, config.micro_batch_tokens
        )
        scorers.groups.append(group)
        pending += group.start("load", path, config.trust_remote_code)
    return pending


def launch_replicas(
    plan: Plan,
    placement: Placement,
    role: str,
    worker: type,
    devices: Devices,
    replicas: ReplicaGroup,
    precision: str,
    batch_tokens: int,
) -> WorkerGroup:
    """Replicas of a forward-only role; sharded ones have joined each other."""
    shards = replicas.replicas if replicas.shard else 1
    members = next(r.members for r in plan.roles if r.role == role)
    turns = plan.layout == "colocated"
    arguments = (devices.device, precision, batch_tokens, shards)
    group = WorkerGroup.launch(worker, members, placement, lambda m: (m.rank, *arguments), takes_turns=turns)
    if shards > 1:
        group.call("join", group.first("rendezvous"))
    return group
