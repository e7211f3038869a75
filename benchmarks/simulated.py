"""A cluster that isn't there: engines and scorers on a virtual clock, behind the transport that real ones are behind.

    Exchange --Turn--> SimulatedTransport --> a worker's queue --> work() --> (when it ends, its report) --> Event

A worker takes its turns one after the other, and goes on while the controller is busy: what a turn comes to is
worked out when it begins, and is told when the clock has reached its end. Used by `simulate.py` and by tests.
"""

from __future__ import annotations

import heapq
import pickle
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from ultramed_rl.actors.rollout import SamplingRequest
from ultramed_rl.actors.turns import Turn, TurnReport
from ultramed_rl.cluster.exchange import Event, Exchange
from ultramed_rl.config import RunConfig
from ultramed_rl.crew.online import Crew
from ultramed_rl.crew.pools import engine_rules, scorer_rules
from ultramed_rl.crew.references import ReferenceLane
from ultramed_rl.crew.scorers import RewardModels, Scorers
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.records import Completion

Answer = Callable[[SamplingRequest], list[Completion]]
Score = Callable[[str, AnswerGroup], list[float]]


class Worker(Protocol):
    """What an actor is: it takes turns."""

    def work(self, turn: Turn, now: float) -> tuple[float, TurnReport]:
        """When a turn that begins at `now` ends, and its report."""
        ...


# -- workers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EngineSpeed:
    """Continuous batching: a step of `active` sequences takes `fixed_s + active * sequence_s` seconds, and a prompt
    takes its tokens over `prefill_rate` before its first answer's first step."""

    fixed_s: float
    sequence_s: float
    prefill_rate: float
    max_num_seqs: int

    def step_s(self, active: int) -> float:
        return self.fixed_s + active * self.sequence_s


@dataclass
class _UnderWay:
    request: SamplingRequest
    completions: list[Completion]
    left: int


class SimulatedEngine:
    """Answers in the order in which requests come, as many side by side as there are sequences, like
    `RolloutWorker.work`: a turn ends when its seconds are over, or when nothing is left to do."""

    def __init__(
        self, speed: EngineSpeed, answer: Answer, refuse: Callable[[str], str] = lambda key: ""
    ) -> None:
        self.speed, self.answer, self.refuse = speed, answer, refuse
        self._steps = 0  # of this engine, ever: an answer of L tokens ends L steps after it began
        self._active: list[tuple[int, str]] = []  # a heap of (the step at which an answer ends, its prompt)
        self._waiting: deque[tuple[str, int]] = deque()  # prompt, sample
        self._under_way: dict[str, _UnderWay] = {}

    def work(self, turn: Turn, now: float) -> tuple[float, TurnReport]:
        report = TurnReport(started=now)
        for key in turn.cancelled:
            self._cancel(key)
        for key, request in turn.requests:
            if error := self.refuse(key):
                report.failed.append((key, error))
            else:
                self._begin(key, request)
        ended = self._step(now, now + turn.seconds, report.done)
        return ended, TurnReport(report.done, report.failed, now, ended)

    def _begin(self, key: str, request: SamplingRequest) -> None:
        completions = self.answer(request)
        self._under_way[key] = _UnderWay(request, completions, len(completions))
        self._waiting.extend((key, sample) for sample in range(len(completions)))

    def _cancel(self, key: str) -> None:
        if self._under_way.pop(key, None) is not None:
            self._waiting = deque(item for item in self._waiting if item[0] != key)
            self._active = [item for item in self._active if item[1] != key]
            heapq.heapify(self._active)

    def _step(self, now: float, until: float, done: list[tuple[str, Any]]) -> float:
        active, under_way = self._active, self._under_way
        while active or self._waiting:
            now += self._admit()
            step_s = self.speed.step_s(len(active))
            steps = active[0][0] - self._steps
            if now + steps * step_s >= until:  # looked at after each step
                steps = min(steps, max(1, -int((now - until) // step_s)))
            self._steps += steps
            now += steps * step_s
            while active and active[0][0] <= self._steps:
                key = heapq.heappop(active)[1]
                mine = under_way[key]
                mine.left -= 1
                if mine.left == 0:
                    del under_way[key]
                    done.append((key, mine.completions))
            if now >= until:
                break
        return now

    def _admit(self) -> float:
        """Fill the batch; the seconds that new prompts take."""
        seconds, waiting = 0.0, self._waiting
        while waiting and len(self._active) < self.speed.max_num_seqs:
            key, sample = waiting.popleft()
            mine = self._under_way[key]
            if sample == 0:
                seconds += len(mine.request.prompt.token_ids) / self.speed.prefill_rate
            length = max(1, len(mine.completions[sample].token_ids))
            heapq.heappush(self._active, (self._steps + length, key))
        return seconds


class SimulatedScorer:
    """A reward or reference replica: a turn's tokens over a rate, and some seconds for each turn."""

    def __init__(self, rate: float, turn_s: float, score: Score) -> None:
        self.rate, self.turn_s, self.score = rate, turn_s, score

    def work(self, turn: Turn, now: float) -> tuple[float, TurnReport]:
        tokens = sum(group.packed_tokens for _, group in turn.requests)
        ended = now + self.turn_s + tokens / self.rate
        return ended, TurnReport([(k, self.score(k, group)) for k, group in turn.requests], [], now, ended)


# -- the way to them ---------------------------------------------------------------------------------------


MOST_EVENTS = 64  # as RayTransport's


@dataclass
class _Place:
    """Where a worker is: its life's number, so that what an ended one had to tell is dropped."""

    worker: Worker | None
    life: int = 0
    busy: bool = False
    turns: deque[Turn] = field(default_factory=deque)


class SimulatedTransport:
    """An `EventTransport` on a virtual clock.

    Args:
        workers: makes a role's worker of a rank.
        timer: seconds of real time; the controller's own, between its calls, are then added to the clock, while
            workers go on. None: the controller takes no time.
        fate: what befalls a worker (role, rank) that begins a turn: "" nothing, "dies" or "hangs".
        start_s: how long a worker (role, rank) takes to be there again.
    """

    def __init__(
        self,
        workers: Mapping[str, Callable[[int], Worker]],
        timer: Callable[[], float] | None = None,
        fate: Callable[[str, int, Turn], str] = lambda role, rank, turn: "",
        start_s: Callable[[str, int], float] = lambda role, rank: 1.0,
    ) -> None:
        self.workers, self.timer, self.fate, self.start_s = workers, timer, fate, start_s
        self.time = 0.0
        self.controller_s = 0.0
        self.turns = 0
        self._places: dict[tuple[str, int], _Place] = {}
        self._coming: list[tuple[float, int, tuple[str, int], int, Any]] = []
        self._heard: deque[tuple[tuple[str, int], int, Any]] = deque()  # and not told yet
        self._number = 0
        self._left = 0.0 if timer is None else timer()

    def now(self) -> float:
        """The virtual clock."""
        self._enter()
        self._leave()
        return self.time

    def send(self, role: str, rank: int, turn: Turn) -> None:
        """Give a worker a turn. That it is serialised is the controller's work."""
        pickle.dumps(turn, protocol=5)
        self._enter()
        place = self._place(role, rank)
        assert place.worker is not None, f"{role} {rank} is not there, and was given a turn"
        place.turns.append(turn)
        self._go_on((role, rank), place, self.time)
        self._leave()

    def start(self, role: str, rank: int) -> None:
        """Begin to replace a worker."""
        self._enter()
        place = self._place(role, rank)
        self._end(place)
        self._tell(self.time + self.start_s(role, rank), (role, rank), place.life, "started")
        self._leave()

    def end(self, role: str, rank: int) -> None:
        """End a worker."""
        self._enter()
        self._end(self._place(role, rank))
        self._leave()

    def events(self, timeout: float, unread: Collection[str] = ()) -> list[Event]:
        """What has happened, waiting for the first of it up to `timeout` virtual seconds; some of it, and nothing
        of roles that are `unread`."""
        self._enter()
        found = self._take(unread)
        if not found and timeout > 0:
            latest = self.time + timeout
            while not found and self._coming and self._coming[0][0] <= latest:
                self.time = max(self.time, self._coming[0][0])
                found = self._take(unread)
            if not found:
                self.time = latest
        self._leave()
        # To read a report is the controller's work.
        return [
            Event(role, rank, report=pickle.loads(told))
            if isinstance(told, bytes)
            else Event(role, rank, started=told == "started", error="" if told == "started" else told)
            for (role, rank), told in found
        ]

    # -- inside --------------------------------------------------------------------------------------------

    def _enter(self) -> None:
        """Here the controller's time ends, and what follows is the simulation's own, until `_leave`."""
        if self.timer is not None:
            spent = self.timer() - self._left
            self.controller_s += spent
            self.time += spent

    def _leave(self) -> None:
        if self.timer is not None:
            self._left = self.timer()

    def _place(self, role: str, rank: int) -> _Place:
        key = (role, rank)
        if key not in self._places:
            self._places[key] = _Place(self.workers[role](rank))
        return self._places[key]

    def _take(self, unread: Collection[str]) -> list[tuple[tuple[str, int], Any]]:
        """The oldest of what can be heard now, as many as a transport gives at once."""
        self._hear()
        found, left = [], deque[tuple[tuple[str, int], int, Any]]()
        while self._heard and len(found) < MOST_EVENTS:
            who, life, told = self._heard.popleft()
            if who[0] in unread:
                left.append((who, life, told))
            elif life == self._places[who].life or not isinstance(told, bytes):
                found.append((who, told))
        self._heard.extendleft(reversed(left))
        return found

    def _hear(self) -> None:
        """What has happened by now; whoever ended a turn begins the next one at that time."""
        while self._coming and self._coming[0][0] <= self.time:
            at, _, who, life, told = heapq.heappop(self._coming)
            place = self._places[who]
            if life != place.life:
                continue
            if told == "started":
                place.worker = self.workers[who[0]](who[1])
            elif isinstance(told, bytes):
                place.busy = False
                self._go_on(who, place, at)
            else:
                self._end(place)
            self._heard.append((who, life, told))

    def _go_on(self, who: tuple[str, int], place: _Place, now: float) -> None:
        if place.busy or not place.turns:
            return
        assert place.worker is not None
        turn = place.turns.popleft()
        place.busy = True
        self.turns += 1
        fate = self.fate(*who, turn)
        if fate == "hangs":
            return
        ended, report = place.worker.work(turn, now)
        if fate == "dies":
            self._tell(ended, who, place.life, "Killed: by its fate")
        else:
            self._tell(ended, who, place.life, pickle.dumps(report, protocol=5))

    def _tell(self, at: float, who: tuple[str, int], life: int, told: Any) -> None:
        self._number += 1
        heapq.heappush(self._coming, (at, self._number, who, life, told))

    def _end(self, place: _Place) -> None:
        place.life += 1
        place.worker, place.busy = None, False
        place.turns.clear()


# -- the crew ----------------------------------------------------------------------------------------------


class _Awake:
    """A group of actors, as far as the gathering of records knows it."""

    @contextmanager
    def awake(self) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class Sizes:
    """How many workers each role has."""

    engines: int
    rewards: int
    references: int


class SimulatedCrew(Crew):
    """A crew whose actors are simulated; all between the controller and the transport is the real one.

    Its config has one reward model, which the run trains itself: nothing is read from disk.
    """

    def __init__(self, config: RunConfig, sizes: Sizes, transport: SimulatedTransport) -> None:
        self.config, self.cluster, self.model = config, config.cluster, config.policy
        self.vocab_size = 2**31
        faults, weighs = config.cluster.faults, config.reference.micro_batch_tokens
        self.exchange: Any = Exchange(transport)
        self.rollout: Any = _Awake()
        self.engines = self.exchange.open(
            "rollout", _ranks(sizes.engines), engine_rules(faults, config.cluster.rollout.max_num_seqs)
        )
        tokenizer: Any = None  # the reward model reads the policy's tokens
        self.scorers = Scorers(config.reward, tokenizer)
        rules = scorer_rules(faults, config.reward.micro_batch_tokens, 1, "rollout")
        pool = self.exchange.open("reward", _ranks(sizes.rewards), rules)
        group: Any = _Awake()
        self.scorers.models.append(RewardModels("model", group, pool))
        rules = scorer_rules(faults, weighs, 1, "reward")
        self.references = ReferenceLane(
            self.exchange.open("reference", _ranks(sizes.references), rules),
            self.vocab_size,
            config.policy.max_length,
        )

    @contextmanager
    def reference_awake(self) -> Iterator[None]:
        yield


def _ranks(count: int) -> list[int]:
    return list(range(count))


def clock(kind: str) -> Callable[[], float]:
    """`wall`: seconds by the wall, with waits for the disk. `cpu`: of the calling thread, where others use the machine."""
    return {"wall": time.perf_counter, "cpu": time.thread_time}[kind]


def draw(values: Sequence[int], share: float) -> float:
    """The quantile at `share` of [0, 1] between equally spaced ones."""
    place = share * (len(values) - 1)
    low = min(int(place), len(values) - 2)
    return values[low] + (place - low) * (values[low + 1] - values[low])
