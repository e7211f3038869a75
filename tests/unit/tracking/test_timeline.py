"""A timeline loses no work, stays small, never hurts a run, and its shares, traces and figures are right."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tests.report_run import make_run
from ultramed_rl.cli import app
from ultramed_rl.report.build import write_report
from ultramed_rl.report.timeline import MOST_BARS, clipped, load_bars, view_timeline, without_breaks
from ultramed_rl.store import RunReader
from ultramed_rl.tracking.timeline import (
    CONTROLLER,
    TIMELINE,
    Joiner,
    Load,
    RunningUtilisation,
    Span,
    Timeline,
    phase_windows,
    read_spans,
    recent_utilisation,
    run_windows,
    span_line,
    trace_events,
    utilisation_table,
    workers_of,
)

AT = 1_700_000_000.0


def span(worker: str, start: float, end: float, phase: str = "", items: int = 1, idle_s: float = 0.0) -> Span:
    """A span of worker ROLE-N, in seconds since AT."""
    role = worker.partition("-")[0]
    return Span(role, worker, phase or role, AT + start, AT + end, items, idle_s)


def told(phase: str, start: float, end: float, index: int = 0) -> Span:
    return Span(CONTROLLER, f"round {index}", phase, AT + start, AT + end, 0)


def write(path: Path, spans: Sequence[Span]) -> Path:
    path.write_text("".join(map(span_line, spans)))
    return path


def shares(spans: Sequence[Span], start: float, end: float) -> dict[str, float]:
    """Of each role in a window in seconds since AT, as the controller's phases are counted."""
    window = told("window", start, end)
    return {r: s for r, s in utilisation_table([window, *spans])["window"].items() if r != "seconds"}


# A round of 100 s: two engines for the first 40 and 60 s, one reward worker for 30 s within, then one policy for 40 s.
ROUND = [
    told("stream", 0, 60),
    told("train", 60, 100),
    span("rollout-0", 0, 40, items=40),
    span("rollout-1", 0, 60, items=60),
    span("reward-0", 10, 25, items=50),
    span("reward-0", 45, 60, items=50),
    span("policy-0", 60, 100, items=32),
]


# -- the file ----------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(-20, 80), st.integers(0, 30), st.integers(0, 9)),
        max_size=20,
    )
)
def test_turns_counted_one_by_one_give_the_shares_of_all_at_once(
    turns: list[tuple[str, int, int, int]],
) -> None:
    """Two turns of a worker may overlap; both begin and end in its order."""
    ended: dict[str, int] = {}
    running, spans = RunningUtilisation(AT), []
    for worker, start, length, items in sorted(turns, key=lambda turn: turn[1]):
        ended[worker] = max(ended.get(worker, start), start + length)
        spans.append(span(worker, start, ended[worker], items=items))
        running.add(spans[-1])
    assert running.shares(AT + 120) == pytest.approx(shares(spans, 0, 120), abs=1e-9)


def test_spans_come_back_as_they_were_noted(tmp_path: Path) -> None:
    with Timeline(tmp_path / TIMELINE) as timeline:
        for one in reversed(ROUND):
            timeline.note(one)
    found = read_spans(tmp_path / TIMELINE)
    assert {*found} == {*ROUND} and len(found) == len(ROUND)
    assert [one.started for one in found] == sorted(one.started for one in ROUND)


def test_a_resumed_run_appends_and_the_half_line_of_the_killed_one_costs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / TIMELINE
    path.write_text(span_line(span("rollout-0", 0, 1)) + span_line(span("rollout-0", 2, 3))[:30])
    with Timeline(path) as timeline:
        timeline.note(span("rollout-0", 4, 5))
    assert read_spans(path) == [span("rollout-0", 0, 1), span("rollout-0", 4, 5)]
    path.write_text(path.read_text()[:-10])
    assert read_spans(path) == [span("rollout-0", 0, 1)]


@pytest.mark.parametrize(
    "line",
    [b"", b"{}", b"[1]", b"null", b'{"role": 1', b"\xff\xfe", span_line(span("a", 5, 4)).encode()]
    + [span_line(span("a", 0, end)).encode() for end in (float("nan"), float("inf"))],
)
def test_a_line_that_holds_no_span_is_passed_over(tmp_path: Path, line: bytes) -> None:
    (tmp_path / TIMELINE).write_bytes(line + b"\n" + span_line(span("a", 1, 2)).encode())
    assert read_spans(tmp_path / TIMELINE) == [span("a", 1, 2)]


def test_spans_reach_the_disk_while_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ultramed_rl.tracking.timeline._EVERY_S", 0.05)
    with Timeline(tmp_path / TIMELINE) as timeline:
        timeline.note(span("rollout-0", 0, 1))
        deadline = time.monotonic() + 20
        while not read_spans(tmp_path / TIMELINE) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert read_spans(tmp_path / TIMELINE) == [span("rollout-0", 0, 1)]


def test_a_disk_that_refuses_is_one_warning_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr("ultramed_rl.tracking.timeline._EVERY_S", 0.01)
    with Timeline(tmp_path / "never made" / TIMELINE) as timeline:
        for place in range(5):
            timeline.note(span("rollout-0", 10 * place, 10 * place + 1))
            time.sleep(0.05)
    path = tmp_path / "never made" / TIMELINE
    assert len([one for one in recwarn if str(one.message).startswith(f"{path}: ")]) == 1
    assert not any(thread.name == "timeline" for thread in threading.enumerate())


def test_a_disk_that_hangs_keeps_the_end_waiting_for_seconds_only_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultramed_rl.tracking.timeline._LAST_S", 0.2)
    timeline, disk = Timeline(tmp_path / TIMELINE), HungDisk()
    monkeypatch.setattr(timeline, "_append", disk.append)
    timeline.note(span("rollout-0", 0, 1))
    with pytest.warns(UserWarning, match=rf"^{tmp_path / TIMELINE}: .*\b0 s\b"):
        timeline.close()
    assert disk.asked.is_set() and not disk.written, "the end waited for the disk"
    disk.back.set()


def test_notes_do_not_wait_for_the_disk_and_are_written_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultramed_rl.tracking.timeline._EVERY_S", 0.01)
    disk = HungDisk()
    with Timeline(tmp_path / TIMELINE) as timeline:
        monkeypatch.setattr(timeline, "_append", disk.append)
        assert disk.asked.wait(60)
        noted = [span(f"rollout-{number}", 0, 1) for number in range(1000)]
        for one in noted:
            timeline.note(one)
        assert not disk.written
        disk.back.set()
    assert {*disk.written} == {*noted} and len(disk.written) == len(noted)


class HungDisk:
    """Takes nothing until it is `back`."""

    def __init__(self) -> None:
        self.asked, self.back = threading.Event(), threading.Event()
        self.written: list[Span] = []

    def append(self, spans: Sequence[Span]) -> None:
        self.asked.set()
        self.back.wait(60)
        self.written += spans


def test_a_phase_is_noted_with_its_round_even_where_it_fails(tmp_path: Path) -> None:
    before = time.time()
    with (
        Timeline(tmp_path / TIMELINE) as timeline,
        pytest.raises(RuntimeError),
        timeline.phase("stream", 3),
    ):
        time.sleep(0.01)
        raise RuntimeError
    (found,) = read_spans(tmp_path / TIMELINE)
    assert (found.role, found.worker, found.phase) == (CONTROLLER, "round 3", "stream")
    assert before - 0.001 <= found.started < found.ended


# -- joining -----------------------------------------------------------------------------------------------


def test_turns_that_follow_closely_are_one_span_with_their_items_and_gaps() -> None:
    joiner = Joiner()
    assert joiner.join([span("rollout-0", 0, 1, items=3), span("rollout-0", 1.04, 2, items=4)], 0) == []
    (found,) = joiner.take_open()
    assert (found.started, found.ended, found.items) == (AT, AT + 2, 7)
    assert found.idle_s == pytest.approx(0.04) and found.density == pytest.approx(0.98)


@pytest.mark.parametrize(
    "other", [span("rollout-1", 1, 2), span("rollout-0", 1, 2, "evaluate"), span("rollout-0", 1.06, 2)]
)
def test_turns_of_others_and_those_further_apart_are_not_joined(other: Span) -> None:
    joiner = Joiner()
    first = span("rollout-0", 0, 1)
    assert {*joiner.join([first, other], 0), *joiner.take_open()} == {first, other}


def test_an_hour_of_short_turns_is_a_few_hundred_lines_and_no_work_is_lost() -> None:
    turns = [span("reward-0", 0.1 * i, 0.1 * i + 0.06, items=2) for i in range(36_000)]
    joiner = Joiner()
    found = [one for place in range(0, 36_000, 30) for one in joiner.join(turns[place : place + 30], 0)]
    found += joiner.take_open()
    assert len(found) < 250 and sum(one.items for one in found) == 72_000
    busy = shares(found, 0, 3600)["reward"]
    assert busy == pytest.approx(0.6, abs=1e-3), "gaps within joined turns are no work"


def test_turns_that_are_too_many_to_write_are_joined_over_longer_gaps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ultramed_rl.tracking.timeline._MOST_LINES", 10)
    joiner, lines = Joiner(), []
    for second in range(0, 100, 10):
        turns = [span("reward-0", second + i / 4, second + i / 4 + 0.1) for i in range(40)]
        lines.append(len(joiner.join(turns, 0)))
    assert lines[0] == 39 and lines[-1] <= 10


def test_an_open_span_is_written_once_its_worker_rests() -> None:
    joiner = Joiner()
    assert joiner.join([span("rollout-0", 0, 1)], AT + 0.5) == []
    assert joiner.join([], AT + 1.5) == [span("rollout-0", 0, 1)] and joiner.take_open() == []


# -- shares ------------------------------------------------------------------------------------------------


def test_shares_of_a_window_by_hand() -> None:
    # In 30..70: engines work 10 + 30 of 80 worker-seconds, the reward 15 of 40, the policy 10 of 40.
    assert shares(ROUND, 30, 70) == pytest.approx({"rollout": 0.5, "reward": 0.375, "policy": 0.25})


def test_turns_of_one_worker_at_the_same_time_count_once_and_of_two_twice() -> None:
    both = [span("reward-0", 0, 6), span("reward-0", 4, 8), span("reward-0", 5, 6)]
    assert shares(both, 0, 10) == pytest.approx({"reward": 0.8})
    other = [*both, span("reward-1", 0, 6)]
    assert shares(other, 0, 10) == pytest.approx({"reward": 0.7})


@pytest.mark.parametrize(("start", "end"), [(5, 5), (9, 3), (200, 300)])
def test_a_window_without_length_or_work_is_nothing(start: float, end: float) -> None:
    assert shares(ROUND, start, end) == {"rollout": 0.0, "reward": 0.0, "policy": 0.0}


def test_phases_have_the_controllers_windows() -> None:
    table = utilisation_table(ROUND)
    assert list(table) == ["stream", "train", "whole run"]
    stream, train = (
        {"rollout": 100 / 120, "reward": 0.5, "policy": 0.0},
        {"rollout": 0.0, "reward": 0.0, "policy": 1.0},
    )
    assert table["stream"] == pytest.approx({"seconds": 60.0, **stream})
    assert table["train"] == pytest.approx({"seconds": 40.0, **train})


def test_without_a_controller_a_phase_lasts_while_its_spans_do() -> None:
    # Two rounds, 200 s apart: the reward works 20 of the 40 s in which it is its turn, half of them beside rollout.
    spans = [
        one
        for start in (0, 200)
        for one in (
            span("rollout-0", start, start + 20),
            span("reward-0", start + 10, start + 20),
            span("reward-0", start + 40, start + 50),
        )
    ]
    assert phase_windows(spans)["reward"] == [(AT + 10, AT + 50), (AT + 210, AT + 250)]
    table = utilisation_table(spans)
    assert table["reward"] == pytest.approx({"seconds": 80.0, "rollout": 0.25, "reward": 0.5})
    assert table["rollout"] == pytest.approx({"seconds": 40.0, "rollout": 1.0, "reward": 0.5})


def test_a_night_between_a_stop_and_its_resumption_is_no_part_of_the_run() -> None:
    spans = [span("rollout-0", 0, 100), span("rollout-0", 30_000, 30_100)]
    assert run_windows(spans) == [(AT, AT + 100), (AT + 30_000, AT + 30_100)]
    moved = without_breaks(spans)
    assert [(one.started - AT, one.ended - AT) for one in moved] == [(0, 100), (100, 200)]


seconds = st.floats(0, 1000, allow_nan=False)
turns = st.builds(
    lambda worker, start, length, idle: span(f"reward-{worker}", start, start + length, idle_s=idle * length),
    st.integers(0, 2),
    seconds,
    st.floats(0.001, 200),
    st.floats(0, 1),
)


@given(st.lists(turns, max_size=30), st.tuples(seconds, seconds, seconds).map(sorted))
def test_shares_are_shares_and_add_up_over_windows(spans: list[Span], moments: list[float]) -> None:
    a, b, c = moments
    left, right, whole = (shares(spans, *w).get("reward", 0.0) for w in ((a, b), (b, c), (a, c)))
    assert min(left, right, whole) >= 0.0 and max(left, right, whole) <= 1.0
    assert left * (b - a) + right * (c - b) == pytest.approx(whole * (c - a), abs=1e-4)


@given(st.lists(turns, max_size=30))
def test_joining_in_any_order_keeps_items_and_work(spans: list[Span]) -> None:
    spans = [replace(one, idle_s=0.0) for one in spans]
    joiner = Joiner()
    joined = joiner.join(spans, 0) + joiner.take_open()
    assert sum(one.items for one in joined) == len(spans) >= len(joined)
    assert workers_of(joined).items() == workers_of(spans).items()
    assert Load(joined).between(AT, AT + 2000) == pytest.approx(Load(spans).between(AT, AT + 2000), abs=1e-3)


def test_the_phase_at_hand_counts_what_has_ended_since_it_began(tmp_path: Path) -> None:
    path = write(tmp_path / TIMELINE, ROUND)
    found = recent_utilisation(path, AT + 50)  # to the last end, at 100
    assert found == pytest.approx({"rollout": 0.1, "reward": 0.2, "policy": 0.8})
    assert recent_utilisation(path, AT + 100) == {} == recent_utilisation(tmp_path / "none", AT)


def test_of_a_long_timeline_the_end_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / TIMELINE, [span("reward-0", 10 * i, 10 * i + 5) for i in range(1000)])
    monkeypatch.setattr("ultramed_rl.tracking.timeline._TAIL_BYTES", 2000)
    assert recent_utilisation(path, AT) == pytest.approx({"reward": 0.5}, abs=0.03)


# -- the trace ---------------------------------------------------------------------------------------------


def slices(trace: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in trace["traceEvents"] if event["ph"] == "X"]


def test_the_trace_has_a_process_for_each_role_and_a_thread_for_each_worker() -> None:
    trace = json.loads(json.dumps(trace_events(ROUND)))
    names = {
        (event["name"], event["pid"], event["tid"]): event["args"].get("name")
        for event in trace["traceEvents"]
        if event["ph"] == "M"
    }
    (reward,) = (pid for (kind, pid, _), name in names.items() if (kind, name) == ("process_name", "reward"))
    first, second = (event for event in slices(trace) if event["pid"] == reward)
    assert (first["name"], first["ts"], first["dur"], first["args"]) == (
        "reward",
        10_000_000,
        15_000_000,
        {"items": 50},
    )
    assert first["tid"] == second["tid"] and names["thread_name", reward, first["tid"]] == "reward-0"
    assert trace["otherData"]["started_unix_s"] == AT


@given(st.lists(turns, max_size=20))
def test_slices_of_a_thread_are_apart_or_perfetto_drops_them(spans: list[Span]) -> None:
    by_thread: dict[int, list[dict[str, Any]]] = {}
    for event in slices(trace_events(spans)):
        by_thread.setdefault(event["tid"], []).append(event)
    assert sum(map(len, by_thread.values())) == len(spans)
    for events in by_thread.values():
        events.sort(key=lambda event: event["ts"])
        assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in pairwise(events))


# -- the command -------------------------------------------------------------------------------------------


def test_the_command_prints_shares_by_phase_and_writes_the_trace(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    write(folder / TIMELINE, ROUND)
    found = CliRunner().invoke(app, ["timeline", str(folder)])
    rows = [line.split() for line in found.stdout.splitlines()]
    assert rows[0] == ["phase", "s", "rollout", "(2)", "reward", "(1)", "policy", "(1)"]
    assert rows[1:4] == [
        ["stream", "60.0", "83%", "50%", "0%"],
        ["train", "40.0", "0%", "0%", "100%"],
        ["whole", "run", "100.0", "50%", "30%", "40%"],
    ]
    assert len(slices(json.loads((folder / "trace.json").read_text()))) == len(ROUND)


def test_the_command_tells_programs_the_same_and_writes_where_it_is_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    write(folder / TIMELINE, ROUND)
    out = tmp_path / "new" / "trace.json"
    found = CliRunner().invoke(app, ["timeline", str(folder), "--out", str(out), "--json"])
    shares, result = (json.loads(line) for line in found.stdout.splitlines())
    assert shares["phases"]["train"] == {"seconds": 40.0, "rollout": 0.0, "reward": 0.0, "policy": 1.0}
    assert result["ok"] and result["output"] == str(out) and out.is_file()


def test_a_run_without_a_timeline_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    found = CliRunner().invoke(app, ["timeline", str(folder)])
    (line,) = found.output.splitlines()
    assert found.exit_code == 2 and line.startswith(f"{folder}: ") and TIMELINE in line


# -- the report --------------------------------------------------------------------------------------------


def test_the_report_shows_the_timeline_only_where_there_is_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert view_timeline(RunReader.of(folder)) is None
    assert "<td>83%</td>" not in write_report(folder).read_text()
    write(folder / TIMELINE, ROUND)
    assert "<td>83%</td>" in write_report(folder).read_text()


def test_a_round_that_was_told_of_without_any_turn_is_no_figure(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    write(folder / TIMELINE, [*ROUND, told("stream", 110, 120, index=1)])
    view = view_timeline(RunReader.of(folder))
    assert view is not None and view.spans and view.last == []
    assert "The last one, round 1" not in write_report(folder).read_text()


def test_bars_say_when_and_how_many_workers_were_busy() -> None:
    # 100 s in bins of 100 / 400 s: both engines until 40 s, one until 60 s.
    first, second = (bar for bar in load_bars(ROUND) if bar.role == "rollout")
    assert (first.start, first.length, first.share) == pytest.approx((0, 40, 1.0))
    assert (second.start, second.length, second.share) == pytest.approx((40, 20, 0.5))


def test_a_long_run_is_a_bounded_number_of_bars() -> None:
    spans = [
        span(f"{role}-{worker}", 3 * i + worker, 3 * i + worker + 1.3, items=1)
        for role in ("rollout", "reward", "reference")
        for worker in range(3)
        for i in range(3000)
    ]
    bars = load_bars(spans)
    assert 0 < len(bars) <= MOST_BARS
    assert {bar.role for bar in bars} == {"rollout", "reward", "reference"}


def test_the_last_round_is_cut_out_of_what_spans_it() -> None:
    (found,) = clipped([span("rollout-0", 0, 10, idle_s=2.0)], AT + 5, AT + 30)
    assert (found.started, found.ended, found.idle_s) == pytest.approx((AT + 5, AT + 10, 1.0))
