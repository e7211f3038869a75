"""Judges on engines of the run: requests of scorers' threads in, replies out, in the loop that runs the engines.

JudgeClient.requests --pump--> pool of engines --take(outcome)--> who awaits the reply
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any, Literal

from ultramed_rl.actors.rollout import RolloutWorker
from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.cluster.plan import numbered_roles
from ultramed_rl.cluster.transport import WorkerSet
from ultramed_rl.config.judge_models import JudgeEngine
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import ChatRequest, Prompt, SamplingRequest, WeighedCompletion, WeighedRequest
from ultramed_rl.rewards.judge_client import (
    GIVEN_UP,
    EngineRequests,
    JudgeClient,
    JudgeReply,
    NoReply,
    Turn,
    settle,
)
from ultramed_rl.scheduling.dispatch import WorkItem
from ultramed_rl.scheduling.pool import Outcome, Pool, PoolRules
from ultramed_rl.scheduling.scheduler import Scheduler
from ultramed_rl.token_ids import TokenIds
from ultramed_rl.workers.deployment import WAVES, Deployment

_KEY = "judge:"  # begins the keys of requests to judges, and no prompt's id
_WAIT_S = 0.05  # that a turn may wait for the engines, while whoever asks may have more to ask


class EngineJudge:
    """Serves judges' clients by one pool of engines, which may be at other work too."""

    def __init__(
        self,
        engine: JudgeEngine | Literal["policy"],
        group: WorkerGroup,
        pool: Pool,
        tokenizer: ChatTokenizer,
        max_length: int,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`engine` is the config's, by which clients name it; `check` raises where the engines hold other weights than they
        should."""
        self.engine, self.group, self.pool, self.tokenizer = engine, group, pool, tokenizer
        self.max_length, self.check = max_length, check
        self.clients: Sequence[JudgeClient] = ()
        self._asked: dict[str, Future[JudgeReply]] = {}
        self._numbers = count()

    def pump(self) -> None:
        """Give the engines what waits for them, as they have room."""
        for client in self.clients:
            waiting = client.requests.take()
            while self.pool.has_capacity and (one := next(waiting, None)) is not None:
                self._offer(client, *one)

    def take(self, outcome: Outcome) -> bool:
        """Whether an outcome of the scheduler was a judge's here; who asked has it then."""
        if outcome.role != self.pool.role or outcome.key not in self._asked:
            return False
        self.check()
        future = self._asked.pop(outcome.key)
        if outcome.error:
            settle(future, NoReply(f"engine: {outcome.error}"))
            return True
        (completion,) = outcome.value
        choices = completion.choices if isinstance(completion, WeighedCompletion) else ()
        settle(future, JudgeReply(completion.answer, choices))
        return True

    def forget(self) -> None:
        """Who still awaits a reply, or would ask on, gets none; the scheduler forgets its part itself."""
        given_up = [*self._asked.values()]
        for client in self.clients:
            client.requests.closed = True
            given_up += [future for _, future in client.requests.take()]
            client.requests = EngineRequests()
        for future in given_up:
            settle(future, NoReply(GIVEN_UP))
        self._asked.clear()

    def _offer(self, client: JudgeClient, request: ChatRequest, future: Future[JudgeReply]) -> None:
        try:
            tokens = TokenIds(self.tokenizer.encode_chat(request.messages))
        except ValueError as error:
            settle(future, NoReply(f"refused: {error}"))
            return
        if len(tokens) + request.max_tokens > self.max_length:
            settle(
                future,
                NoReply(
                    f"too long: {len(tokens)} tokens and max_tokens={request.max_tokens} of {self.max_length}"
                ),
            )
            return
        key = f"{_KEY}{next(self._numbers)}"
        self._asked[key] = future
        kind = WeighedRequest if client.weighs else SamplingRequest
        how = (1, request.temperature, request.top_p, request.max_tokens, request.seed or 0)
        load = float(len(tokens) + request.max_tokens)
        self.pool.offer(WorkItem(key, 1, load), kind(Prompt(key, request.messages, tokens), *how))


@contextmanager
def served(judges: Sequence[EngineJudge], client: JudgeClient, scheduler: Scheduler) -> Iterator[Turn]:
    """Turns of the engines that a client asks, for the thread that asks it; nothing else is under way within.

    Raises:
        LostWorkers: in a turn, too few engines are left.
    """
    (judge,) = (judge for judge in judges if judge.engine == client.engine)
    others, judge.clients = judge.clients, [client]

    def turn() -> None:
        judge.pump()
        for outcome in scheduler.outcomes(_WAIT_S):
            judge.take(outcome)

    try:
        with judge.group.on_device():
            yield turn
    finally:
        if judge.pool.unfinished:
            scheduler.forget()
            judge.forget()
        judge.clients = others


def launch_engine_judges(deployment: Deployment, engines: Iterable[JudgeEngine]) -> list[EngineJudge]:
    """Start the engines of judges, one after the other: each measures what memory is free."""
    engines = list(engines)
    roles = numbered_roles("judge_engine", len(engines))
    return [_launch(deployment, role, engine) for role, engine in zip(roles, engines, strict=True)]


def _launch(deployment: Deployment, role: str, engine: JudgeEngine) -> EngineJudge:
    cluster = deployment.cluster
    tokenizer = ChatTokenizer(
        engine.path,
        trust_remote_code=engine.trust_remote_code,
        chat_template=engine.chat_template,
        learns=False,
        thinking=engine.thinking,
    )
    arguments = deployment.engine_arguments(engine.path, engine, engine, engine.precision)
    arguments = replace(arguments, thinking=tokenizer.thinking)
    group = deployment.launch(role, RolloutWorker, lambda member: (member.rank,))

    def prepare(actors: Sequence[Any]) -> list[Any]:
        return [actor.start.remote(arguments, tokenizer.end_id, 0) for actor in actors]

    rules = PoolRules(cluster.faults, WAVES * engine.max_num_seqs, lasting=True, upstream=("rollout",))
    pool = deployment.scheduler.add(role, WorkerSet(group, prepare), rules)
    deployment.scheduler.wait_for_start(pool, prepare(group.actors), cluster.faults.start_s)
    if deployment.turns:
        group.call_living(RolloutWorker.offload)
    return EngineJudge(engine, group, pool, tokenizer, engine.max_length)
