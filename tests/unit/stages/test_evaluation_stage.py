"""The stage that evaluates: what it leaves when a judge fails, and what it asks for when it is finished."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.simulated.ray import SimulatedRay
from tests.simulated.run import FAULTS, WORKERS, simulated
from tests.tiny import make_policy
from ultramed_rl.config import EvaluateConfig, parse_config
from ultramed_rl.evaluation.report import PolicyReport
from ultramed_rl.stages import evaluate
from ultramed_rl.stages.evaluate import PolicyBenchmarks, evaluate_policies
from ultramed_rl.tracking.status import read_status


class Engines:
    """Workers that are never needed."""

    def __init__(self, *_: Any) -> None:
        pass

    def stop(self) -> None:
        """Nothing was started."""

    stop_rollout = stop


class FakeBenchmarks:
    """Benchmarks that came to figures, and a judge that may fail."""

    fails = True
    made = 0

    def __init__(self, *_: Any) -> None:
        FakeBenchmarks.made += 1
        self.error: Exception | None = RuntimeError("judge: 401") if FakeBenchmarks.fails else None

    def ask(self, *_: Any) -> None:
        """Kept before."""

    score = judge = ask

    def conclude(self, folder: Path) -> dict[str, Any]:
        return {"tasks": {"medqa": {"items": 3}}}

    def metrics(self, name: str) -> dict[str, float]:
        return {"medqa": 0.5, "spread": math.nan}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvaluateConfig:
    monkeypatch.setattr(evaluate, "EvaluationWorkers", Engines)
    monkeypatch.setattr(evaluate, "PolicyBenchmarks", FakeBenchmarks)
    monkeypatch.setattr(FakeBenchmarks, "fails", True)
    monkeypatch.setattr(FakeBenchmarks, "made", 0)
    settings = {
        "type": "evaluate",
        "run": {"name": "policies", "directory": str(tmp_path)},
        "policies": {"tiny": str(make_policy(tmp_path / "policy"))},
        "policy": {"max_length": 128},
        "benchmarks": {"tasks": ["medqa"], "protocols": [{"type": "greedy", "max_new_tokens": 8}]},
        "cluster": {"device": "cpu", "device_memory_gib": 8.0, "rollout": {"kv_cache_gib": 0.1}},
        "tracking": {"wandb": "disabled"},
    }
    return parse_config(settings, kind=EvaluateConfig)


def test_what_there_is_is_written_with_the_error(config: EvaluateConfig) -> None:
    folder = config.run.folder
    with pytest.raises(RuntimeError, match="401"):
        evaluate_policies(config)
    left = json.loads((folder / "results.json").read_text())
    assert left["error"] == "judge: 401" and left["policies"]["tiny"]["medqa"] == 0.5
    assert left["tasks"] == {"medqa": {"items": 3}}
    assert read_status(folder).state == "failed"
    (folder / "status.json").unlink()
    assert read_status(folder).state == "stopped", "not finished, though there are results"

    FakeBenchmarks.fails = False
    found = evaluate_policies(config, resume=True)
    assert found.policies["tiny"]["medqa"] == 0.5 and math.isnan(found.policies["tiny"]["spread"])
    assert "error" not in json.loads((folder / "results.json").read_text())
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["medqa"] for row in rows] == [0.5]


def test_judges_score_every_policys_answers_beside_the_reward(tmp_path: Path) -> None:
    """Two policies' answers by the simulated engines; the rule's share and the length term's mean are counted again from the answers
    that are kept."""
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"question": f"Is drug {i} safe?"}) + "\n" for i in range(30)))
    paths = {
        name: str(make_policy(tmp_path / name, seed=seed)) for name, seed in (("first", 0), ("second", 1))
    }
    settings = {
        "type": "evaluate",
        "run": {"name": "judged", "directory": str(tmp_path)},
        "policies": paths,
        "policy": {"max_length": 128},
        "prompts": {
            "sources": [{"type": "question", "uri": str(asked)}],
            "held_out": 20,
            "per_round": 1,
            "max_prompt_tokens": 96,
        },
        "sampling": {"samples": 2, "temperature": 1.0, "max_new_tokens": 24},
        "reward": {"terms": [{"type": "length", "low": 4, "high": 8, "falloff": 4}]},
        "judges": [
            {"type": "rule", "name": "brief", "max_words": 9},
            {"type": "length", "name": "long", "free": 10},
        ],
        "bootstrap": 200,
        "cluster": {
            "device": "cpu",
            "device_memory_gib": 8.0,
            "rollout": {"kv_cache_gib": 0.1},
            "faults": FAULTS,
        },
        "tracking": {"wandb": "disabled"},
    }
    ray = SimulatedRay(WORKERS)
    with simulated(ray):
        result = evaluate_policies(parse_config(settings, kind=EvaluateConfig))
    means = {}
    for name in paths:
        answers = pq.read_table(result.directory / f"completions-{name}.parquet").to_pylist()
        assert len(answers) == 40
        brief = [len(answer["text"].split()) <= 9 for answer in answers]
        long = [-max(0, len(answer["token_ids"]) - 10) for answer in answers]
        figures = result.policies[name]
        assert figures["judge_brief_mean"] == pytest.approx(sum(brief) / 40)
        assert figures["judge_long_mean"] == pytest.approx(sum(long) / 40)
        means[name] = sum(long) / 40
    change = result.policies["second"]["judge_long_change"]
    assert change == pytest.approx(means["second"] - means["first"]) and means["second"] != means["first"]
    assert result.policies["first"]["judge_long_change"] == 0.0


def test_a_finished_evaluation_is_read_back_without_its_judge(config: EvaluateConfig) -> None:
    FakeBenchmarks.fails = False
    first = evaluate_policies(config)
    again = evaluate_policies(config, resume=True)
    assert (again.details, again.policies.keys()) == (first.details, first.policies.keys())
    assert FakeBenchmarks.made == 1


@pytest.mark.parametrize("what", ["judge", "general"])
def test_an_evaluation_keeps_what_a_judge_or_lm_eval_failed_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"{what}: down")

    monkeypatch.setattr(evaluate, "run_general", fail)
    run: Any = PolicyBenchmarks.__new__(PolicyBenchmarks)
    run.suite, run.further, run.judged, run.error = [], {"p": {}}, {}, None
    run.reports = {"p": PolicyReport("p", {}, ())}
    run.judges = SimpleNamespace(read=fail if what == "judge" else lambda *_: {})
    run.asked = {"p": SimpleNamespace(path="p")}
    section = None if what == "judge" else object()
    run.benchmarks = SimpleNamespace(contamination=None, general=section)
    run.runner = None
    policy = SimpleNamespace(precision="float32")
    run.config = SimpleNamespace(run=SimpleNamespace(seed=1), bootstrap=10, cluster=None, policy=policy)
    run.progress = SimpleNamespace(say=lambda _: None)
    run.judge(SimpleNamespace(rewards=SimpleNamespace(served=None)), None)
    assert run.conclude(tmp_path)["benchmarks"] == {"p": {"path": "p", "results": [], "averages": {}}}
    assert str(run.error) == f"{what}: down"
