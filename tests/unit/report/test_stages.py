"""Reports of stages, in their simpler form, and what a run keeps of its environment."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_run
from tests.unit.report.test_run_report import Reader
from ultramed_rl.config import parse_config
from ultramed_rl.online.run import write_own_report
from ultramed_rl.report.build import write_report
from ultramed_rl.report.comparison import write_comparison
from ultramed_rl.store import ArtifactFolder, RunDirectory
from ultramed_rl.tracking import Progress


def stage(root: Path, kind: str, name: str = "stage", **files: Any) -> Path:
    """A folder with a config, and JSON files by name."""
    folder = root / name
    folder.mkdir()
    (folder / "config.yaml").write_text(f"type: {kind}\nrun: {{name: {name}, seed: 3}}\n")
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


def page_of(folder: Path) -> Reader:
    return Reader(write_report(folder).read_text(encoding="utf-8"))


def trained(root: Path, name: str, last: float) -> Path:
    folder = stage(root, "reward", name)
    rows: list[dict[str, float]] = [{"evaluation_index": 0, "time": 10.0, "loss": 0.7, "accuracy": 0.5}]
    rows += [{"step_index": n, "time": 11.0 + n, "loss": 0.7 - 0.1 * n, "seconds": 1.0} for n in range(3)]
    rows.append({"evaluation_index": 3, "time": 75.0, "loss": last, "accuracy": 0.75})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"half')
    held_out = {
        "start_held_out_loss": 0.7,
        "held_out_loss": last,
        "held_out_accuracy": 0.75,
        "start_held_out_accuracy": 0.5,
        "held_out_length_accuracy": 0.625,
    }
    ArtifactFolder(folder).phase_directory("data", lambda _: {"rows": 12.0, "too_long": 2.0})
    ArtifactFolder(folder).phase_directory("model", lambda _: {"samples": 10.0, "steps": 3.0, **held_out})
    return folder


def test_a_training_stage_is_judged_by_its_held_out_loss(tmp_path: Path) -> None:
    page = page_of(trained(tmp_path, "good", 0.4))
    ((tone, verdict),) = page.callouts
    assert tone == "good" and re.search(
        r"\b0\.700 .*\b0\.400 (?s:.*)\b50\.0% .*\b75\.0% (?s:.*)\b62\.5%", verdict
    )
    assert "95%" not in verdict and "too long" in page.text and "1 min 05 s" in page.text
    ((tone, verdict),) = page_of(trained(tmp_path, "bad", 0.9)).callouts
    assert tone == "bad" and re.search(r"\b0\.700 .*\b0\.900 ", verdict)


def test_a_stage_under_way_says_how_far_it_is(tmp_path: Path) -> None:
    folder = stage(tmp_path, "sft")
    (folder / "metrics.jsonl").write_text('{"step_index": 0, "loss": 1.0}\n{"step_index": 1, "loss": 0.5}\n')
    ((tone, said),) = page_of(folder).callouts
    assert tone == "plain" and re.findall(r"\d+", said) == ["2"]


def test_an_evaluation_names_only_differences_that_tests_find(tmp_path: Path) -> None:
    score = {"items": 100, "accuracy": 0.5, "low": 0.4, "high": 0.6}
    better = {"items": 100, "accuracy": 0.7, "low": 0.6, "high": 0.8}
    tasks = ("medqa", "pubmedqa")
    results = {
        "policies": {"base": {}, "ours": {}},
        "benchmarks": {
            "base": {"results": [{"task": t, "protocol": "greedy", "score": score} for t in tasks]},
            "ours": {"results": [{"task": t, "protocol": "greedy", "score": better} for t in tasks]},
        },
        "comparisons": {
            "ours": [
                {"task": t, "protocol": "greedy", "change": 0.2, "low": 0.0, "high": 0.4, "p_value": p}
                for t, p in zip(tasks, (0.0004, 0.2), strict=True)
            ]
        },
    }
    page = page_of(stage(tmp_path, "evaluate", results=results))
    ((_, verdict),) = page.callouts
    assert re.search(r"\bours: .*\bmedqa, greedy \(\+20\.0%\)", verdict) and "pubmedqa" not in verdict
    assert "70.0%*** (60% to 80%)" in page.text and "70.0% (60% to 80%)" in page.text


def test_a_reward_benchmark_shows_subsets_with_intervals(tmp_path: Path) -> None:
    subsets = {
        "Easy": {
            "accuracy": 0.75,
            "low": 0.3,
            "high": 0.95,
            "pairs": 4,
            "ties": 1,
            "length_accuracy": 0.625,
            "non_finite": 0,
            "too_long": 0,
        },
        "Hard": {"pairs": 0, "ties": 0, "non_finite": 0, "too_long": 3},
    }
    bench = {
        "model": "<b>m</b>",
        "pairs": 4,
        "subsets": subsets,
        "averages": {"Medical": {"accuracy": 0.75, "length_accuracy": 0.55, "missing": ["Human"]}},
    }
    page = page_of(stage(tmp_path, "reward_bench", reward_bench=bench))
    ((_, verdict),) = page.callouts
    assert re.search(r"\b4 .*<b>m</b>(?s:.*)\bMedical: 75\.0%.* 55\.0%, .*\b1\b", verdict)
    assert "75.0% (30% to 95%)" in page.text and "62.5%" in page.text


def test_a_data_stage_shows_its_counts(tmp_path: Path) -> None:
    folder = stage(tmp_path, "data")
    ((tone, said),) = page_of(folder).callouts
    assert tone == "plain" and not re.search(r"\d", said)
    ArtifactFolder(folder).phase_directory(
        "records", lambda _: {"records": 30.0, "kept": 11.0, "dropped_x": 0.0}
    )
    page = page_of(folder)
    assert "11 kept, 30 records" in page.callouts[0][1] and "dropped x" in page.text


def test_stages_compare_by_their_figures_without_a_claim(tmp_path: Path) -> None:
    runs = [trained(tmp_path, "one", 0.4), trained(tmp_path, "two", 0.5)]
    page = Reader(write_comparison(runs, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.callouts == [] and re.search(r"held out loss\s+0\.4\s+0\.5\b", page.text)


def test_a_run_keeps_its_first_starts_environment_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_environment")
    config = parse_config(tiny_run(tmp_path))
    with RunDirectory.open(config, resume=False) as store:
        path = store.path / "environment.json"
    kept = path.read_text()
    found = json.loads(kept)
    assert found["packages"]["torch"] and found["python"] and found["cpus"] >= 1
    assert "secret" not in kept and str(Path.home()) not in kept
    path.write_text(kept.replace(found["time"], "2001-01-01T00:00:00Z"))
    with RunDirectory.open(config, resume=True):
        pass
    assert "2001" in path.read_text()


def test_a_start_that_bad_input_stops_leaves_its_name_free(tmp_path: Path) -> None:
    config = parse_config(tiny_run(tmp_path))
    with pytest.raises(ValueError, match="bad input"), RunDirectory.open(config, resume=False):
        raise ValueError("bad input")
    with RunDirectory.open(config, resume=False):
        pass


def test_a_report_that_fails_is_a_warning_and_no_end(tmp_path: Path) -> None:
    folder = stage(tmp_path, "online")
    (folder / "config.yaml").write_text("[")
    with pytest.warns(UserWarning, match=rf"{folder}/config\.yaml.*`ultramed-rl report {folder}`"):
        write_own_report(folder, Progress())
