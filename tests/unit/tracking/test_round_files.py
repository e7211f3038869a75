"""Samples and lineage are read from a round's folder, and come back out of wandb's and TensorBoard's own files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rounds import HOSTILE, finish_round
from tests.tiny import tiny_run
from tests.wandb_file import artifacts, finished_file, history, read_records
from ultramed_rl.config import RunConfig, parse_config
from ultramed_rl.store import ArtifactFolder, RunDirectory, RunReader
from ultramed_rl.tracking import Tracker
from ultramed_rl.tracking.round_files import made_by_stage, made_in_round, round_samples


def settings(root: Path, **changes: Any) -> RunConfig:
    return parse_config(tiny_run(root, tracking__sample_prompts=2, **changes))


@pytest.fixture
def store(tmp_path: Path) -> RunDirectory:
    opened = RunDirectory.open(settings(tmp_path), resume=False)
    for index in range(2):
        finish_round(opened, index)
    return opened


def track(store: RunDirectory, config: RunConfig) -> None:
    rounds = 2
    with Tracker(store, config) as tracked:
        for index in range(rounds):
            tracked.log({"loss": 0.5}, step=index + 1, kind="step")
            tracked.log({"reward_mean": 2.0 + index}, step=index, kind="round")
        tracked.log({"peak_memory_policy": 1.0}, step=rounds, kind="round")


# -- samples -----------------------------------------------------------------------------------------------


def test_a_few_prompts_are_shown_with_all_their_completions_best_first(store: RunDirectory) -> None:
    found = round_samples(store.round(1).path, 1, seed=7, prompts=2)
    assert [sample.sample for sample in found] == [1, 0, 2, 1, 0, 2]
    assert [sample.reward for sample in found] == [2.0, 0.5, -1.0] * 2
    assert [sample.chosen for sample in found] == ["chosen", "", "rejected"] * 2
    assert [sample.tokens for sample in found] == [2, 1, 3] * 2
    assert len({sample.prompt_id for sample in found}) == 2
    number = found[0].prompt_id.partition("-")[2]
    assert found[0].prompt == f"What is drug {number}?" and found[2].completion == HOSTILE


def test_the_shown_prompts_depend_on_seed_and_round_alone(store: RunDirectory) -> None:
    folder = store.round(0).path

    def shown(seed: int, index: int = 0) -> tuple[str, ...]:
        return tuple(sample.prompt_id for sample in round_samples(folder, index, seed, 2))

    assert shown(7) == shown(7)
    assert len({shown(seed) for seed in range(8)}) > 1 and len({shown(7, index) for index in range(8)}) > 1


def test_more_prompts_than_there_are_shows_all_and_none_shows_nothing(store: RunDirectory) -> None:
    folder = store.round(0).path
    assert len(round_samples(folder, 0, 7, 99)) == 6 * 3
    assert round_samples(folder, 0, 7, 0) == []
    (folder / "pairs.parquet").unlink()
    assert round_samples(folder, 0, 7, 2) == [], "a round that isn't so far"


# -- lineage -----------------------------------------------------------------------------------------------


def test_lineage_runs_from_policy_to_policy(store: RunDirectory) -> None:
    first, second = (made_in_round(store.round(index).path, index, "start/policy") for index in range(2))
    assert [(made.name, made.version) for made in first] == [("completions", 0), ("pairs", 0), ("policy", 1)]
    completions, pairs, policy = first
    assert completions.parents == {"policy-0": "start/policy"}
    assert pairs.parents == {"completions-0": completions.digest}
    assert policy.parents == {"pairs-0": pairs.digest, "policy-0": "start/policy"}
    assert (
        second[0].parents == {"policy-1": policy.digest} == {"policy-1": store.round(0).digest("checkpoint")}
    )
    assert policy.numbers == {"loss_last": 0.5} and pairs.numbers == {"rows": 6}


def test_a_round_under_way_has_the_lineage_that_it_has(store: RunDirectory) -> None:
    (store.round(1).path / "checkpoint.json").unlink()
    assert [made.name for made in made_in_round(store.round(1).path, 1, "")] == ["completions", "pairs"]


def test_a_stages_model_comes_from_its_data_and_its_start(tmp_path: Path) -> None:
    folder = ArtifactFolder(tmp_path)
    for name in ("data", "model"):
        folder.phase_directory(name, lambda path: {"n": float((path / "x").write_text("x"))})
    (model,) = made_by_stage(tmp_path, "base")
    assert model.parents == {"data": folder.digest("data"), "model": "base"}
    assert (model.kind, model.path) == ("model", tmp_path / "model")


# -- wandb -------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(store: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The .wandb file of a tracked run, by the real wandb."""
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    track(store, settings(tmp_path, tracking__wandb="offline", tracking__tags=["t"], tracking__group="g"))
    file = finished_file(store.path)
    return file


def test_wandbs_file_reads_back_with_metrics_tables_and_lineage(offline: Path, store: RunDirectory) -> None:
    records = read_records(offline)
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.display_name, run.run_group, list(run.tags)) == ("tiny", "g", ["t"])
    assert {item.key for item in run.config.update} >= {"policy", "objective", "training"}

    rows = history(records)
    assert {"policy_step": 2, "train/loss": 0.5} in rows and {
        "round": 1,
        "round_metrics/reward_mean": 3,
    } in rows
    tables = [row for row in rows if "samples.path" in row]
    assert [(row["round"], row["samples.nrows"]) for row in tables] == [(0, 6), (1, 6)]
    table = json.loads((offline.parent / "files" / tables[0]["samples.path"]).read_text())
    assert table["columns"][:5] == ["round", "prompt_id", "prompt", "sample", "completion"]
    assert HOSTILE in [row[4] for row in table["data"]], "a completion is not what the model wrote"

    made = {
        (a.name.partition("-")[0], json.loads(a.metadata)["version"]): a
        for a in artifacts(records)
        if a.type != "run_table"
    }
    assert set(made) == {
        (n, v + (n == "policy")) for n in ("completions", "pairs", "policy") for v in range(2)
    }
    policy = made["policy", 2]
    told = json.loads(policy.metadata)
    assert told["parents"] == {
        "pairs-1": store.round(1).digest("pairs"),
        "policy-1": store.round(0).digest("checkpoint"),
    }
    assert told["digest"] == store.round(1).digest("checkpoint")
    assert all(entry.ref.startswith("file://") for a in made.values() for entry in a.manifest.contents)


def test_wandb_sync_takes_the_directory_and_nothing_lies_elsewhere(
    offline: Path, store: RunDirectory
) -> None:
    tool = Path(sys.executable).with_name("wandb")
    command = [str(tool), "sync", "--dry-run", str(offline.parent)]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "HOME": str(store.path)}
    )
    assert "Would sync 1 run" in found.stdout + found.stderr
    files = {
        Path(entry.local_path)
        for a in artifacts(read_records(offline))
        for entry in a.manifest.contents
        if entry.local_path
    }
    assert files and all(store.path in file.parents and file.is_file() for file in files)


def test_a_resumed_run_goes_on_under_its_id(offline: Path, store: RunDirectory, tmp_path: Path) -> None:
    shutil.move(offline.parent, tmp_path / "first")  # two starts within a second share a folder
    track(store, settings(tmp_path, tracking__wandb="offline"))
    assert finished_file(store.path).name == offline.name, "the id is in the name"


def test_checkpoints_are_uploaded_where_asked_for(
    store: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    track(store, settings(tmp_path, tracking__wandb="offline", tracking__upload_checkpoints=True))
    file = finished_file(store.path)
    made = artifacts(read_records(file))
    first, _ = [a for a in made if a.type == "model"]
    sizes = {entry.path: Path(entry.local_path).stat().st_size for entry in first.manifest.contents}
    assert sizes == {"config.json": 12, "model.safetensors": 1000}
    pairs = next(a for a in made if a.name.startswith("pairs"))
    assert [entry.ref for entry in pairs.manifest.contents] == [
        (store.round(0).path / "pairs.parquet").as_uri()
    ]


# -- tensorboard -------------------------------------------------------------------------------------------


def test_tensorboards_events_read_back(store: RunDirectory, tmp_path: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    track(store, settings(tmp_path, tracking__tensorboard=True))
    events = loading.EventAccumulator(str(store.path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("round_metrics/reward_mean")] == [(0, 2.0), (1, 3.0)]
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2]
    texts = [tag for tag in events.Tags()["tensors"] if tag.startswith("samples/")]
    assert len(texts) == 2 * 2 * 3
    (shown,) = events.Tensors(next(tag for tag in texts if tag.startswith("samples/p0-") and "/2/" in tag))
    lines = shown.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "reward -1 rejected"
    assert "    <script>alert(1)</script> [bold]not markup[/bold]" in lines, "markup isn't kept as text"
    lineage = events.Tensors("lineage/policy/text_summary")
    assert [event.step for event in lineage] == [1, 2]


def test_a_missing_tensorboard_is_a_warning_with_its_install_line(
    store: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = settings(tmp_path, tracking__tensorboard=True)
    with pytest.warns(UserWarning, match=r"'ultramed_rl\[tensorboard\]'"):
        track(store, config)
    assert len(RunReader(store.path).metrics) == 5
