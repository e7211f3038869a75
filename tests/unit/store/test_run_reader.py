"""Whoever tells of a run says the same of its rounds: one that isn't committed, or no longer whole, is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.report_run import Plan, make_run
from ultramed_rl.config import RunConfig, load_any
from ultramed_rl.evaluation.lineage import Lineage
from ultramed_rl.report.online_run import read_online_run
from ultramed_rl.store import RunDirectory, RunReader
from ultramed_rl.store.cards import write_policy_card
from ultramed_rl.store.run_reader import read_commit
from ultramed_rl.tracking.status import read_status


def kill_before_commit(round_1: Path) -> None:
    """As of a run killed after the round's line in metrics.jsonl was written, and before its commit."""
    (round_1 / "commit.json").unlink()


def lose_manifest(round_1: Path) -> None:
    (round_1 / "pairs.json").unlink()


def change_manifest(round_1: Path) -> None:
    file = round_1 / "evaluation.json"
    file.write_text(file.read_text().replace('"digest": "', '"digest": "0'))


def tear_commit(round_1: Path) -> None:
    (round_1 / "commit.json").write_text('{"round": 1, "metr')


def lose_metrics(round_1: Path) -> None:
    (round_1 / "commit.json").write_text('{"round": 1, "phases": {}}')


@pytest.mark.parametrize(
    "damage", [kill_before_commit, lose_manifest, change_manifest, tear_commit, lose_metrics]
)
def test_store_status_report_and_lineage_agree_on_the_committed_rounds(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = make_run(tmp_path)
    assert len(RunReader(folder).rounds) == 2 and read_status(folder).state == "finished"
    damage(folder / "rounds" / "001")
    reader = RunReader(folder)
    assert len(reader.rows("round")) == 3, "the line of round 1 and the run's last one are logged"
    assert len(reader.rounds) == 1 and not reader.finished
    status = read_status(folder)
    assert (len(status.rounds), status.metrics["round"]["round"], status.state) == (1, 0.0, "stopped")
    online = read_online_run(reader)
    assert [one.index for one in online.rounds] == [0] and len(online.policies) == 2
    lineage = Lineage(str(folder))
    assert [len(list(source.texts())) for source in lineage.sources] == [6]
    assert any("rounds/001 (" in gap for gap in lineage.gaps)
    with RunDirectory.open(load_any(folder / "config.yaml"), resume=True) as store:
        assert store.committed_rounds() == 1 and read_commit(store.round(1).path) is None
        store.discard_metrics_after(1)
    assert len(RunReader(folder).rows("round")) == 1


def test_a_rounds_card_shows_the_committed_rounds_before_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path, Plan(rounds=3))
    kill_before_commit(folder / "rounds" / "001")
    config = load_any(folder / "config.yaml")
    assert isinstance(config, RunConfig)
    with RunDirectory.open(config, resume=True) as store:
        write_policy_card(store, store.round(2), tmp_path, {"loss_last": 0.5})
    card = (tmp_path / "README.md").read_text()
    assert re.findall(r"^\| (\d) \|", card, re.MULTILINE) == ["0"]


def test_rows_by_index_are_those_logged_last(tmp_path: Path) -> None:
    lines = [
        *({"step_index": i, "loss": loss} for i, loss in ((1, 0.5), (0, 0.9), (1, 0.4))),
        {"evaluation_index": 0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(row["step_index"], row["loss"]) for row in RunReader(tmp_path).rows("step")] == [
        (0, 0.9),
        (1, 0.4),
    ]
