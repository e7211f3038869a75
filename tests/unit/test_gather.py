"""A round's records, streamed or one phase after the other, killed anywhere and resumed: always the same ones.

The gatherer, exchange, pools, scorers and store are the real ones; engines and scorers are simulated.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gathering import PROMPTS, N, Round, answer
from ultramed_rl.actors.rollout import SamplingRequest
from ultramed_rl.actors.turns import Turn
from ultramed_rl.cluster.pool import LostWorkers
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.online.intake import Rules
from ultramed_rl.records import Completion, Prompt, ScoredCompletion
from ultramed_rl.store import artifacts, atomic, parts, shards


class Killed(BaseException):
    """The driver is gone."""


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_RECORDS", 5)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What every round here comes to."""
    return Round(tmp_path_factory.mktemp("unbroken")).run()


def test_all_prompts_are_scored_with_their_own_answers(unbroken: Any) -> None:
    scored, pairs, references, set_aside = unbroken
    expected = [
        (c.completion_id, c.token_ids, float(sum(c.token_ids)))
        for p in PROMPTS
        for c in answer(SamplingRequest(p, N, 1.0, 1.0, 40, derive_seed(7, p.prompt_id)))
    ]
    found = [(s.completion.completion_id, s.completion.token_ids, s.reward) for s in scored]
    assert sorted(found) == sorted(expected) and not set_aside
    assert len(pairs) == len(PROMPTS) and [r.group_id for r in references] == [p.group_id for p in pairs]
    for pair, reference in zip(pairs, references, strict=True):
        prompt = len(pair.prompt.token_ids)
        assert reference.logprobs == tuple(-float(prompt + sum(c.token_ids)) for c in pair.completions)


def test_barriers_change_nothing_but_the_order(tmp_path: Path, unbroken: Any) -> None:
    assert Round(tmp_path, {"cluster__barriers": True}).run() == unbroken
    assert not (tmp_path / "round" / "completions.parquet").exists()


@pytest.mark.parametrize("barriers", [False, True])
@pytest.mark.parametrize("role", ["rollout", "reward", "reference"])
@pytest.mark.parametrize("kind", ["dies", "hangs"])
def test_workers_that_are_lost_change_nothing(
    tmp_path: Path, unbroken: Any, barriers: bool, role: str, kind: str
) -> None:
    turns = {"left": 2}

    def fate(name: str, rank: int, turn: Turn) -> str:
        if name != role or not turns["left"] or not turn.requests:
            return ""
        turns["left"] -= 1
        return kind

    assert Round(tmp_path, {"cluster__barriers": barriers}, fate).run() == unbroken
    assert turns["left"] == 0, "nothing befell anybody"


def survive(path: Path, changes: dict[str, Any], strike: Callable[[int], Callable[[], None]]) -> Any:
    """Run with the driver killed at its first point, resume, kill it at the second, and so on until it ends."""
    for point in range(1, 400):
        try:
            return point, Round(path, changes, on_events=strike(point)).run()
        except Killed:
            continue
    raise AssertionError("it never ended")


def after(calls: int) -> Callable[[], None]:
    """Dies at a call of this number."""
    left = {"calls": calls}

    def call() -> None:
        left["calls"] -= 1
        if left["calls"] == 0:
            raise Killed

    return call


@pytest.mark.parametrize("barriers", [False, True])
def test_killed_at_each_event_and_begun_anew(tmp_path: Path, unbroken: Any, barriers: bool) -> None:
    """A folder for each point: killed there once, then resumed."""
    point, ended = 0, False
    while not ended:
        point += 3
        path = tmp_path / str(point)
        try:
            Round(path, {"cluster__barriers": barriers}, on_events=after(point)).run()
            ended = True
        except Killed:
            pass
        assert Round(path, {"cluster__barriers": barriers}).run() == unbroken, f"killed at event {point}"
    assert point > 6


@pytest.mark.parametrize("barriers", [False, True])
def test_killed_again_and_again_in_one_folder(tmp_path: Path, unbroken: Any, barriers: bool) -> None:
    kills, found = survive(tmp_path, {"cluster__barriers": barriers}, after)
    assert found == unbroken and kills > 3


def test_mismatched_answers_are_those_of_all_pairs_wherever_a_kill_comes(tmp_path: Path) -> None:
    changes = {"objective": {"type": "kto"}, "reference__micro_batch_tokens": 32}
    whole = Round(tmp_path / "whole", changes).run()
    assert all(reference.mismatched is not None for reference in whole[2])

    def weigh_until(event: int) -> Any:
        """Killed at this event after the answers are gathered."""
        strike, gathered = after(event), False

        def gather(crew: Any, work: Callable[[], Any]) -> Any:
            nonlocal gathered
            found, gathered = work(), True
            return found

        return Round(
            tmp_path / "killed", changes, hold=gather, on_events=lambda: strike() if gathered else None
        ).run()

    kills = 0
    for event in range(1, 40):
        try:
            assert weigh_until(event) == whole
            break
        except Killed:
            kills += 1
    assert kills > 3, "it was never in the midst of it"


@pytest.mark.parametrize("barriers", [False, True])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_killed_at_each_write(
    tmp_path: Path, unbroken: Any, monkeypatch: pytest.MonkeyPatch, barriers: bool, late: bool
) -> None:
    write_whole = atomic.write_whole
    strike: dict[str, Callable[[], None]] = {"now": lambda: None}

    def dying(path: Path, write: Callable[[Path], Any]) -> Any:
        if not late:
            strike["now"]()
        result = write_whole(path, write)
        if late:
            strike["now"]()
        return result

    for module in (atomic, parts, artifacts):
        monkeypatch.setattr(module, "write_whole", dying)
    changes = {"cluster__barriers": barriers}
    for point in range(1, 200):
        path = tmp_path / str(point)
        strike["now"] = after(point)
        try:
            Round(path, changes).run()
            break
        except Killed:
            strike["now"] = lambda: None
            assert Round(path, changes).run() == unbroken, f"killed at write {point}"
    assert 8 < point < 199


def test_a_resumed_round_asks_only_for_what_it_has_not(tmp_path: Path, unbroken: Any) -> None:
    with pytest.raises(Killed):
        Round(tmp_path, on_events=after(20)).run()
    kept = {
        s.completion.prompt_id
        for s in shards.RecordFiles(tmp_path / "round" / "scored.parts", ScoredCompletion)
    }
    again = Round(tmp_path)
    assert again.run() == unbroken
    assert 0 < len(kept) < len(PROMPTS) and set(again.asked) == {p.prompt_id for p in PROMPTS} - kept
    assert len(again.asked) == len(set(again.asked))


def test_a_finished_round_asks_nothing(tmp_path: Path, unbroken: Any) -> None:
    Round(tmp_path).run()
    again = Round(tmp_path)
    assert again.run() == unbroken and again.asked == []


@pytest.mark.parametrize("barriers", [False, True])
def test_a_refused_prompt_is_set_aside_with_its_error_and_its_text(tmp_path: Path, barriers: bool) -> None:
    asked = Round(
        tmp_path, {"cluster__barriers": barriers}, refuse=lambda key: "too long" if key == "p4" else ""
    )
    scored, pairs, references, set_aside = asked.run()
    assert set_aside == {"p4": "too long"} and len(pairs) == len(references) == len(PROMPTS) - 1
    assert {s.completion.prompt_id for s in scored} == {p.prompt_id for p in PROMPTS} - {"p4"}
    rows = [json.loads(line) for line in (tmp_path / "round" / "set_aside.jsonl").read_text().splitlines()]
    assert rows == [{"prompt_id": "p4", "error": "too long", "prompt": "question 4"}]
    assert asked.run()[3] == set_aside  # read back


@pytest.mark.parametrize("barriers", [False, True])
def test_too_many_set_aside_end_the_round_and_what_is_done_is_kept(tmp_path: Path, barriers: bool) -> None:
    def refuse(key: str) -> str:
        return "too long" if key in ("p3", "p7", "p8") else ""

    changes = {"cluster__barriers": barriers, "cluster__faults": {"set_aside_share": 0.2}}
    with pytest.raises(ValueError, match=r"\b3 .*cluster\.faults\.set_aside_share=0\.2 .*\(2\)"):
        Round(tmp_path, changes, refuse=refuse).run()
    again = Round(
        tmp_path, {"cluster__barriers": barriers, "cluster__faults": {"set_aside_share": 0.3}}, refuse=refuse
    )
    assert set(again.run()[3]) == {"p3", "p7", "p8"}


def test_reference_answers_are_scored_beside_the_policys_own(tmp_path: Path) -> None:
    def extra(prompt: Prompt) -> Completion | None:
        if prompt.prompt_id == "p1":
            return None
        return Completion(prompt.prompt_id, N, "the data's own", (96,) * 60, "reference", 0.0, 0)

    streamed = Round(tmp_path / "streamed", extra=extra).run()
    assert Round(tmp_path / "barriers", {"cluster__barriers": True}, extra=extra).run() == streamed
    scored, pairs, _, _ = streamed
    assert len(scored) == N * len(PROMPTS) + len(PROMPTS) - 1
    # 60 x 96 is more than any answer of 40 tokens up to 97 has.
    assert all(
        (pair.chosen.finish_reason == "reference") == (pair.prompt.prompt_id != "p1") for pair in pairs
    )


def test_answers_of_another_policy_are_a_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Round(tmp_path)
    rules = asked._rules()
    monkeypatch.setattr(asked, "_rules", lambda: Rules(rules.request, rules.extra, rules.select, 1, 0))
    with pytest.raises(AssertionError, match=r"\[0\], .* 1$"):
        asked.run()


def test_a_round_without_workers_says_so_and_goes_on_later(tmp_path: Path, unbroken: Any) -> None:
    with pytest.raises(LostWorkers, match="reward: 2 of 2 "):
        Round(
            tmp_path,
            {"cluster__faults": {"restarts": 0}},
            fate=lambda role, rank, turn: "dies" if role == "reward" else "",
        ).run()
    assert Round(tmp_path).run() == unbroken
