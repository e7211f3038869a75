"""Sections of language models that judge: what goes together, and the example of the docs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tiny import tiny_run
from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.config import ConfigError, EvaluateConfig, parse_config
from ultramed_rl.config.judge_models import JudgeEngine

DOCS = Path(__file__).parents[3] / "docs"
ENGINE = {"path": "/models/judge", "kv_cache_gib": 1.0}
API = {"model": "m", "base_url": "http://h/v1"}


def term(**fields: Any) -> dict[str, Any]:
    return {"reward__terms": [{"type": "judge", **fields}]}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (term(), "base_url"),
        (term(**API, engine=ENGINE), "engine"),
        (term(model="m", engine=ENGINE), "model='m'"),
        (term(base_url="http://h/v1"), "base_url"),
        (term(engine="other"), "engine"),
        (term(engine={**ENGINE, "max_length": 256}), r"engine\.max_length=256.*max_tokens=256"),
        (term(engine="policy"), r"policy\.max_length=128.*'judge'.*max_tokens=256"),
        (term(engine={"path": "/models/judge"}), r"reward\.terms, judge: engine\.kv_cache_gib=null"),
        (term(engine=ENGINE, grade="expected"), "grade=expected.*1 to 10"),
        (term(engine=ENGINE, grade="expected", scale={"low": 1.0, "high": 4.5}), "grade=expected.*4.5"),
        (term(engine={**ENGINE, "thinking": ["<think>"]}), "thinking"),
        (term(engine={**ENGINE, "thinking": ["<t>", "<t>"]}), "thinking.*differ"),
        (
            {"benchmarks": {"tasks": ["kqa"], "judge": {"engine": "policy"}}},
            r"benchmarks\.judge\.engine=policy",
        ),
        (
            {"benchmarks": {"tasks": ["kqa"], "grader": {"engine": "policy"}}},
            r"benchmarks\.grader\.engine=policy",
        ),
        ({"evaluation__judges": [{"type": "judge", "engine": "policy"}]}, r"judges\.0\.engine=policy"),
        ({"evaluation__judges": [{"type": "pairwise", "engine": ENGINE}]}, "pairwise"),
        (
            {**term(engine=ENGINE), "evaluation__judges": [{"type": "judge", "engine": ENGINE}]},
            r"evaluation\.judges: 'judge' has path='/models/judge'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_config(tiny_run(tmp_path, **changes))


def test_engines_are_named_once(tmp_path: Path) -> None:
    terms = [
        {"type": "judge", "engine": ENGINE},
        {"type": "pairwise", "engine": ENGINE},
        {"type": "judge", "name": "own", "engine": "policy", "max_tokens": 64},
        {"type": "judge", "name": "api", **API},
        {"type": "judge", "name": "other", "engine": {**ENGINE, "engines": 2}},
    ]
    config = parse_config(tiny_run(tmp_path, reward__terms=terms))
    assert list(config.judge_engines) == ["reward.terms, judge", "reward.terms, other"]
    assert all(isinstance(engine, JudgeEngine) for engine in config.judge_engines.values())
    assert config.reward.asks_policy and config.reward.compares
    shared = {"tasks": ["kqa"], "judge": {"engine": ENGINE}, "grader": {"engine": {**ENGINE, "engines": 3}}}
    several = parse_config(
        tiny_run(tmp_path, reward__terms=terms, benchmarks=shared, policy__max_length=2048)
    )
    assert list(several.judge_engines)[2:] == ["benchmarks.grader"], "the judge is on the first term's"
    again = parse_config(config.to_mapping())
    assert again == config


@pytest.mark.parametrize(
    ("section", "key"),
    [({"type": "judge", "engine": "policy"}, "engine=policy"), ({"type": "pairwise", **API}, "pairwise")],
)
def test_an_evaluation_has_no_policy_that_judges(tmp_path: Path, section: dict[str, Any], key: str) -> None:
    run = tiny_run(tmp_path)
    config = {
        "type": "evaluate",
        "run": {"name": "e"},
        "policies": {"a": "/models/a"},
        "prompts": run["prompts"],
        "policy": {"max_length": 2048},
        "reward": {"terms": [section]},
        "cluster": {"device": "cpu", "rollout": {"kv_cache_gib": 1.0}},
    }
    with pytest.raises(ConfigError, match=key):
        parse_config(config, kind=EvaluateConfig)


def test_the_example_of_the_docs_is_planned(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "recipe.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "engine: policy" in block]
    shape = {
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
    }
    settings = {**tiny_run(tmp_path), **yaml.safe_load(example)}
    policy = {"path": "meta-llama/Meta-Llama-3-8B-Instruct", "precision": "bfloat16", "max_length": 2048}
    settings["policy"] = policy
    settings["reward"]["terms"][0]["engine"]["architecture"] = shape
    plan = make_plan(parse_config(settings))
    roles = {role.role: len(role.members[0].slots) for role in plan.roles}
    assert roles == {"rollout": 1, "policy": 1, "reference": 1, "judge_engine": 2}
