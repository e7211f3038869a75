"""A stage's training over ranks that count: what a killed one goes on with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ultramed_rl.config import parse_config
from ultramed_rl.config.stages import RewardConfig, SftConfig
from ultramed_rl.records import Completion, PreferenceGroup, Prompt
from ultramed_rl.stages.loop import StageLoop
from ultramed_rl.store import StageDirectory
from ultramed_rl.tracking import Progress


class Ranks:
    """Ranks whose gradient is not finite at some steps, and which stop as real ones do."""

    def __init__(self, config: SftConfig | RewardConfig, bad: set[int]) -> None:
        self.most, self.bad, self.skipped = config.training.max_skipped_steps, bad, 0

    def train(self, schedule: Any, start: int, stop: int) -> Iterator[dict[str, float]]:
        for step in range(start, stop):
            self.skipped += step in self.bad
            if self.skipped > self.most:
                raise RuntimeError(f"{self.skipped} skipped")
            norm = math.nan if step in self.bad else 1.0
            yield {
                "step": step,
                "samples": 1,
                "loss": 1.0,
                "grad_norm": norm,
                "tokens": 1.0,
                "seconds": 1.0,
                "mfu": 0.5,
            }

    def evaluate(self) -> dict[str, float]:
        return {"loss": 0.5, "accuracy": 0.75}

    def save_state(self, directory: Path) -> None:
        (directory / "state").write_text("s")

    def load_state(self, directory: Path, skipped: int) -> None:
        self.skipped = skipped

    def save(self, directory: Path) -> None:
        (directory / "model").write_text("m")


class Log:
    """Where metrics go."""

    def __init__(self, store: StageDirectory) -> None:
        self.store = store

    def log(self, metrics: dict[str, float], step: int, kind: str) -> None:
        self.store.append_metrics({f"{kind}_index": step, **metrics})


@pytest.mark.parametrize(("bad", "ends"), [({1, 2, 7}, True), ({1, 2, 7, 8}, False), ({6, 7, 8}, True)])
def test_skipped_steps_count_on_after_a_kill(
    tmp_path: Path, bad: set[int], ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three are allowed: a stage that is killed after the 6th step and taken up has them in all, not anew."""
    monkeypatch.setattr("ultramed_rl.stages.loop.write_stage_card", lambda *_: None)
    config = parse_config(
        {
            "type": "sft",
            "run": {"name": "s", "directory": str(tmp_path)},
            "model": {"path": "m", "max_length": 128},
            "data": {"sources": [{"uri": "x"}]},
            "training": {
                "learning_rate": 1e-5,
                "max_steps": 10,
                "save_every": 3,
                "batch_size": 1,
                "max_skipped_steps": 3,
            },
        },
        kind=SftConfig,
    )

    def go_on(resume: bool, stop: int | None) -> None:
        with StageDirectory.open(config, resume) as store:
            ranks: Any = Ranks(config, bad)
            log: Any = Log(store)
            if stop is not None:
                train = ranks.train
                ranks.train = lambda schedule, start, end: train(schedule, start, _until(end, stop))
            StageLoop(config, store, ranks, (range(10), None), log, Progress()).run()

    def _until(end: int, stop: int) -> int:
        if end > stop:
            raise KeyboardInterrupt
        return end

    with pytest.raises(KeyboardInterrupt):
        go_on(False, 6)
    if ends:
        go_on(True, None)
    else:
        with pytest.raises(RuntimeError, match="4 skipped"):
            go_on(True, None)


def test_a_reward_models_accuracy_stands_beside_that_of_length_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ultramed_rl.stages.loop.write_stage_card", lambda *_: None)
    data = {
        "type": "reward",
        "run": {"name": "r", "directory": str(tmp_path)},
        "model": {"path": "m", "max_length": 128},
        "data": {"sources": [{"uri": "x"}], "evaluation_sources": [{"uri": "y"}]},
        "training": {"learning_rate": 1e-5, "batch_size": 1},
    }
    config = parse_config(data, kind=RewardConfig)
    prompt = Prompt("p", ({"role": "user", "content": "?"},), (1,))
    pairs = [
        PreferenceGroup(
            prompt,
            tuple(Completion("p", k, "", (1,) * n, "stop", 0.0, 0) for k, n in enumerate(sizes)),
            (1.0, 0.0),
        )
        for sizes in ((2, 5), (3, 4), (9, 8))
    ]
    with StageDirectory.open(config, False) as store:
        ranks: Any = Ranks(config, set())
        log: Any = Log(store)
        _, figures = StageLoop(config, store, ranks, (pairs, pairs), log, Progress()).run()
    for name in ("start_held_out", "held_out"):
        assert figures[f"{name}_accuracy"] == 0.75
        assert figures[f"{name}_length_accuracy"] == pytest.approx(2 / 3), (
            "the shorter one, of two pairs of three"
        )
