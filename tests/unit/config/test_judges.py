"""Keys of judges that do not go together are refused with their names and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_run
from ultramed_rl.config import ConfigError, EvaluateConfig, parse_config

RULE = [{"type": "rule", "max_words": 9}]
BENCH = [{"type": "benchmark", "task": "medqa"}]
TASKS = {"tasks": ["medqa"], "protocols": ["likelihood"]}
REWARD = {"type": "reward_model", "path": "REWARD"}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"run__keep": "best"}, r"run\.keep_by=None: .*keep=best"),
        ({"run__keep_by": "reward"}, r"run\.keep_by=reward: .*keep=last"),
        ({"run__keep": "best", "run__keep_by": "rules"}, r"run\.keep_by='rules': .*reward, rule;"),
        ({"run__stop": 2, "evaluation__judges": []}, r"run\.stop=2: .*evaluation\.judges"),
        (
            {"run__stop": 2, "checkpoint": {"every": 2}},
            r"checkpoint\.every=2: run\.stop=2 .*evaluation\.every=1",
        ),
        (
            {"run__keep": "best", "run__keep_by": "rule", "checkpoint": {"every": 2}, "evaluation__every": 3},
            r"checkpoint\.every=2: run\.keep=best .*evaluation\.every=3",
        ),
        ({"evaluation__judges": BENCH}, r"evaluation\.judges.*'medqa'.*no section benchmarks"),
        ({"evaluation__judges": BENCH, "benchmarks": {**TASKS, "tasks": ["pubmedqa"]}}, r"'medqa'.*pubmedqa"),
        (
            {"evaluation__judges": BENCH, "benchmarks": {**TASKS, "every": 2}},
            r"benchmarks\.every=2: .*evaluation\.every=1",
        ),
        (
            {"evaluation__judges": [{**BENCH[0], "protocol": "greedy"}], "benchmarks": TASKS},
            r"protocol greedy",
        ),
        ({"evaluation__judges": [REWARD]}, r"evaluation\.judges: 'reward_model' has path=.*reward"),
        (
            {"evaluation__judges": [{"type": "likeness", "to": "reference"}]},
            r"evaluation\.judges.*to=reference.*answer_column",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, changes: dict[str, Any], names: str) -> None:
    settings = tiny_run(tmp_path, **{"evaluation__judges": RULE, **changes})
    for judge in settings["evaluation"]["judges"]:
        if judge.get("path") == "REWARD":
            judge["path"] = settings["reward"]["path"]
    with pytest.raises(ConfigError, match=names):
        parse_config(settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"run__keep": "best", "run__keep_by": "reward"},
        {
            "run__keep": "best",
            "run__keep_by": "rule",
            "run__stop": 1,
            "checkpoint": {"every": 2},
            "evaluation__every": 4,
        },
        {"evaluation__judges": BENCH, "benchmarks": {**TASKS, "every": 2}, "evaluation__every": 2},
    ],
)
def test_what_goes_together_is_taken(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = parse_config(tiny_run(tmp_path, **{"evaluation__judges": RULE, **changes}))
    assert parse_config(config.to_mapping()) == config


@pytest.mark.parametrize(
    ("judges", "asks", "names"),
    [
        ([{"type": "likeness", "to": "reference"}], True, r"judges.*to=reference.*answer_column"),
        ([{"type": "rule", "max_words": 9}] * 2, True, r"judges: two .*'rule'"),
        ([{"type": "rule", "max_words": 9}], False, r"judges: .*set prompts"),
        (
            [{"type": "judge", "engine": {"path": "org/reward"}}],
            True,
            r"judges: 'judge' has path='org/reward'",
        ),
    ],
)
def test_judges_of_compared_policies_are_held_to_the_same(
    judges: list[dict[str, Any]], asks: bool, names: str
) -> None:
    asked = {"prompts": {"sources": [{"type": "question", "uri": "a.jsonl"}]}}
    settings: dict[str, Any] = {
        "type": "evaluate",
        "run": {"name": "e"},
        "policies": {"p": "org/policy"},
        "judges": judges,
    }
    settings |= {**asked, "reward": {"path": "org/reward"}} if asks else {"benchmarks": TASKS}
    with pytest.raises(ConfigError, match=names):
        parse_config(settings, kind=EvaluateConfig)
