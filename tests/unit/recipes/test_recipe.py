"""Recipes: stages that take what earlier ones made, and one clear line where they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.tiny import make_policy, tiny_run
from ultramed_rl.cli import app
from ultramed_rl.config import ConfigError
from ultramed_rl.config.recipe import RecipeConfig, load_recipe, stage_config
from ultramed_rl.recipes.run import check_runnable, run_recipe

CPU = {"device": "cpu", "devices_per_node": 2, "device_memory_gib": 20.0}


def recipe(root: Path, **changes: Any) -> dict[str, Any]:
    """sft -> reward and preference -> online -> evaluate; `changes` are dotted keys."""
    online = tiny_run(root, policy__path="stage://preference", reward__path="stage://reward")
    online["run"] = {"rounds": 1}
    stages: dict[str, Any] = {
        "sft": {
            "type": "sft",
            "model": {"path": str(root / "policy"), "max_length": 128},
            "data": {"sources": [{"uri": str(root / "chats.jsonl")}]},
        },
        "reward": {
            "type": "reward",
            "model": {"path": "stage://sft"},
            "data": {"sources": [{"uri": str(root / "ranked.jsonl")}]},
        },
        "preference": {
            "type": "preference",
            "model": {"path": "stage://sft", "precision": "bfloat16"},
            "data": {"sources": [{"uri": str(root / "ranked.jsonl")}]},
            "objective": {"type": "dpo"},
        },
        "online": {"type": "online", **online},
        "evaluate": {
            "type": "evaluate",
            "policies": {"start": str(root / "policy"), "online": "stage://online"},
            "prompts": online["prompts"],
            "reward": {"path": "stage://reward"},
            "cluster": {"rollout": {"kv_cache_gib": 0.1}},
        },
    }
    data = {
        "type": "recipe",
        "run": {"name": "whole", "directory": str(root / "runs"), "seed": 3},
        "shared": {
            "cluster": CPU,
            "tracking": {"wandb": "disabled"},
            "training": {"learning_rate": 1e-3, "epochs": 2},
        },
        "stages": stages,
    }
    for key, value in changes.items():
        node = data
        *sections, last = key.split("__")
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return data


def write(root: Path, **changes: Any) -> Path:
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(root, **changes), sort_keys=False))
    return path


def problems(root: Path, **changes: Any) -> list[str]:
    """Without the file's name, with which each line begins."""
    path = write(root, **changes)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in caught.value.problems)
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


def stage(loaded: RecipeConfig, name: str, **outputs: str) -> Any:
    return stage_config(loaded, name, outputs)


# -- what a stage gets -------------------------------------------------------------------------------------


def test_names_places_and_seeds_are_the_recipes(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, stages__sft__run={"seed": 11}))
    folder = str(tmp_path / "runs" / "whole")
    for name in loaded.stages:
        run = stage(loaded, name).run
        assert (run.name, run.directory, run.seed) == (name, folder, 11 if name == "sft" else 3)
    assert stage(loaded, "online").run.rounds == 1


def test_shared_sections_go_under_the_stages_own(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, stages__reward__training={"epochs": 5, "batch_size": 7}))
    assert stage(loaded, "sft").training.epochs == 2
    reward = stage(loaded, "reward").training
    assert (reward.epochs, reward.batch_size) == (5, 7)
    evaluate = stage(loaded, "evaluate")  # has no `training`, and its `cluster` is merged key by key
    assert (evaluate.cluster.device, evaluate.cluster.rollout.kv_cache_gib) == ("cpu", 0.1)
    assert evaluate.tracking.wandb == "disabled"


def test_references_become_what_the_stages_made(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path))
    made = {"sft": "/made/sft", "reward": "/made/reward", "preference": "/made/dpo", "online": "/made/online"}
    assert stage(loaded, "reward", **made).model.path == "/made/sft"
    online = stage(loaded, "online", **made)
    assert (online.policy.path, online.reward.path) == ("/made/dpo", "/made/reward")
    assert stage(loaded, "evaluate", **made).policies == {
        "start": str(tmp_path / "policy"),
        "online": "/made/online",
    }


def test_contrasts_stand_in_lists(tmp_path: Path) -> None:
    contrasts = {
        "type": "contrasts",
        "policy": {"path": "/m"},
        "prompts": tiny_run(tmp_path)["prompts"],
        "cluster": {"rollout": {"kv_cache_gib": 0.1}},
    }
    data = recipe(tmp_path, stages__reward__data={"sources": [{"uri": "/a"}, {"uri": "stage://contrasts"}]})
    data["stages"] = {"contrasts": contrasts, **data["stages"]}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    reward = stage(load_recipe(path), "reward", contrasts="/made/pairs.parquet")
    assert [source.uri for source in reward.data.sources] == ["/a", "/made/pairs.parquet"]


def test_before_anything_is_made_a_chain_leads_to_its_start(tmp_path: Path) -> None:
    """So that all stages can be planned at once: a trained model has its start's shape."""
    loaded = load_recipe(write(tmp_path))
    start = str(make_policy(tmp_path / "policy"))
    assert stage(loaded, "preference").model.path == f"stage://sft@{start}"
    online = stage(loaded, "online")  # online <- preference <- sft <- the model
    expected = (f"stage://preference@{start}", f"stage://reward@{start}")
    assert (online.policy.path, online.reward.path) == expected
    assert stage(loaded, "evaluate").policies == {"start": start, "online": f"stage://online@{start}"}
    check_runnable(loaded)


def test_overrides_reach_into_stages(tmp_path: Path) -> None:
    path = write(tmp_path)
    overrides = ["stages.sft.training.max_steps=2", "shared.training.epochs=4", "run.name=other"]
    loaded = load_recipe(path, overrides)
    sft = stage(loaded, "sft")
    assert (sft.training.max_steps, sft.training.epochs) == (2, 4)
    assert sft.run.directory == str(tmp_path / "runs" / "other")
    assert stage(loaded, "preference").training.max_steps is None


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "key", "named"),
    [
        ({"stages__sft__model__path": "stage://reward"}, "stages.sft.model.path=stage://reward", "(none)"),
        (
            {"stages__reward__model__path": "stage://reward"},
            "stages.reward.model.path=stage://reward",
            "(sft)",
        ),
        (
            {"stages__reward__data": {"sources": [{"uri": "stage://contrast"}]}},
            "stages.reward.data.sources.0.uri=stage://contrast",
            "(sft)",
        ),
        (
            {"stages__evaluate__policies__sft": "stage://sfd"},
            "stages.evaluate.policies.sft=stage://sfd",
            "(sft, reward, preference, online)",
        ),
        ({"stages__sft__type": "stf"}, "stages.sft.type='stf'", "online, sft, reward"),
        ({"stages__sft__type": "recipe"}, "stages.sft.type='recipe'", "online, sft, reward"),
        ({"stages__sft": {}}, "stages.sft.type=null", "online, sft, reward"),
        ({"stages__sft__training": {"epocs": 2}}, "stages.sft.training.epocs", "'epochs'"),
        ({"stages__sft__training": {"epochs": 0}}, "stages.sft.training.epochs=0", "0"),
        (
            {"stages__preference__training": {"patience": 2}},
            "stages.preference.training.patience=2",
            "training.evaluate_every",
        ),
        ({"run__sed": 1}, "run.sed", "'seed'"),
    ],
)
def test_each_mistake_is_one_line_with_its_stage(
    tmp_path: Path, change: dict[str, Any], key: str, named: str
) -> None:
    (found,) = problems(tmp_path, **change)
    assert found.startswith(f"{key}: ") and named in found.removeprefix(f"{key}: ")


def test_a_stages_name_is_a_folders(tmp_path: Path) -> None:
    data = recipe(tmp_path)
    data["stages"] = {"../sft": data["stages"]["sft"]}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    with pytest.raises(ConfigError, match=r"stages\.\.\./sft\.run\.name='\.\./sft': "):
        load_recipe(path)


def test_problems_of_all_stages_come_at_once(tmp_path: Path) -> None:
    changes = {"stages__sft__training": {"epochs": 0}, "stages__reward__model__max_length": "long"}
    assert [line.split("=")[0] for line in problems(tmp_path, **changes)] == [
        "stages.sft.training.epochs",
        "stages.reward.model.max_length",
    ]


def test_a_stage_that_does_not_fit_is_named_before_the_first_one_starts(tmp_path: Path) -> None:
    make_policy(tmp_path / "policy")
    loaded = load_recipe(write(tmp_path, stages__preference__cluster={"trainer": {"ranks": 3}}))
    with pytest.raises(ValueError, match=r"^stages\.preference: cluster\.trainer: 3 .* x 1 "):
        run_recipe(loaded)
    assert not (tmp_path / "runs").exists()


def test_a_recipe_that_was_started_asks_for_resume(tmp_path: Path) -> None:
    make_policy(tmp_path / "policy")
    loaded = load_recipe(write(tmp_path))
    begun = tmp_path / "runs" / "whole" / "sft"
    begun.mkdir(parents=True)
    (begun / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=r"/whole: .*\(sft\).*--resume"):
        run_recipe(loaded)


def test_the_command_line_exits_with_2_and_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, stages__sft__training={"epochs": 0})
    found = CliRunner().invoke(app, ["recipe", str(path)])
    assert found.exit_code == 2 and f"{path}: stages.sft.training.epochs=0" in found.output
    found = CliRunner().invoke(app, ["recipe", str(path), "stages.sft.training.epochs=1"])
    assert found.exit_code == 2 and "policy" in found.output, "there is no model yet"


# -- mistakes across stages ----------------------------------------------------------------------------------


def test_a_shared_model_is_a_chains_start_too(tmp_path: Path) -> None:
    data = recipe(tmp_path, shared__model={"path": "/start"})
    del data["stages"]["sft"]["model"]["path"]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    assert stage(load_recipe(path), "reward").model.path == "stage://sft@/start"


@pytest.mark.parametrize(
    ("change", "key", "named"),
    [
        ({"stages__sft__model": "/m"}, "stages.sft.model='/m'", ""),
        ({"stages__sft__run": "mine"}, "stages.sft.run='mine'", ""),
        ({"stages__sft__type": ["sft"]}, "stages.sft.type=['sft']", "online, sft, reward"),
        ({"shared__cluser": {"device": "cpu"}}, "shared.cluser", ""),
        (
            {"shared__objective": {"type": "bradley_terry", "margin": "stage://sfd"}},
            "stages.reward.objective.margin=stage://sfd",
            "(sft)",
        ),
        ({"stages__sft__run": {"name": "mine"}}, "stages.sft.run.name", ""),
        (
            {"stages__reward__data": {"sources": [{"uri": "stage://sft"}]}},
            "stages.reward.data.sources.0.uri=stage://sft",
            "type 'sft'",
        ),
    ],
)
def test_mistakes_that_are_a_line_with_their_stage_too(
    tmp_path: Path, change: dict[str, Any], key: str, named: str
) -> None:
    found = problems(tmp_path, **change)
    assert found and found[0].startswith(f"{key}: ") and named in found[0].removeprefix(f"{key}: ")
