"""A kind of stage is one record: what it names is there, and a new one is known everywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from docs.make_configuration import render_reference
from ultramed_rl.cli import program, runs
from ultramed_rl.cluster.layout import Plan
from ultramed_rl.config.cluster import Devices
from ultramed_rl.config.recipe import load_recipe
from ultramed_rl.config.run import AnyConfig
from ultramed_rl.kinds import KINDS, StageKind, load
from ultramed_rl.records import Completion
from ultramed_rl.report import write_report
from ultramed_rl.report.build import HTML as REPORTS
from ultramed_rl.store import ArtifactFolder, WorkDirectory
from ultramed_rl.tracking.status import read_status

HERE = "tests.unit.test_kinds"


class EchoConfig(AnyConfig):
    """Says a word again."""

    type: Literal["echo"] = "echo"
    word: str


def say_again(config: EchoConfig, *, resume: bool) -> None:
    with WorkDirectory.open(config, resume) as store:
        answer = Completion("p", 0, config.word, [1], "stop", -1.0, 0)
        ArtifactFolder(store.path).phase("answers", lambda: [answer], kind=Completion)


def plan_nothing(config: EchoConfig) -> Plan:
    return Plan(Devices(device="cpu"), "alone", (), 0)


def no_models(config: EchoConfig) -> Iterator[Any]:
    return iter(())


ECHO = StageKind(
    config=f"{HERE}:EchoConfig",
    run=f"{HERE}:say_again",
    plan=f"{HERE}:plan_nothing",
    models=f"{HERE}:no_models",
    report=str(Path(__file__).with_name("echo.html.jinja")),
    output="answers.parquet",
    makes="a file",
    command="echo",
    help="Say a word again.",
)


@pytest.mark.parametrize("name", KINDS)
def test_what_a_record_names_is_there(name: str) -> None:
    kind = KINDS[name]
    assert issubclass(kind.config_class, AnyConfig)
    assert kind.config_class.model_fields["type"].default == name
    for code in (kind.run, kind.plan, kind.models):
        assert callable(load(code)), code
    assert (REPORTS / kind.report).is_file()


def test_a_kind_with_one_record_has_a_command_a_place_in_recipes_a_status_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer()
    monkeypatch.setitem(KINDS, "echo", ECHO)
    monkeypatch.setattr(program, "app", app)
    runs.add_command("echo")
    for name in ("recipe", "status"):
        found = next(c for c in load("ultramed_rl.cli:app").registered_commands if c.name == name)
        app.command(name)(found.callback)

    def call(*words: str) -> str:
        result = CliRunner().invoke(app, [*words])
        assert result.exit_code == 0, result.output
        return result.output

    assert "echo" in call("--help") and "Say a word again" in call("echo", "--help")
    config = tmp_path / "echo.yaml"
    config.write_text(f"{{type: echo, word: aspirin, run: {{name: alone, directory: {tmp_path}}}}}")
    lines = call("echo", str(config), "--json").splitlines()
    made = tmp_path / "alone" / "answers.parquet"
    assert made.is_file() and json.loads(lines[-1])["output"] == str(made)

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"type: recipe\nrun: {{name: both, directory: {tmp_path}}}\n"
        "stages: {first: {type: echo, word: one}, second: {type: echo, word: two}}\n"
    )
    assert list(load_recipe(recipe).stages) == ["first", "second"]
    call("recipe", str(recipe))
    both = tmp_path / "both"
    assert {stage.kind: stage.state for stage in read_status(both).stages} == {"echo": "finished"}
    assert "echo" in call("status", str(both / "first"))
    assert "it said two" in write_report(both / "second").read_text()
    assert "## type: echo" in render_reference()
