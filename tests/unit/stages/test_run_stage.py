"""A training stage over ranks that write down what is asked of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_policy
from ultramed_rl.cluster.group import RanksLost
from ultramed_rl.config import parse_config
from ultramed_rl.kinds import KINDS
from ultramed_rl.stages import loop, run
from ultramed_rl.stages.run import run_stage


class Ranks:
    """Ranks of which the first are lost in their second step."""

    asked: list[str] = []
    losses = 0

    def __init__(self, config: Any, worker: type) -> None:
        folder = config.run.folder / "data"
        self.asked.append(f"launch {worker.__name__}, data {(folder / 'training.arrow').is_file()}")

    def load(self, layers: int | None) -> None:
        self.asked.append(f"load {layers}")

    def call(self, method: Any, samples: Any, *wanted: Any) -> None:
        self.asked.append(f"{method.__name__} {len(samples)}")

    def score_start(self, answers: Any, advance: Any) -> list[list[float]]:
        self.asked.append(f"score {len(answers)}")
        return [[-1.0] * len(group.answers) for group in answers]

    def train(self, schedule: Any, start: int, stop: int) -> Iterator[dict[str, float]]:
        for step in range(start, stop):
            if step == 1 and Ranks.losses:
                Ranks.losses -= 1
                raise RanksLost("rank 0")
            numbers = dict.fromkeys(("samples", "loss", "grad_norm", "tokens", "seconds", "mfu"), 1.0)
            yield {"step": float(step), **numbers}

    def save(self, directory: Path) -> None:
        (directory / "weights").write_text("w")

    def respawn_all(self, allowed: int) -> None:
        self.asked.append(f"restart, {allowed} allowed")

    def stop(self) -> None:
        self.asked.append("stop")


def config_of(root: Path, kind: str, rows: list[dict[str, Any]], **changes: Any) -> Any:
    make_policy(root / "policy")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "type": kind,
        "run": {"name": "s", "directory": str(root)},
        "model": {"path": str(root / "policy"), "max_length": 128},
        "data": {"sources": [{"uri": str(root / "rows.jsonl")}]},
        "training": {"learning_rate": 1e-5, "batch_size": 1},
        "cluster": {"device": "cpu", "device_memory_gib": 8.0},
        "tracking": {"wandb": "disabled"},
        **changes,
    }
    return parse_config(settings, kind=KINDS[kind].config_class)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(run, "StageWorkers", Ranks)
    monkeypatch.setattr(loop, "write_stage_card", lambda *_: None)
    monkeypatch.setattr(Ranks, "asked", [])
    monkeypatch.setattr(Ranks, "losses", 0)
    return Ranks.asked


CHATS = [
    {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "yes"}]}
    for i in range(3)
]
PAIRS = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(3)]


def test_ranks_come_after_the_data_and_start_again_when_they_are_lost(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranks, "losses", 1)
    result = run_stage(config_of(tmp_path, "sft", CHATS))
    again = ["load None", "learn_chats 3"]
    assert asked == ["launch PolicyWorker, data True", *again, "restart, 20 allowed", *again, "stop"]
    assert result.metrics["steps"] == 3 and (result.model / "weights").read_text() == "w"


def test_a_reward_model_is_loaded_with_the_layers_that_it_trains(tmp_path: Path, asked: list[str]) -> None:
    run_stage(config_of(tmp_path, "reward", PAIRS, trainable_layers=1))
    assert asked == ["launch RewardTrainWorker, data True", "load 1", "learn_ranking 3", "stop"]


def test_the_start_scores_all_answers_once_and_before_they_are_taught(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranks, "losses", 1)
    run_stage(config_of(tmp_path, "preference", PAIRS, objective={"type": "dpo", "beta": 0.1}))
    first, again = ["load None", "score 3", "learn_preferences 3"], ["load None", "learn_preferences 3"]
    assert asked == ["launch PolicyWorker, data True", *first, "restart, 20 allowed", *again, "stop"]
