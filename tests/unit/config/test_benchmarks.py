"""Benchmarks in configs and on the command line: what is allowed, and what is said of the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from tests.tiny import make_policy, tiny_run
from ultramed_rl.cli import app
from ultramed_rl.cli.evaluations import evaluate_options, option_overrides, run_name
from ultramed_rl.config import ConfigError, EvaluateConfig, RunConfig, dump_config, load_any, parse_config
from ultramed_rl.config.base import sections_in
from ultramed_rl.config.benchmarks import Greedy, Likelihood, SelfConsistency
from ultramed_rl.config.document import NULL_SAYS
from ultramed_rl.kinds import KINDS
from ultramed_rl.recipes.run import check_runnable


def evaluation(**changes: Any) -> dict[str, Any]:
    return {
        "type": "evaluate",
        "run": {"name": "exam"},
        "policies": {"a": "offline://smollm2-135m-instruct"},
        "benchmarks": {"tasks": ["medqa"]},
        "cluster": {"device": "cpu", "rollout": {"kv_cache_gib": 1.0}},
        **changes,
    }


def problems(data: dict[str, Any], kind: Any = EvaluateConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(data, kind=kind)
    return "\n".join(caught.value.problems)


def test_names_alone_stand_for_tasks_and_protocols() -> None:
    asked = {
        "tasks": ["medqa", {"name": "pubmedqa", "limit": 7}],
        "protocols": ["likelihood", "self_consistency"],
    }
    config = parse_config(evaluation(benchmarks=asked), kind=EvaluateConfig)
    assert config.benchmarks is not None
    assert [(t.name, t.limit) for t in config.benchmarks.tasks] == [("medqa", None), ("pubmedqa", 7)]
    assert config.benchmarks.protocols == [Likelihood(), SelfConsistency()]
    assert parse_config(config.to_mapping(), kind=EvaluateConfig) == config, dump_config(config)
    plain = parse_config(evaluation(), kind=EvaluateConfig)
    assert plain.benchmarks is not None and plain.benchmarks.protocols == [Greedy()]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"benchmarks": None}, r"^config: evaluate: .*\bbenchmarks\b.*\bprompts\b"),
        ({"benchmarks": {"tasks": []}}, r"benchmarks\.tasks=\[\]: .*benchmarks\.general"),
        ({"benchmarks": {"tasks": ["medqa", "medqa"]}}, r"benchmarks\.tasks: 'medqa'"),
        (
            {"benchmarks": {"tasks": ["medqa"], "protocols": ["greedy", "greedy"]}},
            r"benchmarks\.protocols: 'greedy'",
        ),
        (
            {"benchmarks": {"tasks": ["medqa"], "protocols": ["greddy"]}},
            r"benchmarks\.protocols.*greddy.*'greedy'",
        ),
        ({"policy": {"max_length": 1024}}, r"max_new_tokens=1024 .*policy\.max_length=1024"),
        (
            {"benchmarks": {"tasks": ["medqa"], "protocols": ["self_consistency"], "orders": 2}},
            r"benchmarks\.orders=2: self_consistency .*benchmarks\.protocols",
        ),
        (
            {
                "benchmarks": {"general": {"tasks": ["mmlu"], "gpus": 4}},
                "cluster": {"device": "cuda", "devices_per_node": 2},
            },
            r"benchmarks\.general\.gpus=4: .*cluster\.devices_per_node=2",
        ),
        (
            {
                "benchmarks": {"general": {"tasks": ["mmlu"]}, "protocols": ["self_consistency"]},
                "reward": {"path": "r"},
            },
            r"^config: reward: .*\bprompts\b.*self_consistency.*benchmarks\.protocols",
        ),
        (
            {"reward": {"path": "r"}},
            r"^config: reward: .*\bprompts\b.*self_consistency.*benchmarks\.protocols",
        ),
        ({"chat_templates": {"b": "chatml"}}, r"chat_templates\.b: .*\(a\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], expected: str) -> None:
    assert re.search(expected, problems(evaluation(**changes)))


def test_null_on_the_command_line_says_what_it_says_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "exam.yaml"
    file.write_text(dump_config(parse_config(evaluation(), kind=EvaluateConfig)))
    for override in ("benchmarks.contamination=null", "benchmarks.contamination.embedder=null"):
        config = load_any(file, [override])
        assert isinstance(config, EvaluateConfig) and config.benchmarks is not None
        check = config.benchmarks.contamination
        assert check is None or check.embedder is None, override


def nullable(model: Any, prefix: str, seen: set[Any]) -> Iterator[str]:
    """Dotted keys that may be null and by default are something else."""
    for name, entry in model.model_fields.items():
        key = f"{prefix}.{name}"
        default = None if entry.is_required() else entry.get_default(call_default_factory=True)
        if type(None) in get_args(entry.annotation) and default is not None:
            yield key
        for inner in sections_in(entry.annotation):
            if inner not in seen:
                seen.add(inner)
                yield from nullable(inner, key, seen)


def test_no_key_loses_its_null_on_the_command_line() -> None:
    lost = {
        key
        for kind in KINDS
        for key in nullable(KINDS[kind].config_class, kind, set())
        if not key.endswith(NULL_SAYS)
    }
    assert not lost, "name them in NULL_SAYS"


def test_lm_evaluation_harness_alone_asks_no_chats() -> None:
    config = parse_config(evaluation(benchmarks={"general": {"tasks": ["mmlu"]}}), kind=EvaluateConfig)
    assert not config.samples_chats
    assert parse_config(evaluation(), kind=EvaluateConfig).samples_chats


def test_rounds_leave_the_harness_to_a_stage_of_its_own(tmp_path: Path) -> None:
    asked = {"tasks": ["medqa"], "protocols": ["likelihood"], "general": {"tasks": ["mmlu"]}}
    assert problems(tiny_run(tmp_path, benchmarks=asked), RunConfig).startswith(
        "config: benchmarks.general: "
    )


def test_options_alone_make_a_config() -> None:
    options = evaluate_options(
        {"cluster.device": "cpu", "cluster.rollout.kv_cache_gib": 1.0, "run.name": None},
        ["runs/mine/rounds/002/checkpoint", "start=org/base-8B"],
        "medqa, pubmedqa",
        "likelihood",
        ["pubmedqa=data/pubmed.jsonl"],
        {"uri": "offline", "limit": 9},
    )
    config = load_any(None, option_overrides(options))
    assert isinstance(config, EvaluateConfig) and config.benchmarks is not None
    assert config.policies == {"checkpoint": "runs/mine/rounds/002/checkpoint", "start": "org/base-8B"}
    found = [(task.name, task.uri, task.limit) for task in config.benchmarks.tasks]
    assert found == [("medqa", "offline", 9), ("pubmedqa", "data/pubmed.jsonl", 9)]
    assert config.run.name == "checkpoint-on-start-on-medqa-on-pubmedqa"


@pytest.mark.parametrize(
    ("models", "sources", "expected"),
    [
        (["a/x", "b/x"], [], "--model b/x: .*'x'.*--model NAME=b/x"),
        (["a/x"], ["medqa"], "--source medqa: .*TASK=URI"),
        (["a/x"], ["kqa=f.jsonl"], r"--source kqa=\.\.\.: --tasks "),
        (["=x"], [], "--model =x: .*NAME=PATH"),
    ],
)
def test_options_that_contradict_are_refused(models: list[str], sources: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        evaluate_options({}, models, "medqa", None, sources)


def test_run_names_are_what_a_folder_may_be_called() -> None:
    assert run_name(["/m/my model/", "hf://allenai/reward-bench:filtered"]) == "my-model-on-reward-bench"
    assert run_name([None, "d/file.jsonl"]) == "data-on-file"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "POLICY", "--tasks", "medqua", "--offline"], "task 'medqua': .*'medqa'"),
        (["--tasks", "medqa"], "policies"),
        (["exam.yaml", "--tasks", "medqa"], "--tasks, .*CONFIG"),
    ],
)
def test_bad_command_lines_end_with_code_2(tmp_path: Path, arguments: list[str], expected: str) -> None:
    policy = str(make_policy(tmp_path / "policy"))
    called = [policy if argument == "POLICY" else argument for argument in arguments]
    found = CliRunner().invoke(app, ["evaluate", *called, "--device", "cpu"])
    assert found.exit_code == 2 and re.search(expected, found.output), found.output


def test_a_base_model_is_asked_for_likelihoods_alone(tmp_path: Path) -> None:
    from tests.tiny import make_tokenizer
    from ultramed_rl.stages.evaluate import load_policy

    policy = make_policy(tmp_path / "base")
    plain = make_tokenizer()
    plain.chat_template = None
    for file in policy.glob("chat_template*"):
        file.unlink()
    plain.save_pretrained(policy)
    likelihood = {"tasks": ["medqa"], "protocols": ["likelihood"]}
    config = parse_config(evaluation(policies={"a": str(policy)}, benchmarks=likelihood), kind=EvaluateConfig)
    assert load_policy(config, "a", str(policy)).tokenizer is None
    asked = parse_config(evaluation(policies={"a": str(policy)}), kind=EvaluateConfig)
    with pytest.raises(ValueError, match=r"policies\.a=.*chat_templates\.a .*likelihood"):
        load_policy(asked, "a", str(policy))
    mended = parse_config(
        evaluation(policies={"a": str(policy)}, chat_templates={"a": "chatml"}), kind=EvaluateConfig
    )
    assert load_policy(mended, "a", str(policy)).tokenizer is not None


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("kqa", r"'kqa': .*benchmarks\.judge"),
        ("bioasq_list", "'bioasq_list': uri=null"),
        ({"name": "medxpertqa", "uri": "offline"}, "'medxpertqa': uri='offline'"),
    ],
)
def test_what_a_task_lacks_is_said_before_any_stage_of_a_recipe_starts(task: Any, expected: str) -> None:
    config = parse_config(evaluation(benchmarks={"tasks": [task]}), kind=EvaluateConfig)
    with pytest.raises(ConfigError, match=expected):
        check_runnable(config)
