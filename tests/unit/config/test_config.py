"""Configs: strict, with one clear line per problem, and light to load."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from typer.testing import CliRunner

from tests.tiny import tiny_run
from ultramed_rl.cli import app
from ultramed_rl.config import (
    ConfigError,
    EvaluateConfig,
    config_difference,
    dump_config,
    load_any,
    load_config,
    parse_config,
)
from ultramed_rl.config.factory import DataConfig
from ultramed_rl.config.objectives import Objective
from ultramed_rl.config.recipe import load_recipe, stage_config

ROOT = Path(__file__).parents[3]
PRESETS = sorted((ROOT / "configs").rglob("*.yaml"))
OBJECTIVES = [model.model_fields["type"].default for model in get_args(get_args(Objective)[0])]


def problems(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(data, "my.yaml")
    return caught.value.problems


def test_presets_exist() -> None:
    assert {p.name for p in PRESETS} >= {"quickstart.yaml", "llama3-8b-1node.yaml", "llama3-70b-4node.yaml"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_shipped_config_parses_and_survives_a_dump(path: Path) -> None:
    if yaml.safe_load(path.read_text()).get("type") == "recipe":
        recipe = load_recipe(path)
        configs = [recipe, *(stage_config(recipe, name, {}) for name in recipe.stages)]
    else:
        configs = [load_any(path)]
    for config in configs:
        assert parse_config(yaml.safe_load(dump_config(config)), kind=type(config)) == config


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"run__sed": 1}, r"run\.sed: .*'seed'"),
        ({"pairs__rejected": "wrst"}, r"pairs\.rejected='wrst': .*'worst'"),
        ({"training__epochs": "two"}, r"training\.epochs='two': .*\binteger\b"),
        ({"training__epochs": 1.5}, r"training\.epochs=1\.5: .*\binteger\b"),
        ({"sampling__n": 1}, r"sampling\.n=1: .*\b2\b"),
        ({"objective__bta": 0.1}, r"objective\.bta: .*'beta'"),
        ({"objective__type": "dop"}, r"objective\.type='dop': .*'dpop'"),
        ({"policy__max_length": 100}, r"prompts\.max_prompt_tokens=96: .*sampling\.max_new_tokens=16\b.*100"),
        ({"reward__path": None}, r"reward: .*\breward\.path\b"),
        ({"reward__terms": [{"type": "length", "free": 1, "name": "raw"}]}, r"reward\.terms: 'raw'"),
        ({"cluster__rollout__kv_cache_gib": None}, r"cluster\.rollout\.kv_cache_gib=null: "),
        ({"cluster__policy__offload_optimizer": True}, r"cluster\.policy\.offload_optimizer=true\b"),
        ({"cluster__policy__sequence_parallel": 4}, r"cluster\.policy\.sequence_parallel=4: .*\branks=2\b"),
        (
            {"cluster__reward": {"replicas": 3, "sequence_parallel": 2}},
            r"cluster\.reward\.sequence_parallel=2: .*\breplicas=3\b",
        ),
        ({"cluster__rollout__quantization": "fp8"}, r"cluster\.rollout\.quantization=fp8: .*\bcuda\b"),
        (
            {"cluster__device": "cuda", "cluster__rollout__quantization": "fp8"},
            r"cluster\.rollout\.quantization=fp8: .*\bfloat32\b.*cluster\.rollout\.precision=bfloat16",
        ),
        (
            {"policy__lora": {"sync": "adapter", "quantize": "nf4"}},
            r"policy\.lora\.sync=adapter: .*quantize=nf4",
        ),
        (
            {"policy__lora": {"sync": "adapter", "rank": 600}},
            r"policy\.lora\.sync=adapter: .*rank=600\b.*\b512\b",
        ),
    ],
)
def test_each_mistake_is_one_line(tmp_path: Path, change: dict[str, Any], line: str) -> None:
    found = problems(tiny_run(tmp_path, **change))
    assert len(found) == 1 and "\n" not in found[0]
    assert re.match(rf"my\.yaml: {line}", found[0])


def test_label_smoothing_on_kto_is_refused(tmp_path: Path) -> None:
    data = tiny_run(tmp_path, objective={"type": "kto_pair", "label_smoothing": 0.1})
    assert problems(data)[0].startswith("my.yaml: objective.label_smoothing: ")


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    found = problems(tiny_run(tmp_path, run__sed=1, training__epochs=0))
    assert len(found) == 2


def test_overrides_are_yaml_and_nest(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run(tmp_path)))
    config = load_config(
        path, ["training.learning_rate=1e-5", "cluster.policy.zero_stage=3", "tracking.tags=[a, b]"]
    )
    assert config.training.learning_rate == 1e-5
    assert config.cluster.policy.zero_stage == 3
    assert config.tracking.tags == ["a", "b"]
    for bad in ("epochs", "=1", "run.name.deeper=1"):
        with pytest.raises(ConfigError, match="override"):
            load_config(path, [bad])


def test_files_that_are_no_config(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    with pytest.raises(ConfigError, match=r"run\.yaml: .*configs/"):
        load_config(path)
    path.write_text("run: {name: a}\nrun: {name: b}\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: .*'run' .*\b2\b"):
        load_config(path)
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: .*\blist; .*configs/"):
        load_config(path)
    path.write_text("run: [\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: .*line 2, column 1"):
        load_config(path)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: .*python/object/apply:os\.getcwd"):
        load_config(path)


def test_differences_are_named(tmp_path: Path) -> None:
    data = tiny_run(tmp_path)
    other = copy.deepcopy(data)
    other["objective"]["beta"] = 0.2
    other["prompts"]["sources"][0]["limit"] = 5
    assert config_difference(parse_config(data), parse_config(other)) == [
        "objective.beta: 0.1 -> 0.2",
        "prompts.sources.0.limit: None -> 5",
    ]


def test_the_command_line_exits_with_2_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny_run(tmp_path, run__sed=1)))
    for command in ("run", "plan"):
        result = CliRunner().invoke(app, [command, str(path)])
        assert result.exit_code == 2
        assert re.search(r"run\.yaml: run\.sed: .*'seed'", result.output)


def without_reference(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != "reference"}


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_a_reference_section_is_refused_where_there_is_no_reference(tmp_path: Path, name: str) -> None:
    data = tiny_run(tmp_path, objective={"type": name})
    (line,) = problems(data)
    assert re.match(rf"my\.yaml: reference: objective\.type={name} .*\breference=null", line)
    parse_config(without_reference(data))


@pytest.mark.parametrize(
    ("objective", "key"),
    [
        ({"type": "ipo", "label_smoothing": 0.1}, "label_smoothing"),
        ({"type": "hinge", "length_normalized": True}, "length_normalized"),
        ({"type": "nca", "nll_weight": 1.0}, "nll_weight"),
        ({"type": "dpo", "gamma": 1.0}, "gamma"),
    ],
)
def test_a_key_of_another_objective_is_unknown(tmp_path: Path, objective: dict[str, Any], key: str) -> None:
    (line,) = problems(tiny_run(tmp_path, objective=objective))
    assert re.match(rf"my\.yaml: objective\.{key}: .*: type, beta\b", line)


@pytest.mark.parametrize("name", ["nca", "infonca"])
def test_a_rule_for_the_rejected_answer_is_refused_of_listwise_objectives(tmp_path: Path, name: str) -> None:
    data = tiny_run(tmp_path, objective={"type": name}, pairs__rejected="worst", pairs__min_margin=0.5)
    (line,) = problems(data)
    assert re.match(
        rf"my\.yaml: pairs\.rejected='worst': objective\.type={name} .*\bpairs\.rejected=null", line
    )
    del data["pairs"]["rejected"]
    assert parse_config(data).pairs.min_margin == 0.5


@pytest.mark.parametrize("name", ["kto", "kto_pair"])
def test_a_kl_over_a_batch_of_one_is_refused(tmp_path: Path, name: str) -> None:
    one = {"training__batch_size": 1, "cluster__policy__ranks": 1}
    (line,) = problems(tiny_run(tmp_path, objective={"type": name}, **one))
    assert line.startswith(f"my.yaml: training.batch_size=1: {name} ")
    parse_config(tiny_run(tmp_path, **one))  # DPO does not


@pytest.mark.parametrize("update", ["ema", "previous"])
def test_a_lora_policy_has_no_reference_but_its_base(tmp_path: Path, update: str) -> None:
    changes = {"policy__lora": {"rank": 4}, "reference__update": update}
    (line,) = problems(tiny_run(tmp_path, **changes))
    assert re.match(rf"my\.yaml: reference\.update='{update}': .*LoRA", line)
    parse_config(tiny_run(tmp_path, **{**changes, "policy__lora": None}))
    parse_config(tiny_run(tmp_path, **{**changes, "reference__update": "initial"}))


def test_4_bit_weights_cannot_be_partitioned(tmp_path: Path) -> None:
    changes = {"policy__lora": {"quantize": "nf4"}, "cluster__policy__zero_stage": 3}
    (line,) = problems(tiny_run(tmp_path, **changes))
    assert re.match(r"my\.yaml: policy\.lora\.quantize='nf4': .*zero_stage", line)
    parse_config(tiny_run(tmp_path, **{**changes, "policy__lora": {"rank": 4}}))
    parse_config(tiny_run(tmp_path, **{**changes, "cluster__policy__zero_stage": 2}))


def test_the_tests_know_every_objective() -> None:
    assert {"dpo", "robust_dpo", "ipo", "hinge", "kto", "kto_pair", "nca_pair", "nca", "infonca"} < set(
        OBJECTIVES
    )
    assert len(OBJECTIVES) == len(set(OBJECTIVES)) == 19


@pytest.mark.parametrize("lora", [None, {"rank": 4, "target_modules": ["q_proj"], "quantize": "nf4"}])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_dump_of_every_objective_parses_to_the_same_config(
    tmp_path: Path, name: str, lora: dict[str, Any] | None
) -> None:
    parts = {"parts": [{"objective": {"type": "simpo"}}, {"weight": 0.2, "objective": {"type": "raft"}}]}
    objective = {"type": name, **(parts if name == "mixture" else {})}
    data = without_reference(tiny_run(tmp_path, objective=objective, policy__lora=lora))
    config = parse_config(data)
    again = parse_config(yaml.safe_load(dump_config(config)))
    assert again == config and again.objective.type == name
    assert dump_config(again) == dump_config(config)


def test_null_takes_a_key_away_on_the_command_line(tmp_path: Path) -> None:
    """So that every objective can be chosen over any preset."""
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(tiny_run(tmp_path, pairs={"rejected": "worst", "min_margin": 0.5})))
    config = load_config(path, ["objective={type: simpo}", "reference=null"])
    assert (config.objective.type, config.objective.beta) == ("simpo", 2.0)
    config = load_config(path, ["objective={type: nca}", "pairs.rejected=null"])
    assert config.objective.type == "nca" and config.pairs.min_margin == 0.5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cluster.barriers", "cluster.sequential_phases"),
        ("cluster.faults.fewer", "cluster.faults.allow_fewer_workers"),
        ("cluster.faults.set_aside_share", "cluster.faults.max_failed_prompt_share"),
        ("training.early", "training.overlap_training"),
    ],
)
def test_a_key_that_was_renamed_is_refused_with_its_new_name(tmp_path: Path, old: str, new: str) -> None:
    (line,) = problems(tiny_run(tmp_path, **{old.replace(".", "__"): True}))
    assert old in line and new in line


def test_the_slope_of_length_is_a_number_or_to_be_fitted(tmp_path: Path) -> None:
    for value in ("fit", -0.25, 0, None):
        assert parse_config(tiny_run(tmp_path, reward__length_slope=value)).reward.length_slope == value
    for wrong in ("fitted", True, float("inf")):
        (line,) = {p.split("=")[0] for p in problems(tiny_run(tmp_path, reward__length_slope=wrong))}
        assert line == "my.yaml: reward.length_slope"
    evaluation = {
        "type": "evaluate",
        "run": {"name": "e"},
        "policies": {"a": "/a", "b": "/b"},
        "prompts": {"sources": [{"type": "question", "uri": "q.jsonl"}]},
        "reward": {"path": "/reward", "length_slope": 0.5},
    }
    assert parse_config(evaluation, kind=EvaluateConfig).reward is not None
    with pytest.raises(ConfigError, match=r"reward\.length_slope='fit'"):
        parse_config(
            {**evaluation, "reward": {"path": "/reward", "length_slope": "fit"}}, kind=EvaluateConfig
        )


@pytest.mark.parametrize(
    ("old", "cure"),
    [("cosine", "step.near"), ("jaccard", "step.near"), ("words", "step.near"), ("embedder", "remove")],
)
def test_a_former_key_of_deduplicate_is_refused_with_its_cure(old: str, cure: str) -> None:
    data = {"run": {"name": "x"}, "input": ["https://x/a"], "step": {"type": "deduplicate", old: None}}
    with pytest.raises(ConfigError) as caught:
        parse_config(data, kind=DataConfig)
    (line,) = caught.value.problems
    assert f"step.{old}" in line and cure in line
