"""Metrics are always written, wandb never stops a run or sees a secret, and people see progress."""

from __future__ import annotations

import json
import math
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import tenacity

from tests.rounds import finish_round
from tests.tiny import tiny_run
from tests.wandb_file import finished_file
from ultramed_rl.config import RunConfig, parse_config
from ultramed_rl.store import RunDirectory, RunReader
from ultramed_rl.tracking import Progress, Tracker, console, render_rounds
from ultramed_rl.tracking.tracker import Backend
from ultramed_rl.tracking.verdict import RunVerdict, give_verdict

KEY = "0123456789abcdef" * 2 + "deadbeef"  # as long as a real one


def config(root: Path, wandb: str) -> RunConfig:
    return parse_config(tiny_run(root, tracking__wandb=wandb, tracking__tags=["test"]))


def rows_of(store: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.path / "metrics.jsonl").read_text().splitlines()]


class FakeRun:
    """Records what is logged; fails in the calls that it is told to fail in."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.calls = failures, 0
        self.logged: list[Any] = []
        self.finished: int | None = None
        self.summary: dict[str, Any] = {}

    def log(self, row: dict[str, Any]) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError("no route to wandb")
        self.logged.append(row)

    id, url = "0a1b", "https://wandb.invalid/0a1b"

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def finish(self, exit_code: int) -> None:
        self.finished = exit_code


class FakeWandb(types.ModuleType):
    """Stands in for the wandb module and keeps what `init` was given."""

    Settings = dict

    def __init__(self, run: FakeRun | Exception) -> None:
        super().__init__("wandb")
        self.run, self.asked = run, []  # type: ignore[var-annotated]

    def init(self, **arguments: Any) -> FakeRun:
        self.asked.append(arguments)
        if isinstance(self.run, Exception):
            raise self.run
        return self.run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenacity, "wait_random_exponential", lambda *_, **__: lambda _: 0.0)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def install(monkeypatch: pytest.MonkeyPatch, run: FakeRun | Exception) -> FakeWandb:
    fake = FakeWandb(run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


# -- tracker -----------------------------------------------------------------------------------------------


def test_jsonl_is_written_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, FakeRun())
    settings = config(tmp_path, "disabled")
    with RunDirectory.open(settings, resume=False) as store, Tracker(store, settings) as tracked:
        tracked.log({"round": 0, "loss": 0.5}, step=1, kind="step")
        tracked.log({"round": 0, "reward": math.inf}, step=0, kind="round")
    step, end = rows_of(store)
    assert (step["step_index"], step["loss"]) == (1, 0.5)
    assert (end["round_index"], end["reward"]) == (0, None)
    assert fake.asked == []


def test_wandb_gets_axes_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun()
    fake = install(monkeypatch, run)
    settings = config(tmp_path, "offline")
    with RunDirectory.open(settings, resume=False) as store:
        with Tracker(store, settings) as tracked:
            tracked.log({"loss": 0.5}, step=4, kind="step")
            tracked.log({"reward": 2.0}, step=1, kind="round")
        assert run.logged == [
            {"policy_step": 4, "train/loss": 0.5},
            {"round": 1, "round_metrics/reward": 2.0},
        ]
        assert run.finished == 0
        with pytest.raises(KeyError), Tracker(store, settings):
            raise KeyError
        assert run.finished == 1
    first, second = fake.asked
    assert first["id"] == second["id"], "a resumed run goes on under its id"
    assert first["config"] == settings.model_dump(mode="json") and first["dir"] == str(store.path)


def test_a_hiccup_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(failures=2)
    install(monkeypatch, run)
    settings = config(tmp_path, "offline")
    with RunDirectory.open(settings, resume=False) as store, Tracker(store, settings) as tracked:
        tracked.log({"loss": 0.5}, step=1, kind="step")
    assert len(run.logged) == 1 and run.calls == 3


@pytest.mark.parametrize("where", ["start", "log"])
def test_a_broken_wandb_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, recwarn: pytest.WarningsRecorder
) -> None:
    run = FakeRun(failures=99)
    fake = install(monkeypatch, OSError("no wandb today") if where == "start" else run)
    settings = config(tmp_path, "offline")
    with RunDirectory.open(settings, resume=False) as store, Tracker(store, settings) as tracked:
        for step in range(3):
            tracked.log({"loss": 0.5}, step=step, kind="step")
    messages = [str(w.message) for w in recwarn if str(w.message).startswith("wandb ")]
    assert len(messages) == 1 and re.search(rf"\b{where} \(", messages[0])
    assert len(fake.asked) == (3 if where == "start" else 1) and run.calls == (3 if where == "log" else 0)
    assert [row["step_index"] for row in rows_of(store)] == [0, 1, 2]


def verdict_of(low: float, high: float, **judges: float) -> RunVerdict:
    """After one round: the reward's interval, and the middle of each judge's."""
    row = {"round": 0.0, "eval_change": (low + high) / 2, "eval_change_low": low, "eval_change_high": high}
    for name, value in judges.items():
        row |= {f"judge_{name}_{key}": value for key in ("change", "change_low", "change_high")}
    verdict = give_verdict([row], dict.fromkeys(judges, "likeness"))
    assert verdict is not None
    return verdict


class Raising:
    """A backend whose every call fails, or all from one on."""

    name = "nowhere"

    def __init__(self, *calls: str) -> None:
        self.failing, self.called = set(calls), []  # type: ignore[var-annotated]

    def __getattr__(self, call: str) -> Any:
        def act(*_: Any) -> None:
            self.called.append(call)
            if call in self.failing:
                raise ConnectionError(f"{call} refused")

        return act


@pytest.mark.parametrize("call", ["start", "log", "show", "keep", "judge", "alert", "finish"])
def test_a_backend_that_raises_stops_no_training_and_warns_once(
    tmp_path: Path, call: str, recwarn: pytest.WarningsRecorder
) -> None:
    settings = config(tmp_path, "disabled")
    broken, sound = Raising(call), Raising()
    backends: list[Backend] = [broken, sound]  # type: ignore[list-item]
    with RunDirectory.open(settings, resume=False) as store:
        finish_round(store, 0)
        with Tracker(store, settings, backends) as tracked:
            for index in range(2):
                tracked.log({"loss": 0.5}, step=index, kind="step")
                tracked.log({"reward_mean": 1.0}, step=0, kind="round")
                tracked.judge(verdict_of(0.5, 1.0))
                tracked.alert("stall", f"nothing has finished for {60 * 2**index} s")
        kept = RunReader(store.path).metrics
    assert [(row.get("loss"), row.get("reward_mean")) for row in kept] == [(0.5, None), (None, 1.0)] * 2
    warned = [str(w.message) for w in recwarn if "nowhere" in str(w.message)]
    assert len(warned) == 1 and f"{call} refused" in warned[0]
    assert broken.called.count(call) == 3, "retried twice, then left alone"
    assert sound.called.count("log") == 4 and sound.called.count("show") == 2, "the other one goes on"
    if call in ("show", "keep", "alert"):
        assert broken.called.count("log") == 4, "metrics go on without the rest"


def test_real_wandb_offline_writes_and_keeps_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    secrets = {"WANDB_API_KEY": KEY, "HF_TOKEN": "hf_" + "s3cr3t" * 5}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    settings = config(tmp_path, "offline")
    with RunDirectory.open(settings, resume=False) as store, Tracker(store, settings) as tracked:
        tracked.log({"loss": 0.5}, step=1, kind="step")
    log = finished_file(store.path)
    files = [path for path in store.path.rglob("*") if path.is_file()]
    assert b"train/loss" in log.read_bytes()
    for path in files:
        for value in secrets.values():
            assert value.encode() not in path.read_bytes(), path
    collected = {"wandb-metadata.json", "requirements.txt", "diff.patch", "output.log"}
    assert not collected & {path.name for path in files}, "something of the machine or code was kept"


# -- progress ----------------------------------------------------------------------------------------------


def test_lines_where_nobody_watches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 4.0, 11.0, 11.0, 15.0, 22.0, 22.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    shown = Progress()
    shown.terminal = False
    with shown.phase("generate", 40, unit="completions") as bar:
        for _ in range(4):
            bar.advance(10)
    first, second, last = capsys.readouterr().out.splitlines()
    assert (first, second) == ("generate: 20/40 completions", "generate: 40/40 completions")
    assert last.startswith("generate: 40 completions ") and last.endswith(" completions/s")


def test_a_bar_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress()
    shown.terminal = True
    with shown.phase("score", 2, unit="pairs") as bar:
        bar.advance(2)
    assert capsys.readouterr().out.splitlines()[-1].startswith("score: 2 pairs ")


def test_a_phase_that_fails_is_not_called_done(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress()
    shown.terminal = False
    with pytest.raises(KeyError), shown.phase("score", 2, unit="pairs"):
        raise KeyError
    assert capsys.readouterr().out == ""


# -- summary -----------------------------------------------------------------------------------------------

ROW = {
    "round": 0,
    "pairs": 320,
    "margin_mean": 4.725,
    "loss_first": 0.6931,
    "loss_last": 0.6482,
    "implicit_accuracy": 0.5312,
    "kl_to_reference": 0.0,
    "reward_mean": 3.36,
    "eval_reward_mean": 3.35,
    "eval_change": -0.01,
    "eval_change_low": -0.76,
    "eval_change_high": 0.7,
    "eval_win_rate": 0.48,
    "eval_length_mean": 31.4,
    "eval_finished_share": 0.645,
    "sync_seconds": 3.08,
    "seconds": 1335.3,
}


def test_the_table_is_narrow_and_says_what_it_does_not_know() -> None:
    unknown = {k: v for k, v in ROW.items() if k != "sync_seconds"}
    heading, *lines = render_rounds([ROW, {**unknown, "round": 1, "loss_last": math.nan}]).splitlines()
    assert heading.split()[:3] == ["round", "pairs", "margin"] and len(lines) == 2
    assert max(map(len, [heading, *lines])) <= 110
    assert "-0.01 [-0.76, +0.70]" in lines[0] and "0.693>0.648" in lines[0] and "1335" in lines[0]
    assert "0.693>-" in lines[1] and lines[1].split()[-2] == "-"


def test_judges_have_a_column_each_in_the_table() -> None:
    judged = {"judge_skill_change": 0.3, "judge_skill_change_low": 0.125, "judge_skill_change_high": 0.5}
    heading, first, second = render_rounds([ROW, {**ROW, **judged}]).splitlines()
    assert heading.split().count("skill") == 1 and "[+0.12, +0.50]" in second and "[+0.12" not in first
