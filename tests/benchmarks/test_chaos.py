"""The pure parts of the chaos benchmark: who is struck, and what counts as a difference between two runs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from chaos import Difference, RoundRecords, compare_rounds, is_same, recovery_seconds
from killer import (
    KINDS,
    MARK,
    WORKERS,
    Household,
    Process,
    Strike,
    choose_victim,
    is_whole,
    phase_on_disk,
    turns_of_kinds,
)

from ultramed_rl.tracking.timeline import Span, span_line

ROUND = RoundRecords(
    prompts=["a", "b"],
    answers=[("a", 0, (1, 2)), ("a", 1, (3,)), ("b", 0, (4,)), ("b", 1, (5, 6))],
    pairs=[("a", (1, 2), (3,)), ("b", (4,), (5, 6))],
    references={"a:0>1": (-1.0, -2.0), "b:0>1": (-3.0, -4.0)},
)
CREW = [Process(10 + i, 0, f"ray::{role.capitalize()}Worker") for i, role in enumerate(sorted(WORKERS))]
CREW += [Process(20 + i, 0, f"ray::{r.capitalize()}Worker.work") for i, r in enumerate(["rollout", "reward"])]
CREW += [Process(30, 0, "ray::PolicyWorker.train"), Process(31, 0, "ray::IDLE"), Process(32, 0, "raylet")]


def test_the_order_of_records_is_no_difference() -> None:
    turned = replace(ROUND, answers=ROUND.answers[::-1], pairs=ROUND.pairs[::-1])
    assert compare_rounds(ROUND, turned) == Difference(identical=2, either=2)


def test_a_lost_a_doubled_and_a_changed_answer_are_told_apart() -> None:
    lost = replace(ROUND, answers=ROUND.answers[1:])
    doubled = replace(ROUND, answers=[*ROUND.answers, ROUND.answers[0]])
    unasked = replace(ROUND, answers=[*ROUND.answers, ("c", 0, (1,))])
    changed = replace(ROUND, answers=[("a", 0, (1, 9)), *ROUND.answers[1:]])
    found = [compare_rounds(ROUND, other) for other in (lost, doubled, unasked, changed)]
    assert [(d.lost, d.doubled, d.changed) for d in found] == [(1, 0, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1)]


def test_a_pair_too_many_is_as_much_a_difference_as_one_that_is_missing() -> None:
    more = replace(ROUND, pairs=[*ROUND.pairs, ROUND.pairs[0]])
    assert compare_rounds(ROUND, more) == compare_rounds(more, ROUND) == Difference(identical=2, either=3)
    other = replace(ROUND, pairs=[ROUND.pairs[0], ("b", (5, 6), (4,))])
    assert compare_rounds(ROUND, other) == Difference(identical=1, either=3)


def test_reference_logprobs_are_compared_group_by_group() -> None:
    off = replace(ROUND, references={**ROUND.references, "b:0>1": (-3.0, -4.25)})
    assert compare_rounds(ROUND, off).logprob_gap == 0.25
    short = replace(ROUND, references={**ROUND.references, "b:0>1": (-3.0,)})
    assert compare_rounds(ROUND, short).logprob_gap == float("inf")
    missing = replace(ROUND, references={"a:0>1": (-1.0, -2.0)})
    assert compare_rounds(ROUND, missing).logprob_gap == float("inf")


def test_rounds_sum_up_and_their_widest_gap_counts() -> None:
    total = Difference(2, 3, 1, 0, 0, 0, 0.5) + Difference(1, 1, 0, 2, 1, 4, 0.25)
    assert total == Difference(3, 4, 1, 2, 1, 4, 0.5)


ZERO = ("lost", "doubled", "changed", "prompts_differ", "gave_up", "missed")


@pytest.mark.parametrize("name", ZERO)
def test_anything_that_differs_fails_the_benchmark(name: str) -> None:
    line = {"ours": 9, "peer": 9, "ratio": 1.0, "logprob_gap": 1e-6, "weight_gap": 0.0}
    line |= dict.fromkeys(ZERO, 0)
    assert is_same(line)
    assert not is_same({**line, "weight_gap": 1e-9}) and not is_same({**line, "weight_gap": None})
    assert not is_same({**line, name: 1})
    assert not is_same({**line, "logprob_gap": 1e-3}) and not is_same({**line, "ours": 8})
    assert not is_same({**line, "logprob_gap": None})


@given(count=st.integers(1, 60), seed=st.integers(0, 99))
def test_every_kind_has_its_share(count: int, seed: int) -> None:
    turns = turns_of_kinds(KINDS, count, random.Random(seed))
    shares = Counter(turns)
    assert len(turns) == count
    assert max(shares.values()) - min(shares[kind] for kind in KINDS) <= 1


def test_only_workers_of_the_kind_are_struck() -> None:
    chance = random.Random(3)
    for kind in WORKERS:
        victims = {choose_victim(CREW, kind, chance) for _ in range(50)}
        assert {v.role for v in victims if v} == {kind}
        assert len(victims) == WORKERS[kind], "some worker is never struck"
    hanging = {v.role for _ in range(50) if (v := choose_victim(CREW, "hang", chance))}
    assert hanging == {"rollout", "reward", "reference"}
    assert choose_victim([p for p in CREW if p.role != "reward"], "reward", chance) is None


def test_a_crew_is_whole_when_nobody_is_missing_loading_or_struck() -> None:
    assert is_whole(CREW, set())
    assert not is_whole(CREW[1:], set())
    assert not is_whole(CREW, {20}), "who hangs still has a process"
    loading = [replace(p, title="ray::RolloutWorker.start") if p.pid == 20 else p for p in CREW]
    assert not is_whole(loading, set())


def test_the_phase_is_the_one_after_the_last_manifest(tmp_path: Path) -> None:
    def done(name: str) -> str:
        file = tmp_path / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        return phase_on_disk(tmp_path)

    assert phase_on_disk(tmp_path) == "evaluate"
    names = ["prompts", "scored", "pairs", "reference", "checkpoint", "evaluation", "commit"]
    assert done("initial/evaluation") == "rollout"
    phases = [done(f"rounds/000/{name}") for name in names]
    assert phases == ["rollout", "reference", "reference", "train", "evaluate", "commit", "rollout"]
    assert done("rounds/001/prompts") == "rollout"


def test_a_recovery_ends_when_the_whole_crew_is_at_work(tmp_path: Path) -> None:
    spans = [
        Span("rollout", "rollout-1", "generate", 90.0, 125.0, 4),  # went on all the time
        Span("controller", "round 0", "rollout", 80.0, 130.0, 0),
        Span("reward", "reward-0", "generate", 140.0, 141.0, 4),
    ]
    timeline = tmp_path / "timeline.jsonl"
    timeline.write_text("".join(map(span_line, spans)))
    none = frozenset[int]()
    strikes = [
        Strike("rollout", 100.0, "rollout", CREW[0], none, replacing=105.0, whole=120.0),
        Strike(
            "reward", 110.0, "rollout", CREW[0], none, replacing=115.0, whole=130.0
        ),  # no one works until 140
        Strike("policy", 150.0, "train", CREW[0], none, replacing=155.0, whole=170.0),  # the run ended before
        Strike("driver", 150.0, "train", CREW[0], none),
    ]
    assert recovery_seconds(strikes, timeline) == [(20.0, 15.0), (30.0, 25.0)]


def test_a_replacement_is_a_new_process_of_the_victims_role() -> None:
    victim = CREW[4]
    strike = Strike("rollout", time.time(), "rollout", victim, frozenset(p.pid for p in CREW))
    strike.look([*CREW[:4], replace(CREW[5], pid=99)], whole=False)
    assert not strike.replacing, "a new worker of another role"
    strike.look([*CREW, replace(victim, pid=98, title="ray::RolloutWorker.start")], whole=False)
    assert strike.replacing and not strike.whole
    first = strike.replacing
    strike.look([*CREW, replace(victim, pid=98)], whole=True)
    assert strike.whole >= strike.replacing == first


def test_a_household_is_a_marked_process_with_all_its_descendants() -> None:
    name = f"test-{os.getpid()}"
    household, other = Household(name), Household(f"{name}-other")
    # A grandchild that has forgotten the mark, as Ray's workers do when they set their titles.
    script = "import subprocess; subprocess.run(['env', '-i', 'sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", script], env={**os.environ, MARK: name}) as parent:
        deadline = time.monotonic() + 30
        while len(household.look()) < 2 or not any("sleep" in p.title for p in household.look()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert other.look() == []
        first = next(p for p in household.look() if p.pid == parent.pid)
        assert not household.send(replace(first, born=first.born + 1), signal.SIGKILL), "a pid of another's"
        assert household.send(first, signal.SIGKILL)
        parent.wait()
        assert [p.title for p in household.look()] == ["sleep 60"], "an orphan is still of the household"
        assert household.end(0.0) == ["sleep 60"]
        assert household.look() == []
