"""Training on pairs that are ready: the same batches in the same order, whoever was faster and whatever was killed.

Gatherer, exchange and RoundTraining are the real ones; the policy notes what it is given and takes a while for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated import SimulatedCrew
from tests.gathering import PROMPTS, Round, run_config
from ultramed_rl.actors.trainer import TrainingPlace
from ultramed_rl.actors.turns import Turn
from ultramed_rl.cluster.pool import RanksLost
from ultramed_rl.config import ConfigError, RunConfig
from ultramed_rl.online.training import RoundTraining
from ultramed_rl.store import shards

SIZE, STEP_S = 3, 0.05
EARLY = {"training__early": True, "training__batch_size": SIZE, "cluster__layout": "disaggregated"}


class Killed(BaseException):
    """The driver is gone."""


class Policy:
    """Ranks as far as a training knows them."""

    restarts = 0

    def __len__(self) -> int:
        return 2

    @contextmanager
    def awake(self) -> Iterator[None]:
        yield


class LearningCrew(SimulatedCrew):
    """A simulated crew whose policy learns a batch in STEP_S virtual seconds; it dies at a step of `fatal`."""

    fatal: list[int] = []

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.policy: Any = Policy()
        self.learnt: list[list[str]] = []
        self.begun = 0

    def begin_training(self) -> None:
        self.learnt, self.begun = [], self.begun + 1

    def _learn(self, groups: Sequence[Any], references: Any, place: TrainingPlace, step: int) -> Any:
        assert place.most == len(PROMPTS) and step == len(self.learnt)
        assert [r.group_id for r in references] == [g.group_id for g in groups]
        self.learnt.append([group.prompt.prompt_id for group in groups])
        numbers = ("loss", "implicit_margin", "grad_norm", "tokens", "mfu", "seconds")
        return {"step": step, "samples": len(groups), **dict.fromkeys(numbers, 1.0)}

    def start_step(self, groups: Any, references: Any, place: Any, step: int) -> list[Any]:
        return [self.exchange.transport.now() + STEP_S, self._learn(groups, references, place, step)]

    def step_done(self, pending: Sequence[Any]) -> bool:
        return bool(self.exchange.transport.now() >= pending[0])

    def step_metrics(self, pending: Sequence[Any]) -> dict[str, float]:
        if self.fatal and pending[1]["step"] == self.fatal[0]:
            self.fatal.pop()
            raise RanksLost("policy: a rank died")
        return dict(pending[1])

    def go_on_training(self, groups: Any, references: Any, place: Any, start: int) -> Iterator[Any]:
        for step, first in enumerate(range(0, len(groups), SIZE), start):
            part = slice(first, first + SIZE)
            yield self._learn(groups[part], references[part], place, step)


class Watcher:
    def span(self, span: Any) -> None:
        assert span.role == "policy" and span.started <= span.ended


class Learning:
    """A round with early training, and what its policy learnt."""

    def __init__(self, path: Path, **own: Any) -> None:
        self.logged: list[int] = []
        self.metrics: dict[str, float] = {}
        self.crews: list[Any] = []
        self.round = Round(
            path,
            EARLY,
            crew=LearningCrew,
            training=self._training,
            hold=self._hold,
            after=self._after,
            **own,
        )

    def run(self) -> list[list[str]]:
        self.round.run()
        assert self.logged == list(range(1, len(self.crews[-1].learnt) + 1)), (
            "a step was logged twice, or not"
        )
        learnt: list[list[str]] = self.crews[-1].learnt
        return learnt

    def _training(self, config: RunConfig, crew: Any) -> RoundTraining:
        self.crews.append(crew)
        watcher: Any = Watcher()
        self.logged.clear()
        return RoundTraining(
            config, crew, watcher, 0, PROMPTS, lambda n, _: self.logged.append(n), self.logged.clear
        )

    def _hold(self, crew: Any, work: Callable[[], Any]) -> Any:
        while True:
            try:
                return work()
            except RanksLost:
                crew.policy.restarts += 1

    def _after(self, training: RoundTraining, pairs: Any, references: Any) -> None:
        told: list[int] = []
        crew = self.crews[-1]
        self.metrics = self._hold(crew, lambda: training.finish(pairs, references, told.append))
        assert sum(told[-len(pairs) :]) >= len(pairs)


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_RECORDS", 5)


@pytest.fixture(scope="module")
def in_order() -> list[list[str]]:
    """Every prompt of these rounds gives a pair."""
    names = [prompt.prompt_id for prompt in PROMPTS]
    return [names[i : i + SIZE] for i in range(0, len(names), SIZE)]


def test_batches_follow_the_prompts_and_begin_before_all_are_there(
    tmp_path: Path, in_order: list[list[str]]
) -> None:
    learning = Learning(tmp_path)
    assert learning.run() == in_order
    assert 1 <= learning.metrics["early_steps"] < len(in_order) == learning.metrics["policy_steps"]
    assert learning.crews[0].begun == 1


@pytest.mark.parametrize("role", ["rollout", "reward", "reference"])
@pytest.mark.parametrize("kind", ["dies", "hangs"])
def test_a_lost_worker_changes_no_batch(
    tmp_path: Path, in_order: list[list[str]], role: str, kind: str
) -> None:
    left = [2]

    def fate(name: str, rank: int, turn: Turn) -> str:
        if name != role or not left[0] or not turn.requests:
            return ""
        left[0] -= 1
        return kind

    assert Learning(tmp_path, fate=fate).run() == in_order and left == [0]


def test_a_prompt_that_is_set_aside_holds_nobody_up(tmp_path: Path) -> None:
    learning = Learning(tmp_path, refuse=lambda key: "no" if key == "p1" else "")
    names = [p.prompt_id for p in PROMPTS if p.prompt_id != "p1"]
    assert [name for batch in learning.run() for name in batch] == names and learning.metrics[
        "early_steps"
    ] >= 1


@pytest.mark.parametrize("fatal", [0, 1, 2])
def test_a_policy_that_dies_learns_all_again_from_the_first_batch(
    tmp_path: Path, in_order: list[list[str]], fatal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LearningCrew, "fatal", [fatal])
    learning = Learning(tmp_path)
    assert learning.run() == in_order
    assert learning.crews[0].begun == 2 and LearningCrew.fatal == []


def test_a_driver_that_is_killed_learns_the_same(tmp_path: Path, in_order: list[list[str]]) -> None:
    for point in range(1, 400, 4):
        calls = [point]

        def strike(calls: list[int] = calls) -> None:
            calls[0] -= 1
            if calls[0] == 0:
                raise Killed

        path = tmp_path / str(point)
        path.mkdir()
        try:
            Learning(path, on_events=strike).run()
        except Killed:
            assert Learning(path).run() == in_order, f"killed at event {point}"
        else:
            assert point > 8
            return
    raise AssertionError("it never ended")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cluster__layout": "colocated"}, r"cluster\.layout=colocated\b"),
        ({"cluster__barriers": True}, r"cluster\.barriers=true\b"),
        ({"training__epochs": 2}, r"training\.epochs=2\b"),
        ({"policy__lora": {"rank": 4}}, r".*policy\.lora\b"),
        ({"objective": {"type": "kto"}}, r"objective\.type=kto\b"),
    ],
)
def test_where_it_cannot_be_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.early=true: {said}"):
        run_config(tmp_path, **{**EARLY, **changes})
