"""Pools over a transport whose workers die, hang, start late and refuse, on a clock that the test turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.simulated.ray import Call, SimulatedRay, Takes
from tests.simulated.run import simulated
from ultramed_rl.actors.work import WorkBatch, WorkResult
from ultramed_rl.cluster.group import WorkerGroup
from ultramed_rl.cluster.transport import RayScheduler, WorkerSet
from ultramed_rl.config.cluster import Faults
from ultramed_rl.scheduling.dispatch import WorkItem
from ultramed_rl.scheduling.pool import LostWorkers, Outcome, Pool, PoolRules

HANG_S, START_S = 30.0, 60.0


class Echo:
    """Answers each request in a second with the worker's rank and what it was given; `refused` keys fail."""

    role = "echo"

    def __init__(self, rank: int, refused: frozenset[str]) -> None:
        self.rank, self.refused = rank, refused

    def load(self, seconds: float) -> Takes:
        return Takes(seconds)

    def work(self, turn: WorkBatch) -> Takes:
        done = [(key, (self.rank, payload)) for key, payload in turn.requests if key not in self.refused]
        failed = [(key, f"{key} is refused") for key, _ in turn.requests if key in self.refused]
        return Takes(max(0.1, len(turn.requests)), WorkResult(done, failed))


def pool_rules(restarts: int = 100, fewer: bool = True, lasting: bool = False) -> PoolRules:
    faults = Faults(restarts=restarts, hang_s=HANG_S, start_s=START_S, allow_fewer_workers=fewer, attempts=3)
    return PoolRules(faults, room=4, lasting=lasting)


@dataclass
class Bench:
    """An scheduler with one pool, over a simulated Ray."""

    ray: SimulatedRay
    scheduler: RayScheduler
    pool: Pool

    def offer(self, *keys: str) -> None:
        for key in keys:
            self.pool.offer(WorkItem(key, 1, 1.0), f"payload of {key}")

    def finish(self) -> dict[str, Outcome]:
        """All outcomes by key; a key that ends twice is an error."""
        self.pool.close()
        found: dict[str, Outcome] = {}
        for _ in range(10_000):
            if not self.pool.unfinished:
                return found
            for outcome in self.scheduler.outcomes():
                assert outcome.key not in found, f"{outcome.key} ended twice"
                found[outcome.key] = outcome
        raise AssertionError(f"stuck with {self.pool.unfinished} keys at {self.ray.time} s")


_open = ExitStack()


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Real Ray is back in its place after each test."""
    yield
    _open.close()


def bench(
    workers: int,
    rules: PoolRules,
    fate: Callable[[str, int, WorkBatch], str] = lambda role, rank, turn: "",
    start_s: Callable[[str, int], float] = lambda role, rank: 1.0,
    refused: frozenset[str] = frozenset(),
    lockstep: bool = False,
    sharing: int = 1,
) -> Bench:
    def befall(call: Call) -> str:
        return fate(call.role, call.rank, call.arguments[0]) if call.method == "work" else ""

    ray = SimulatedRay({Echo: Echo}, befall)
    _open.enter_context(simulated(ray))
    spawn = lambda rank: ray.remote(Echo).remote(rank, refused)
    group = WorkerGroup("echo", spawn, workers, takes_turns=False)
    load = lambda actor: actor.load.remote(start_s("echo", actor._actor.rank))
    scheduler = RayScheduler()
    worker_set = WorkerSet(group, lambda actors: [load(actor) for actor in actors], lockstep, sharing)
    return Bench(ray, scheduler, scheduler.add("echo", worker_set, rules))


@pytest.mark.parametrize("sharing", [1, 2, 4])
def test_workers_that_share_passes_get_the_same_and_count_once(sharing: int) -> None:
    asked = bench(4, pool_rules(), lockstep=True, sharing=sharing)
    turns: dict[int, list[str]] = {rank: [] for rank in range(4)}
    echo = Echo.work

    def work(self: Echo, turn: WorkBatch) -> Takes:
        turns[self.rank] += [key for key, _ in turn.requests]
        return echo(self, turn)

    with mock.patch.object(Echo, "work", work):
        asked.offer(*keys(9))
        found = asked.finish()
    assert set(found) == set(keys(9)) and not any(outcome.error for outcome in found.values())
    groups = [turns[rank] for rank in range(0, 4, sharing)]
    assert all(turns[rank] == turns[rank - rank % sharing] for rank in range(4))
    assert sorted(key for group in groups for key in group) == keys(9)


def keys(count: int) -> list[str]:
    return [f"k{number}" for number in range(count)]


def once(*fates: str) -> Callable[[str, int, WorkBatch], str]:
    """These fates for the first turns, in order of their beginnings; nothing befalls the later ones."""
    left = list(fates)
    return lambda role, rank, turn: left.pop(0) if left else ""


@settings(deadline=None, max_examples=150)
@given(
    workers=st.integers(1, 5),
    count=st.integers(0, 40),
    fates=st.lists(st.sampled_from(["", "", "dies", "hangs"]), max_size=12),
    late=st.lists(st.sampled_from([0.5, 5.0, START_S + 20.0]), max_size=12),
    refused=st.frozensets(st.sampled_from(keys(40)), max_size=3),
    lasting=st.booleans(),
    full=st.booleans(),
)
@example(3, 4, ["", "", "", "hangs", "hangs"], [0.5], frozenset({"k0", "k1"}), True, False)
def test_whatever_befalls_workers_each_key_ends_once(
    workers: int,
    count: int,
    fates: list[str],
    late: list[float],
    refused: frozenset[str],
    lasting: bool,
    full: bool,
) -> None:
    """With `full`, no replacement finds a place."""
    starts = iter(late)
    asked = bench(
        workers, pool_rules(lasting=lasting), once(*fates), lambda role, rank: next(starts, 1.0), refused
    )
    asked.ray.full = full
    asked.offer(*keys(count))
    try:
        found = asked.finish()
    except LostWorkers:
        assert full and sum(fate != "" for fate in fates) >= workers
        return
    assert set(found) == set(keys(count))
    for key, outcome in found.items():
        if key in refused:
            assert outcome.error
        elif not outcome.error:
            assert outcome.value[1] == f"payload of {key}"
        else:  # set aside only after three workers were lost with it
            assert sum(fate != "" for fate in fates) >= 3
    late_starts = sum(seconds > START_S for seconds in late)
    assert asked.pool.restarts <= sum(fate != "" for fate in fates) + late_starts


def test_a_key_that_kills_its_worker_is_set_aside_and_nobody_else_is() -> None:
    def fate(role: str, rank: int, turn: WorkBatch) -> str:
        return "dies" if any(key == "k5" for key, _ in turn.requests) else ""

    asked = bench(3, pool_rules(), fate)
    asked.offer(*keys(30))
    found = asked.finish()
    assert {key for key, outcome in found.items() if outcome.error} == {"k5"}
    assert found["k5"].error == "ActorDiedError: by its fate" and len(found) == 30
    assert asked.pool.restarts == 3  # attempts


def test_a_refused_request_is_tried_again_and_costs_no_worker() -> None:
    asked = bench(2, pool_rules(), refused=frozenset({"k1"}))
    asked.offer(*keys(6))
    found = asked.finish()
    assert found["k1"].error == "k1 is refused" and asked.pool.restarts == 0
    assert sum(not outcome.error for outcome in found.values()) == 5


def test_a_hang_is_ended_when_its_time_is_over_and_not_before() -> None:
    asked = bench(1, pool_rules(), once("hangs"))
    asked.offer("k0")
    found = asked.finish()
    # 30 s of hanging, noticed within the scheduler's second; a second to start, a second to answer
    assert HANG_S + 2 <= asked.ray.time <= HANG_S + 4
    assert found["k0"].value == (0, "payload of k0") and asked.pool.restarts == 1


def test_workers_that_nobody_listened_to_for_long_are_not_taken_for_hung() -> None:
    asked = bench(2, pool_rules(restarts=0))
    asked.offer(*keys(4))
    assert asked.scheduler.outcomes(0.0) == []  # their turns are out
    asked.ray.time += 100 * HANG_S  # the driver trains meanwhile
    assert len(asked.finish()) == 4


def test_time_in_which_nobody_listened_is_no_stall() -> None:
    asked, stalls = bench(1, pool_rules()), list[str]()
    watcher = mock.MagicMock()
    watcher.look = lambda states, stalled: stalls.append(stalled) if stalled else None
    asked.scheduler.watcher = watcher
    for number in range(2):  # as two evaluations with a training between
        asked.offer(f"k{number}")
        assert asked.scheduler.outcomes(0.0) == []
        asked.finish()
        asked.ray.time += 1000.0
    assert stalls == []


def test_reports_of_a_role_held_back_stay_unread_and_its_workers_are_not_late() -> None:
    asked = bench(1, pool_rules(restarts=0))
    asked.offer("k0")
    asked.scheduler.outcomes(0.0)
    asked.scheduler.hold("echo", True)
    for _ in range(int(2 * HANG_S)):
        assert asked.scheduler.outcomes(1.0) == []
    asked.scheduler.hold("echo", False)
    assert set(asked.finish()) == {"k0"}


def test_a_worker_that_answers_slowly_but_steadily_is_left_alone() -> None:
    asked = bench(1, pool_rules(restarts=0))
    asked.offer(*keys(100))  # 100 s of work in turns of at most 4 s
    assert len(asked.finish()) == 100 and asked.ray.time >= 100


def test_restarts_are_bounded_and_the_error_says_so() -> None:
    asked = bench(1, pool_rules(restarts=2), lambda role, rank, turn: "dies")
    asked.offer(*keys(3))
    with pytest.raises(LostWorkers, match=r"echo: 1 of 1 .*\b2 .*cluster\.faults\.restarts=2\b.* fate;"):
        asked.finish()


def test_the_rest_goes_on_when_a_worker_cannot_be_replaced() -> None:
    asked = bench(3, pool_rules(restarts=0), once("dies"))
    asked.offer(*keys(20))
    found = asked.finish()
    assert not any(outcome.error for outcome in found.values()) and len(found) == 20
    assert len(asked.pool.ranks) == 2


def test_without_fewer_one_lost_worker_ends_the_run() -> None:
    asked = bench(3, pool_rules(restarts=0, fewer=False), once("dies"))
    asked.offer(*keys(20))
    with pytest.raises(LostWorkers, match="echo: 1 of 3 "):
        asked.finish()


def test_a_replacement_that_hangs_in_its_start_is_replaced_while_restarts_are_left() -> None:
    seconds = iter([1e6, 1e6, 1.0])
    asked = bench(1, pool_rules(restarts=3), once("dies"), lambda role, rank: next(seconds))
    asked.offer("k0")
    assert set(asked.finish()) == {"k0"} and asked.pool.restarts == 3
    assert 2 * START_S < asked.ray.time < 2 * START_S + 10


def test_a_replacement_that_finds_no_place_is_given_up_after_start_s() -> None:
    asked = bench(1, pool_rules(), once("dies"))
    asked.ray.full = True
    asked.offer("k0")
    with pytest.raises(LostWorkers, match=r"echo: 1 of 1 .* 6[0-5] s;"):
        asked.finish()
    assert START_S < asked.ray.time < START_S + 5


def test_the_tail_does_not_wait_for_a_straggler_whose_copy_is_done() -> None:
    hung: list[int] = []

    def fate(role: str, rank: int, turn: WorkBatch) -> str:
        if any(key == "k0" for key, _ in turn.requests) and not hung:
            hung.append(rank)
            return "hangs"
        return ""

    asked = bench(2, pool_rules(lasting=True), fate)
    asked.offer(*keys(8))
    found = asked.finish()
    assert all(outcome.value[0] != hung[0] for key, outcome in found.items() if key == "k0")
    assert asked.ray.time < HANG_S and asked.pool.restarts == 0


def test_after_forget_nothing_old_comes_back_and_the_same_keys_may_be_offered() -> None:
    asked = bench(2, pool_rules(lasting=True))
    asked.offer(*keys(12))
    for _ in range(3):
        asked.scheduler.outcomes(0.1)
    asked.scheduler.forget()
    assert asked.pool.unfinished == 0
    asked.offer(*keys(12))
    assert Counter(asked.finish().keys()) == Counter(keys(12))
    asked.offer("new")
    assert set(asked.finish()) == {"new"}


def test_a_turn_from_before_a_forget_is_not_believed() -> None:
    asked = bench(1, pool_rules(lasting=True))
    asked.pool.offer(WorkItem("k0", 1, 1.0), "old")
    asked.scheduler.outcomes(0.0)  # its turn is out
    asked.scheduler.forget()
    asked.pool.offer(WorkItem("k0", 1, 1.0), "new")
    assert asked.finish()["k0"].value == (0, "new")


def test_a_hang_is_found_while_its_role_is_held_back_again_and_again() -> None:
    asked = bench(2, pool_rules(), once("hangs"))
    asked.offer(*keys(2))
    found: set[str] = set()
    while len(found) < 2:
        asked.scheduler.hold("echo", True)
        asked.scheduler.outcomes(1.0)
        asked.scheduler.hold("echo", False)
        found |= {outcome.key for outcome in asked.scheduler.outcomes(1.0)}
        assert asked.ray.time < 4 * HANG_S, "the time that it was listened to was forgotten each time"
    assert asked.pool.restarts == 1


def test_offers_are_not_taken_while_too_many_wait() -> None:
    asked = bench(1, pool_rules())
    for number in range(64 + 16):
        assert asked.pool.has_capacity, number
        asked.offer(f"k{number}")
    assert not asked.pool.has_capacity
    while not asked.pool.has_capacity:
        asked.scheduler.outcomes()
    assert asked.pool.unfinished < 64 + 16 + 4
    asked.finish()
