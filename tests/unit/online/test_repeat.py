"""`repeat`: one config at several seeds, over simulated workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.simulated.cases import Cases
from tests.simulated.ray import SimulatedRay
from tests.simulated.run import WORKERS, simulated
from ultramed_rl.cli import app
from ultramed_rl.config import dump_config


@pytest.fixture
def config(known: Cases, tmp_path: Path) -> Path:
    path = tmp_path / "my.yaml"
    path.write_text(dump_config(known.at("dpo", tmp_path).config))
    return path


def repeat(*arguments: object) -> Result:
    with simulated(SimulatedRay(WORKERS, lambda call: "", lambda *_: None)):
        return CliRunner().invoke(app, ["repeat", *map(str, arguments)])


def test_each_seed_is_a_run_and_all_are_reported(config: Path, tmp_path: Path) -> None:
    found = repeat(config, "--seeds", 7, 11, "run.rounds=1")
    assert found.exit_code == 0, found.output
    report = tmp_path / "tiny-seeds.json"
    numbers = json.loads(report.read_text())
    assert [(run["seed"], run["rounds"]) for run in numbers["runs"]] == [(7, 1), (11, 1)]
    assert str(report) in found.stdout and "seed 11" in found.stdout
    changes = []
    for seed in (7, 11):
        commit = json.loads((tmp_path / f"tiny-seed{seed}/rounds/000/commit.json").read_text())
        changes.append(commit["metrics"]["eval_change"])
    reward = numbers["measures"]["reward_change"]
    assert reward["by_run"] == pytest.approx(changes) and reward["low"] <= reward["mean"] <= reward["high"]

    # A third seed: the two that are finished are read, whatever the machine has of what they need.
    before = (tmp_path / "tiny-seed7/metrics.jsonl").read_bytes()
    found = repeat("--seeds", 7, 11, 13, config, "run.rounds=1", "--json")
    assert found.exit_code == 0, found.output
    *_, seeds, result = map(json.loads, found.stdout.splitlines())
    assert seeds["event"] == "seeds" and seeds["measures"]["reward_change"]["by_run"][:2] == pytest.approx(
        changes
    )
    assert result["ok"] and result["output"] == str(report)
    assert (tmp_path / "tiny-seed7/metrics.jsonl").read_bytes() == before
    # Under another config they are other runs.
    found = repeat(config, "--seeds", 7, "run.rounds=1", "pairs.min_margin=0.5")
    assert found.exit_code == 2 and "tiny-seed7" in found.stderr and "pairs.min_margin" in found.stderr


def test_a_run_that_was_begun_goes_on(known: Cases, config: Path, tmp_path: Path) -> None:
    changes = {"run__name": "tiny-seed7", "run__seed": 7, "run__rounds": 1}
    assert known.at("dpo", tmp_path).but(changes=changes).run(kill_at=12).killed
    assert (tmp_path / "tiny-seed7/config.yaml").is_file()
    found = repeat(config, "--seeds", 7, "run.rounds=1", "--dry-run")
    assert found.exit_code == 0 and not (tmp_path / "tiny-seeds.json").exists()
    found = repeat(config, "--seeds", 7, "run.rounds=1")
    assert found.exit_code == 0, found.output
    assert "1 seed" in found.stdout, "it can't tell"
    assert json.loads((tmp_path / "tiny-seeds.json").read_text())["measures"]["reward_change"]["low"] is None


def test_a_dry_run_starts_nothing(config: Path, tmp_path: Path) -> None:
    found = repeat(config, "--seeds", 7, 11, "--dry-run", "--json")
    assert found.exit_code == 0, found.output
    one, two, result = map(json.loads, found.stdout.splitlines())
    assert (one["name"], two["name"], two["seed"]) == ("tiny-seed7", "tiny-seed11", 11) and result["dry_run"]
    assert not list(tmp_path.glob("tiny*"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--seeds", "7", "7"], "7 7"),
        (["--seeds", "7", "007"], "7 007"),
        (["--seeds", "x"], "x"),
        (["--seeds", "²"], "²"),
        ([], "--seeds"),
        (["--seeds", "7", "run.name=x y"], "run.name"),
        (["--seeds", "7", "run.sed=1"], "run.sed"),
    ],
)
def test_mistakes_are_told_before_anything(
    config: Path, tmp_path: Path, arguments: list[str], named: str
) -> None:
    found = repeat(config, *arguments)
    assert found.exit_code == 2 and named in found.stderr and not list(tmp_path.glob("tiny*"))


def test_a_config_is_needed_and_an_online_one(tmp_path: Path) -> None:
    assert repeat("--seeds", 1, 2).exit_code == 2
    stage = tmp_path / "sft.yaml"
    stage.write_text(
        "type: sft\nrun: {name: s}\nmodel: {path: m}\ndata: {sources: [{uri: x}]}\ntraining: {learning_rate: 1.0e-5}\n"
    )
    found = repeat(stage, "--seeds", 1, 2)
    assert found.exit_code == 2 and "sft" in found.stderr
