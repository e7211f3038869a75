"""Lines name who waits for whom with the depths of the queues; a stall is told once, then ever more rarely, and so is its end."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tracking.test_status import beat, open_run, wait_for
from ultramed_rl.tracking import watched
from ultramed_rl.tracking.heartbeat import note_waits
from ultramed_rl.tracking.stall import RoleState, StallWatch, explain_wait
from ultramed_rl.tracking.status import read_status, render_status, status_mapping
from ultramed_rl.tracking.timeline import TIMELINE, Span, span_line

# All at work: nobody waits.
ROLLOUT = RoleState("rollout", 4, 0, 4, 10, 48, 100, (), 3.0)
REWARD = RoleState("reward", 2, 0, 2, 5, 16, 635, ("rollout",), 1.0)
REFERENCE = RoleState("reference", 1, 0, 1, 2, 8, 90, ("reward",), 2.0)
IDLE: dict[str, Any] = {"busy": 0, "waiting": 0, "held": 0}


def match_all(told: list[str], *patterns: str) -> bool:
    """Whether there is one sentence to a pattern, in this order."""
    return len(told) == len(patterns) and all(map(re.match, patterns, told))


def test_roles_that_all_have_work_wait_for_nobody() -> None:
    assert explain_wait([ROLLOUT, REWARD, REFERENCE]) == []


def test_an_idle_role_waits_for_the_one_that_makes_its_items() -> None:
    told = explain_wait([ROLLOUT, replace(REWARD, **IDLE)])
    assert match_all(
        told,
        r"reward [^:]*\brollout: reward 0 of 2 .*\b0 of \d+ .*; rollout 4 of 4 .*\b10 of 110 .*\b48 .*\b3 s\b",
    )


def test_a_role_behind_an_idle_one_waits_for_whoever_has_the_work() -> None:
    found = explain_wait([ROLLOUT, replace(REWARD, **IDLE), replace(REFERENCE, **IDLE)])
    assert match_all(found, r"reward [^:]*\brollout:", r"reference [^:]*\brollout:")


def test_a_full_queue_holds_its_makers_back() -> None:
    reward = RoleState("reward", 1, 0, 1, 640, 32, 0, ("rollout",), 1.0)
    assert match_all(explain_wait([ROLLOUT, reward]), r"rollout [^:]*\breward: reward 1 of 1 .*\b640 of 640 ")


def test_a_full_queue_whose_workers_start_says_that_none_is_up() -> None:
    reward = RoleState("reward", 2, 2, 0, 640, 0, 0, ("rollout",), 30.0)
    held_back = r"rollout [^:]*\breward: reward 0 of 0 .*\b2 .*\b640 of 640 "
    assert match_all(explain_wait([ROLLOUT, reward]), r"reward [^:]*: reward 0 of 0 .*\b2 ", held_back)


def test_a_full_queue_holds_nobody_back_who_is_done() -> None:
    done = replace(ROLLOUT, **IDLE)
    assert explain_wait([done, replace(REWARD, waiting=640, room=0)]) == []


def test_a_worker_that_starts_again_is_named() -> None:
    assert match_all(
        explain_wait([replace(ROLLOUT, starting=1, busy=3)]), r"rollout [^:]*: rollout 3 of 3 \D*\b1 "
    )


def test_a_role_that_lost_all_its_workers_is_named_with_what_is_left() -> None:
    reward = replace(REWARD, workers=0, busy=0, waiting=1, held=0)
    assert match_all(explain_wait([reward]), r"reward [^:]*: reward 0 of 0 \D*\b1 of ")


def test_work_that_is_queued_beside_idle_workers_is_told_after_a_moment() -> None:
    reward = RoleState("reward", 2, 0, 1, 12, 3, 50, (), 1.0)
    assert explain_wait([reward]) == []
    assert match_all(
        explain_wait([replace(reward, idle_s=9.0)]), r"reward [^:]*: reward 1 of 2 \D*\b12 of 62 \D*\b3 "
    )


def test_at_the_end_nobody_waits() -> None:
    assert explain_wait([replace(state, **IDLE) for state in (ROLLOUT, REWARD, REFERENCE)]) == []


def test_roles_that_take_from_each_other_end_the_search() -> None:
    one = RoleState("a", 1, 0, 0, 0, 0, 1, ("b",), 0.0)
    assert explain_wait([one, replace(one, role="b", upstream=("a", "unknown"))]) == []


counts = st.integers(0, 5)
states = st.builds(
    RoleState,
    st.sampled_from(["rollout", "reward", "reference", "policy"]),
    counts,
    counts,
    counts,
    counts,
    counts,
    st.integers(-1, 5),
    st.lists(st.sampled_from(["rollout", "reward", "reference", "gone"]), max_size=3).map(tuple),
    st.floats(0, allow_nan=False, allow_infinity=True),
)


@given(st.lists(states, max_size=4))
def test_whatever_the_counts_are_every_wait_names_a_role_that_has_work(found: list[RoleState]) -> None:
    at_work = {state.role for state in found if state.under_way}
    for text in explain_wait(found):
        head = text.partition(":")[0]
        others = re.findall(r"\b(?:rollout|reward|reference|policy|gone)\b", head)[1:]
        assert len(others) <= 1 and at_work.issuperset(others), text


# -- stalls ------------------------------------------------------------------------------------------------


class Run:
    """Roles on a clock that is moved by hand; the engines hold work, the reward has none."""

    def __init__(self) -> None:
        self.now, self.finished_at, self.held = 1000.0, 1000.0, 48
        self.watch = StallWatch(lambda: self.now)

    def look(self, at: float) -> str | None:
        self.now = 1000.0 + at
        rollout = replace(ROLLOUT, waiting=0, held=self.held, idle_s=self.now - self.finished_at)
        return self.watch.look([rollout, replace(REWARD, **IDLE, idle_s=self.now - self.finished_at + 5)])


def test_a_stall_is_told_once_then_at_doubling_intervals_and_its_end_too() -> None:
    run = Run()
    told = {at: text for at in range(0, 400) if (text := run.look(at)) is not None}
    assert list(told) == [60, 120, 240]
    assert re.search(r"\b60 s: rollout .*\b48 .*\b60 s\b.*; reward 0 of 2 .*\b65 s\b", told[60])
    run.finished_at = 1000.0 + 401
    assert re.search(r"^[^:]*\b401 s$", run.look(405) or "")
    assert run.look(406) is None and run.look(460) is None
    assert re.search(r"^[^:]*\b61 s: ", run.look(462) or ""), "as soon as the first time"


def test_progress_is_no_stall_however_long_the_run() -> None:
    run = Run()
    for at in range(0, 1000, 10):
        run.finished_at = 1000.0 + at - at % 50
        assert run.look(at) is None


def test_time_without_work_is_no_stall() -> None:
    # As between two rounds, while the policy trains.
    run = Run()
    run.held = 0
    assert run.look(0) is None and run.look(500) is None
    run.held = 48
    assert run.look(501) is None and run.look(560) is None
    assert re.search(r"^[^:]*\b60 s: ", run.look(561) or "")


def test_a_watch_that_begins_in_a_later_round_counts_from_its_beginning() -> None:
    run = Run()
    assert run.look(900) is None and run.look(959) is None and run.look(960) is not None


def test_a_stall_that_ends_with_the_last_item_is_told_as_over() -> None:
    run = Run()
    run.look(0)
    assert run.look(60) is not None
    run.held, run.finished_at = 0, 1000.0 + 90
    assert re.search(r"^[^:]*\b90 s$", run.look(95) or "") and run.look(400) is None


def test_a_stall_without_a_waiting_role_says_what_is_under_way() -> None:
    watch = StallWatch(iter([0.0, 70.0]).__next__)
    rollout = replace(ROLLOUT, idle_s=200.0)
    assert watch.look([rollout]) is None
    assert re.search(r"^[^:]*\b70 s: rollout .*\b48 .*\b200 s\b", watch.look([rollout]) or "")


def test_no_roles_are_no_stall() -> None:
    assert StallWatch(lambda: 0.0).look([]) is None


# -- status ------------------------------------------------------------------------------------------------


def test_the_heartbeat_carries_the_waits_until_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultramed_rl.tracking.heartbeat._EVERY_S", 0.05)
    try:
        with watched(tmp_path):
            note_waits(["reward waits for rollout: nothing queued"])
            wait_for(tmp_path, waits=["reward waits for rollout: nothing queued"])
            note_waits(())
            wait_for(tmp_path, waits=[])
    finally:
        note_waits(())


def test_the_status_shows_who_waits_and_how_busy_the_phase_at_hand_is(tmp_path: Path) -> None:
    store = open_run(tmp_path)
    beat(store.path, waits=["reward waits for rollout: [2 of 2] idle"], started=1000.0)
    turns = [
        Span("rollout", "rollout-0", "generate", 990.0, 1010.0, 5),
        Span("reward", "reward-0", "score", 1004.0, 1006.0, 5),
    ]
    (store.path / TIMELINE).write_text("".join(map(span_line, turns)))
    status = read_status(store.path)
    assert status.utilisation == pytest.approx({"rollout": 1.0, "reward": 0.2})
    rendered = render_status(status)
    assert "rollout 100%, reward 20%" in rendered and "reward waits for rollout: [2 of 2] idle" in rendered
    assert status_mapping(status)["utilisation"]["reward"] == pytest.approx(0.2)


def test_a_run_that_has_ended_waits_for_nobody(tmp_path: Path) -> None:
    store = open_run(tmp_path)
    store._lock.close()
    beat(store.path, state="finished", waits=["reward waits for rollout: nothing queued"])
    assert read_status(store.path).waits == () and "waits" not in render_status(read_status(store.path))
