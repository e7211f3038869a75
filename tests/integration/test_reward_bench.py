"""The reward benchmark on real Ray: the command end to end, resume, lengths, and scores that no batch changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from ultramed_rl.cli import app
from ultramed_rl.config import RewardBenchConfig, parse_config
from ultramed_rl.records import ScoredCompletion
from ultramed_rl.stages.reward_bench import RewardBenchResult, bench_reward
from ultramed_rl.store.tables import read_records

SUBSETS = ("easy", "Hard", "hep-go", "math-prm")
DRUGS = ("aspirin", "valium", "insulin", "codeine", "warfarin")
LONG = 3  # the pair that is too long for 128 tokens


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all runs of this file: the first one starts it."""
    import ray

    yield
    ray.shutdown()


def rows() -> list[dict[str, Any]]:
    """Pairs in both forms, of four subsets; one of them is too long."""
    found = []
    for i in range(16):
        question = f"What is {DRUGS[i % 5]} {i}?"
        sides = [f"It is {DRUGS[(i + k) % 5]}{'.' * (3 * i * k)}" for k in (0, 1)]
        if i == LONG:
            sides[1] += "!" * 100
        if i % 2:
            ask = {"role": "user", "content": question}
            turns = [[ask, {"role": "assistant", "content": side}] for side in sides]
            row = {"prompt": question, "chosen": turns[0], "rejected": turns[1], "label_type": SUBSETS[i % 4]}
        else:
            row = {"prompt": question, "chosen": sides[0], "rejected": sides[1], "subset": SUBSETS[i % 4]}
        found.append({"id": i, **row})
    return found


@pytest.fixture(scope="module")
def pairs(tiny_root: Path) -> Path:
    path = tiny_root / "bench-pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def settings(root: Path, pairs: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A benchmark of the tiny reward model in float32; `changes` are dotted keys."""
    model = {"path": str(root / "reward"), "precision": "float32", "max_length": 128}
    config: dict[str, Any] = {
        "type": "reward_bench",
        "run": {"name": name, "directory": str(root / "benches")},
        "model": {**model, "micro_batch_tokens": 512},
        "data": {"uri": str(pairs), "too_long": "drop"},
        "cluster": {"device": "cpu", "devices_per_node": 2, "device_memory_gib": 20.0},
        "tracking": {"wandb": "disabled"},
    }
    for key, value in changes.items():
        section, _, last = key.partition("__")
        config[section][last] = value
    return config


def bench(given: dict[str, Any], *, resume: bool = False) -> RewardBenchResult:
    return bench_reward(parse_config(given, kind=RewardBenchConfig), resume=resume)


def kept_scores(result: RewardBenchResult) -> list[float]:
    return [s.reward for s in read_records(ScoredCompletion, result.directory / "scored.parquet")]


@pytest.fixture(scope="module")
def one(tiny_root: Path, pairs: Path, cluster: None) -> RewardBenchResult:
    """All pairs in few passes, on one replica."""
    return bench(settings(tiny_root, pairs, "one", model__micro_batch_tokens=100_000))


def expected_margins(root: Path) -> dict[int, float]:
    """chosen - rejected by transformers' own classifier on whole conversations, without the pair too long."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(root / "reward").eval()
    tokenizer = AutoTokenizer.from_pretrained(root / "reward")

    def score(prompt: str, side: Any) -> float:
        answer = side if isinstance(side, str) else side[-1]["content"]
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        # The template ends a turn with a line break, at which no answer that was sampled ends.
        text = tokenizer.apply_chat_template(chat, tokenize=False).removesuffix("\n")
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return float(model(input_ids=ids).logits.item())

    return {
        row["id"]: score(row["prompt"], row["chosen"]) - score(row["prompt"], row["rejected"])
        for row in rows()
        if row["id"] != LONG
    }


def test_the_figures_are_those_of_transformers_scores(one: RewardBenchResult, tiny_root: Path) -> None:
    margins = expected_margins(tiny_root)
    assert len({margin > 0 for margin in margins.values()}) == 2, "a test of both outcomes"
    report = json.loads((one.directory / "reward_bench.json").read_text())
    accuracies = {}
    for place, subset in enumerate(("Easy", "Hard", "hep-go", "math-prm")):
        found = [margins[i] > 0 for i in margins if i % 4 == place]
        accuracies[subset] = sum(found) / len(found)
        figures = report["subsets"][subset]
        assert (figures["right"], figures["pairs"]) == (sum(found), len(found))
        assert figures["accuracy"] == accuracies[subset]
        assert figures["low"] < figures["accuracy"] or figures["accuracy"] == 0
        assert figures["too_long"] == (place == LONG % 4)
    assert report["pairs"] == 15 and report["rows"] == {"rows": 16, "misfit": 0}
    averages = {name: a["accuracy"] for name, a in report["averages"].items()}
    reasoning = (accuracies["hep-go"] + accuracies["math-prm"]) / 2
    assert averages == pytest.approx(
        {
            "Medical RewardBench": (accuracies["Easy"] + accuracies["Hard"]) / 2,
            "Reasoning": reasoning,
            "RewardBench": reasoning,
        }
    )
    failures = [json.loads(line) for line in (one.directory / "failures.jsonl").read_text().splitlines()]
    wrong = sorted((margin, str(i)) for i, margin in margins.items() if margin < 0)
    assert [f["pair_id"] for f in failures] == [name for _, name in wrong]
    assert [f["margin"] for f in failures] == pytest.approx([margin for margin, _ in wrong], abs=1e-3)
    assert all(f["chosen_score"] < f["rejected_score"] for f in failures)
    assert failures[0]["prompt"] == [{"role": "user", "content": rows()[int(wrong[0][1])]["prompt"]}]


def test_scores_depend_neither_on_the_batch_nor_on_the_replicas(
    one: RewardBenchResult, tiny_root: Path, pairs: Path
) -> None:
    cluster = {"device": "cpu", "devices_per_node": 2, "device_memory_gib": 20.0, "reward": {"replicas": 2}}
    split = settings(tiny_root, pairs, "split", model__micro_batch_tokens=1)
    other = bench({**split, "cluster": cluster})
    assert kept_scores(other) == pytest.approx(kept_scores(one), abs=1e-3)
    assert len(kept_scores(one)) == 30 and other.subsets == one.subsets


def test_a_finished_benchmark_is_read_back_without_scoring(
    one: RewardBenchResult, tiny_root: Path, pairs: Path
) -> None:
    import ray

    ray.shutdown()
    again = settings(tiny_root, pairs, "one", model__micro_batch_tokens=100_000)
    before = (one.directory / "scored.parquet").stat().st_mtime_ns
    (one.directory / "reward_bench.json").unlink()  # as where a run was killed after it had scored
    assert bench(again, resume=True) == one
    assert (one.directory / "reward_bench.json").is_file()
    assert bench(again, resume=True) == one
    assert not ray.is_initialized()
    assert (one.directory / "scored.parquet").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="--resume"):
        bench(again)
    changed = pairs.with_name("changed.jsonl")
    changed.write_text(pairs.read_text().replace("valium", "Valium"))
    pairs.rename(kept := pairs.with_name("kept.jsonl"))
    try:
        changed.rename(pairs)
        with pytest.raises(ValueError, match=r"data\.uri\b"):
            bench(again, resume=True)
    finally:
        kept.rename(pairs)


def test_a_pair_that_is_too_long_stops_the_run_before_ray(tiny_root: Path, pairs: Path) -> None:
    import ray

    ray.shutdown()
    with pytest.raises(
        ValueError, match=r"1 of 16 pairs are over model.max_length=128 \(math-prm 1\), the longest"
    ):
        bench(settings(tiny_root, pairs, "refused", data__too_long="refuse"))
    assert not ray.is_initialized() and not (tiny_root / "benches" / "refused").exists()


def test_a_number_that_is_not_finite_is_shown_and_never_right(
    tiny_root: Path, pairs: Path, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model whose head has overflowed."""
    from safetensors.torch import load_file, save_file

    broken = tiny_root / "broken-reward"
    broken.mkdir()
    for file in (tiny_root / "reward").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["score.weight"][:] = 3e38  # finite, and no sum of it is
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    result = bench(settings(tiny_root, pairs, "broken", model__path=str(broken), data__limit=3))
    assert [(s.pairs, s.right, s.non_finite) for s in result.subsets] == [(1, 0.0, 1)] * 3
    assert "not finite" in capsys.readouterr().out
    failures = [json.loads(line) for line in (result.directory / "failures.jsonl").read_text().splitlines()]
    assert len(failures) == 3 and {f["margin"] for f in failures} == {None}


def test_the_command_by_options_and_by_a_file_come_to_the_same(
    tiny_root: Path, pairs: Path, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    memory = "cluster.device_memory_gib=20"
    options = ["--model", str(tiny_root / "reward"), "--data", str(pairs), "--device", "cpu"]
    options += ["--limit", "9"]
    more = ["model.precision=float32", "model.max_length=128", "data.subset_column=prompt"]
    more += ["data.too_long=drop", "tracking.wandb=disabled", memory]
    first = CliRunner().invoke(app, ["reward-bench", *options, "--name", "by-options", *more])
    assert first.exit_code == 0, first.output
    file = tmp_path / "bench.yaml"
    file.write_text((tmp_path / "runs" / "by-options" / "config.yaml").read_text())
    second = CliRunner().invoke(app, ["reward-bench", str(file), "run.name=by-file"])
    assert second.exit_code == 0, second.output
    third = CliRunner().invoke(app, ["reward-bench", str(file), "run.name=by-file", "--resume"])
    assert third.exit_code == 0 and "answers in" not in third.output, third.output
    folders = [tmp_path / "runs" / name for name in ("by-options", "by-file")]
    reports = [json.loads((folder / "reward_bench.json").read_text()) for folder in folders]
    assert reports[0] == reports[1] and len(reports[0]["subsets"]) == 9
    (logged,) = [json.loads(line) for line in (folders[1] / "metrics.jsonl").read_text().splitlines()]
    assert logged["evaluation_index"] == 0 and logged["pairs"] == 8 and logged["too_long"] == 1
    table = second.output.splitlines()
    assert any(line.split()[:2] == ["subset", "accuracy"] for line in table)
    assert any("mean of the subsets" in line for line in table)


def test_a_recipe_ends_with_its_reward_models_benchmark(tiny_root: Path, pairs: Path, cluster: None) -> None:
    """The benchmark reads what the stage before has just trained."""
    bench_stage = settings(tiny_root, pairs, "unused", model__path="stage://reward")
    del bench_stage["run"]
    reward = {
        "type": "reward",
        "model": {"path": str(tiny_root / "policy"), "precision": "float32", "max_length": 256},
        "data": {"sources": [{"uri": str(pairs)}]},
        "training": {"learning_rate": 1e-3, "batch_size": 4, "max_steps": 2, "gradient_checkpointing": False},
        "cluster": {**bench_stage["cluster"], "trainer": {"ranks": 1, "zero_stage": 0}},
        "tracking": {"wandb": "disabled"},
    }
    recipe = {
        "type": "recipe",
        "run": {"name": "benched", "directory": str(tiny_root / "recipes")},
        "stages": {"reward": reward, "bench": bench_stage},
    }
    file = tiny_root / "benched.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    found = CliRunner().invoke(app, ["recipe", str(file)])
    assert found.exit_code == 0, found.output
    folder = tiny_root / "recipes" / "benched"
    report = json.loads((folder / "bench" / "reward_bench.json").read_text())
    assert report["model"] == str(folder / "reward" / "model") and report["pairs"] == 15
