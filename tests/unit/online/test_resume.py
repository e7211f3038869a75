"""What a run was started with and what it committed is the same when it is taken up again, or it says what is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.simulated.cases import Cases
from tests.simulated.outcome import Outcome, check_same
from tests.simulated.run import Simulation
from tests.tiny import make_policy, make_reward
from ultramed_rl.config import dump_config
from ultramed_rl.store.atomic import remove
from ultramed_rl.store.digests import digest_path

Change = Callable[[Path], object]
KILLED = 60  # a change of the disk in the midst of the first round


def models_of(known: Cases, path: Path) -> Path:
    """The cases' models and questions, to be changed by this test alone."""
    return shutil.copytree(known.models, path / "models")


def change_questions(change: Callable[[list[str]], list[str]]) -> Change:
    def changed(models: Path) -> None:
        file = models / "questions.jsonl"
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(change(lines)))

    return changed


def edit_template(models: Path) -> None:
    for file in (models / "policy").iterdir():
        if "chat_template" in file.read_text(errors="replace") or file.suffix == ".jinja":
            file.write_text(file.read_text().replace("<|im_end|>", "<|im_end|> ", 1))


ADDED = [json.dumps({"question": f"Is herb {i} safe?"}) + "\n" for i in range(20)]
CHANGES: dict[str, tuple[Change, set[str]]] = {
    "rows added": (change_questions(lambda rows: rows + ADDED), {"prompts", "prompts.sources.0.uri"}),
    "rows in another order": (
        change_questions(lambda rows: rows[::-1]),
        {"prompts", "prompts.sources.0.uri"},
    ),
    "an edited question": (
        change_questions(lambda rows: [rows[0].replace("safe", "harmful"), *rows[1:]]),
        {"prompts", "prompts.sources.0.uri"},
    ),
    "another answer": (
        change_questions(lambda rows: [*rows[:1], rows[1].replace("Yes.", "No."), *rows[2:]]),
        {"prompts.sources.0.uri"},
    ),
    "another policy of the same shape": (
        lambda models: make_policy(models / "policy", seed=9),
        {"policy.path"},
    ),
    "another reward model": (lambda models: make_reward(models / "reward", seed=9), {"reward.path"}),
    "a tokenizer's file": (
        lambda models: (models / "policy" / "tokenizer.json").write_text(
            (models / "policy" / "tokenizer.json").read_text() + "\n"
        ),
        {"policy.path"},
    ),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("finished", [False, True])
def test_what_a_run_is_made_from_is_compared(known: Cases, tmp_path: Path, name: str, finished: bool) -> None:
    """Nothing is started, nothing is written; the line names what changed and nothing else."""
    change, keys = CHANGES[name]
    simulation = Simulation(models_of(known, tmp_path), tmp_path / "runs")
    simulation.run(kill_at=None if finished else KILLED)
    before = digest_path(simulation.path)
    change(simulation.models)
    with pytest.raises(ValueError, match=r"^\S+/runs/tiny: ") as caught:
        simulation.run(resume=True)
    told = str(caught.value)
    inside = told[told.index("(") + 1 : told.rindex(")")]
    assert {part.split(": ")[0] for part in inside.split("; ")} == keys
    assert "\n" not in told and digest_path(simulation.path) == before


def test_what_is_put_back_goes_on_to_the_same_end(known: Cases, tmp_path: Path) -> None:
    expected, _ = known.unbroken("dpo")
    simulation = Simulation(models_of(known, tmp_path), tmp_path / "runs")
    simulation.run(kill_at=KILLED)
    questions = simulation.models / "questions.jsonl"
    rows = questions.read_text()
    questions.write_text(rows + "".join(ADDED))
    with pytest.raises(ValueError):
        simulation.run(resume=True)
    questions.write_text(rows)
    simulation.run(resume=True)
    check_same(simulation.outcome(), expected, "put back")


def test_a_run_that_never_began_may_be_mended(known: Cases, tmp_path: Path) -> None:
    """The engines cannot hold what a prompt needs: nothing was made, so that other questions are a new start."""
    simulation = Simulation(models_of(known, tmp_path), tmp_path / "runs", {"reward__path": "/nowhere"})
    with pytest.raises(ValueError, match="/nowhere"):
        simulation.run()
    (simulation.models / "questions.jsonl").write_text("".join(ADDED * 1))
    simulation.but(changes={}).run()


def test_a_run_of_before_inputs_were_kept_is_taken_up(known: Cases, tmp_path: Path) -> None:
    simulation = known.at("dpo", tmp_path)
    simulation.run(kill_at=KILLED)
    kept = simulation.config.run.folder / "inputs.json"
    content = kept.read_text()
    kept.unlink()
    simulation.run(resume=True)
    assert kept.read_text() == content


# -- committed rounds --------------------------------------------------------------------------------------


def in_order(outcome: Outcome) -> list[dict[str, Any]]:
    return sorted(outcome.log, key=lambda row: json.dumps(row, sort_keys=True))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("kill_at", [150, None], ids=["killed", "finished"])
@pytest.mark.parametrize("name", ["prompts", "scored", "pairs", "reference", "evaluation", "checkpoint"])
def test_a_changed_byte_of_a_committed_round_is_told(
    known: Cases, tmp_path: Path, name: str, kill_at: int | None
) -> None:
    """With its file, and a fix that costs no more than it must: then it comes to what it was."""
    expected, _ = known.unbroken("dpo")
    simulation = known.at("dpo", tmp_path)
    simulation.run(kill_at=kill_at)
    folder = simulation.config.run.folder / "rounds" / "000"
    artifact = folder / ("checkpoint" if name == "checkpoint" else f"{name}.parquet")
    file = artifact if artifact.is_file() else max(artifact.rglob("*.*"), key=lambda f: f.stat().st_size)
    flip(file)
    followed = name in ("scored", "checkpoint")
    fix = f"{folder} " if followed else rf"{name}\.json "
    with pytest.raises(ValueError, match=rf"^{artifact}: .* {fix}"):
        simulation.run(resume=True)
    (folder / f"{name}.json").unlink()
    if followed:
        with pytest.raises(ValueError, match=rf"^{folder}/{name}\.json: "):
            simulation.run(resume=True)
        shutil.rmtree(folder.parent)
    else:
        remove(artifact)
    simulation.run(resume=True)
    found = simulation.outcome()  # whose log has what was done again after what was there
    check_same(replace(found, log=in_order(found)), replace(expected, log=in_order(expected)), name)


def test_a_manifest_that_was_replaced_is_told(known: Cases, tmp_path: Path) -> None:
    simulation = known.at("dpo", tmp_path)
    simulation.run()
    folder = simulation.config.run.folder / "rounds"
    for end in ("json", "parquet"):
        shutil.copy(folder / "001" / f"prompts.{end}", folder / "000" / f"prompts.{end}")
    with pytest.raises(ValueError, match=rf"^{folder}/000/prompts\.json: "):
        simulation.run(resume=True)


def test_pruned_checkpoints_are_no_damage(known: Cases, tmp_path: Path) -> None:
    simulation = known.at("previous", tmp_path)
    simulation.run()
    assert not (simulation.config.run.folder / "rounds" / "000" / "checkpoint").exists()
    assert simulation.run(resume=True).ray.begun == []


def test_a_finished_run_asks_for_no_secret(
    known: Cases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    term = {"type": "judge", "model": "m", "base_url": "http://localhost:9/v1", "api_key_env": "JUDGE_KEY"}
    simulation = known.at("dpo", tmp_path)
    simulation.run()
    file = simulation.config.run.folder / "config.yaml"
    config = file.read_text()
    asking = simulation.but(changes={"reward__terms": [{**term, "weight": 0.1}]})
    file.write_text(dump_config(asking.config))
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    assert asking.run(resume=True).ray.begun == []
    file.write_text(config)


@pytest.mark.parametrize("name", ["scored", "reference"])
def test_with_overlap_a_rounds_answers_outlive_the_policy_that_gave_them(
    known: Cases, name: str, tmp_path: Path
) -> None:
    """When round 0 is committed nobody has policy 0 any more, whose answers round 1 learns."""
    expected, whole = known.unbroken("overlap")
    for kill_at in range(whole.disk.changes // 3, whole.disk.changes, 5):
        simulation = known.at("overlap", tmp_path / str(kill_at))
        rounds = simulation.config.run.folder / "rounds"
        simulation.run(kill_at=kill_at)
        if (rounds / "000" / "commit.json").exists():
            break
    (rounds / "001" / f"{name}.json").unlink()
    with pytest.raises(ValueError, match=rf"^{rounds}/001: .*{name}\.json.* {rounds}/000 "):
        simulation.run(resume=True)
    shutil.rmtree(rounds)
    simulation.run(resume=True)
    assert simulation.outcome().folders == expected.folders
