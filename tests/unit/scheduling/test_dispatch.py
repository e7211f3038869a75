"""Dealing prompts to engines: nothing lost, nothing doubled, whatever happens to engines."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.scheduling.dispatch import Dispatcher, WorkItem


def items(count: int, sequences: int = 1) -> list[WorkItem]:
    return [WorkItem(f"p{n}", sequences, float(sequences)) for n in range(count)]


def filled(given: list[WorkItem], *rules: Any, **more: Any) -> Dispatcher:
    dispatcher = Dispatcher(*rules, **more)
    for item in given:
        dispatcher.add(item)
    dispatcher.closed = True
    return dispatcher


def finished(dispatcher: Dispatcher) -> bool:
    return not (dispatcher.waiting or dispatcher.held)


def deal(dispatcher: Dispatcher, now: float = 0.0) -> list[tuple[str, str]]:
    found = []
    while (turn := dispatcher.next(now)) is not None:
        found.append((turn[0], turn[1].key))
    return found


def test_each_ticket_goes_to_the_engine_with_the_least_load() -> None:
    loads = [WorkItem("long", 1, 10.0), WorkItem("a", 1, 4.0), WorkItem("b", 1, 5.0), WorkItem("c", 1, 2.0)]
    dispatcher = filled(loads, room=8)
    dispatcher.join("e0")
    dispatcher.join("e1")
    # e0 has 10, so e1 takes 4 and 5; then 9 is still less than 10.
    assert deal(dispatcher) == [("e0", "long"), ("e1", "a"), ("e1", "b"), ("e1", "c")]


def test_an_engine_is_given_no_more_than_it_has_room_for() -> None:
    dispatcher = filled(items(10, sequences=4), room=8)
    dispatcher.join("e0")
    assert len(deal(dispatcher)) == 2
    assert dispatcher.done("e0", "p0", 1.0)
    assert deal(dispatcher) == [("e0", "p2")]


def test_a_ticket_larger_than_the_room_is_dealt_alone() -> None:
    dispatcher = filled(items(2, sequences=64), room=8)
    dispatcher.join("e0")
    assert deal(dispatcher) == [("e0", "p0")]


def test_what_a_lost_engine_held_is_done_by_another() -> None:
    dispatcher = filled(items(4), room=2)
    dispatcher.join("e0")
    dispatcher.join("e1")
    held = [key for engine, key in deal(dispatcher) if engine == "e0"]
    dispatcher.leave("e0")
    for key in ("p0", "p1", "p2", "p3"):
        if key not in held:
            assert dispatcher.done("e1", key, 1.0)
    assert sorted(key for _, key in deal(dispatcher)) == sorted(held)


def test_a_ticket_that_fails_too_often_is_set_aside_with_its_error() -> None:
    dispatcher = filled(items(2), room=4, attempts=3)
    dispatcher.join("e0")
    deal(dispatcher)
    dispatcher.fail("e0", "p0", "bad 0")
    assert deal(dispatcher) == [("e0", "p0")]
    dispatcher.fail("e0", "p0", "bad 1")
    assert deal(dispatcher) == [], "on its last attempt it was put beside another"
    assert dispatcher.done("e0", "p1", 1.0)
    assert deal(dispatcher) == [("e0", "p0")]
    dispatcher.fail("e0", "p0", "bad 2")
    assert dispatcher.set_aside == {"p0": "bad 2"} and finished(dispatcher)


def test_only_the_ticket_that_kills_workers_is_set_aside_for_it() -> None:
    dispatcher = filled(items(6), room=6, attempts=3)
    dispatcher.join("e0")
    answered = set[str]()
    while not finished(dispatcher):
        held = [key for _, key in deal(dispatcher)]
        assert held
        if "p3" in held:  # it kills whatever worker it is with
            dispatcher.leave("e0", "segfault")
            dispatcher.join("e0")
        else:
            answered |= {key for key in held if dispatcher.done("e0", key, 1.0)}
    assert dispatcher.set_aside == {"p3": "segfault"} and answered == {"p0", "p1", "p2", "p4", "p5"}


def test_a_worker_with_a_suspect_is_given_nothing_beside_it() -> None:
    dispatcher = filled(items(1), room=6, attempts=2)
    dispatcher.closed = False
    dispatcher.join("e0")
    deal(dispatcher)
    dispatcher.fail("e0", "p0", "bad")
    assert deal(dispatcher) == [("e0", "p0")]
    dispatcher.add(WorkItem("late", 1, 1.0))
    assert deal(dispatcher) == []
    assert dispatcher.done("e0", "p0", 1.0) and deal(dispatcher) == [("e0", "late")]


def test_an_idle_engine_takes_a_straggler_over_and_the_first_answer_counts() -> None:
    dispatcher = filled(items(3), room=2, copy_after=3.0)
    dispatcher.join("slow")
    dispatcher.join("fast")
    assert deal(dispatcher) == [("fast", "p0"), ("slow", "p1"), ("fast", "p2")]
    assert dispatcher.done("fast", "p0", 1.0) and dispatcher.done("fast", "p2", 1.0)
    assert deal(dispatcher, 2.9) == [], "p1 is not late yet: the others took a second"
    assert deal(dispatcher, 3.0) == [("fast", "p1")]
    assert dispatcher.done("fast", "p1", 4.0)
    assert dispatcher.cancelled() == [("slow", "p1")] and dispatcher.cancelled() == []
    assert not dispatcher.done("slow", "p1", 5.0), "the second answer was counted"
    assert finished(dispatcher)


def test_stragglers_are_copied_only_when_no_more_will_come() -> None:
    dispatcher = filled(items(2), room=1, copy_after=2.0)
    dispatcher.closed = False
    dispatcher.join("slow")
    dispatcher.join("fast")
    ((_, slow), (_, fast)) = [(e, k) for e, k in sorted(deal(dispatcher), reverse=True)]
    assert dispatcher.done("fast", fast, 1.0)
    assert deal(dispatcher, 100.0) == []
    dispatcher.closed = True
    assert deal(dispatcher, 100.0) == [("fast", slow)]


def test_memory_does_not_grow_with_what_was_answered() -> None:
    dispatcher, answered = Dispatcher(room=4), 0
    for n in range(3):
        dispatcher.join(f"e{n}")
    for n in range(20_000):
        dispatcher.add(WorkItem(f"p{n}", 1, float(n % 7 + 1)))
        answered += sum(dispatcher.done(engine, key, 1.0) for engine, key in deal(dispatcher))
    assert answered == 20_000 and finished(dispatcher)
    assert len(dispatcher._order) <= 8 * 3 + 65 and len(dispatcher._durations) <= 201


EVENTS = st.lists(
    st.tuples(st.sampled_from(["done", "fail", "leave", "join"]), st.integers(0, 7)), max_size=80
)


@given(st.integers(0, 30), st.integers(1, 6), st.integers(1, 3), EVENTS)
def test_every_ticket_ends_once_whatever_happens(count: int, room: int, attempts: int, events: list) -> None:
    dispatcher = filled(items(count), room, attempts, copy_after=2.0)
    alive, out, answered, now = {"e0"}, set[tuple[str, str]](), Counter[str](), 0.0
    dispatcher.join("e0")

    def step(kind: str, number: int) -> None:
        nonlocal out
        engine = f"e{number % 4}"
        mine = sorted(pair for pair in out)
        if kind == "join" and engine not in alive:
            alive.add(engine)
            dispatcher.join(engine)
        elif kind == "leave" and engine in alive and len(alive) > 1:
            alive.remove(engine)
            dispatcher.leave(engine)
            out = {pair for pair in out if pair[0] != engine}
        elif mine and kind in ("done", "fail"):
            pair = mine[number % len(mine)]
            out.discard(pair)
            if kind == "fail":
                dispatcher.fail(*pair, "bad")
            elif dispatcher.done(*pair, now):
                answered[pair[1]] += 1
        out -= set(dispatcher.cancelled())

    for kind, number in events:
        now += 1.0
        out |= set(deal(dispatcher, now))
        assert all(engine in alive for engine, _ in out)
        step(kind, number)
    while not finished(dispatcher):
        now += 1.0
        out |= set(deal(dispatcher, now))
        assert out, "items are open and no engine holds any"
        step("done", 0)
    assert set(answered.values()) <= {1}, "an item was answered twice"
    ends = set(answered) | set(dispatcher.set_aside)
    assert ends == {item.key for item in items(count)} and len(answered) + len(dispatcher.set_aside) == count


def straggling(attempts: int) -> Dispatcher:
    """p1 is with slow, and its copy with fast."""
    dispatcher = filled(items(3), room=2, attempts=attempts, copy_after=2.0)
    for worker in ("slow", "fast"):
        dispatcher.join(worker)
    assert deal(dispatcher) == [("fast", "p0"), ("slow", "p1"), ("fast", "p2")]
    assert dispatcher.done("fast", "p0", 1.0) and dispatcher.done("fast", "p2", 1.0)
    assert deal(dispatcher, 9.0) == [("fast", "p1")]
    return dispatcher


@pytest.mark.parametrize("attempts", [2, 3])
def test_a_ticket_whose_two_holders_die_still_gets_its_last_attempt_alone(attempts: int) -> None:
    dispatcher = straggling(attempts)
    dispatcher.leave("fast", "died")
    dispatcher.leave("slow", "died")
    assert not dispatcher.set_aside, "set aside without a try of its own"
    dispatcher.join("new")
    assert deal(dispatcher, 10.0) == [("new", "p1")] and dispatcher.done("new", "p1", 11.0)


def test_what_has_failed_is_not_copied() -> None:
    dispatcher = straggling(3)
    dispatcher.fail("fast", "p1", "refused")
    assert deal(dispatcher, 20.0) == [], "two workers would refuse it in turn for ever"
    dispatcher.fail("slow", "p1", "refused")
    ((worker, key),) = deal(dispatcher, 30.0)
    dispatcher.fail(worker, key, "refused")
    assert dispatcher.set_aside == {"p1": "refused"} and finished(dispatcher)
