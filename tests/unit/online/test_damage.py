"""Damaged files of a run: every command says in a line which file it is and what to do, or works without it."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.simulated.cases import Cases
from tests.simulated.ray import SimulatedRay
from tests.simulated.run import WORKERS, simulated
from ultramed_rl.cli import app
from ultramed_rl.config import dump_config
from ultramed_rl.store.atomic import remove

FILES = [
    "config.yaml",
    "environment.json",
    "inputs.json",
    "metrics.jsonl",
    "status.json",
    "timeline.jsonl",
    "initial/evaluation.json",
    "initial/evaluation.parquet",
    "rounds/000/commit.json",
    "rounds/000/checkpoint.json",
    "rounds/000/evaluation.json",
    "rounds/000/evaluation.parquet",
    "rounds/000/pairs.json",
    "rounds/000/pairs.parquet",
    "rounds/000/prompts.parquet",
    "rounds/000/scored.parquet",
    "rounds/001/commit.json",
]


OPEN = io.open
FORBIDDEN: list[str] = []


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 3])  # of a config, before all that it needs


def make_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def forbid(file: Path) -> None:
    """No permission to read or write it, whoever the user is."""
    FORBIDDEN.append(str(file))


def guarded(file: Any, *arguments: Any, **options: Any) -> Any:
    """`open`, with permissions."""
    if not isinstance(file, int) and os.fspath(file) in FORBIDDEN:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(file))
    return OPEN(file, *arguments, **options)


def make_loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda file: file.write_bytes(b""),
    "binary": lambda file: file.write_bytes(bytes(range(256)) * 4),
    "a directory": make_directory,
    "a link to itself": make_loop,
    "forbidden": forbid,
    "a list": lambda file: file.write_text("[1, 2]\n"),
    "a number": lambda file: file.write_text("3\n"),
    "another object": lambda file: file.write_text('{"a": {"b": null}}\n'),
    "other types": lambda file: file.write_text(
        '{"metrics": 3, "phases": [], "state": {}, "updated": "x", "began": [], "seconds": "x", "name": 1, "digest": 0, '
        '"inputs": {}, "round_index": "x", "step_index": {}, "run": 7, "type": 7, "pid": "x", "host": 3, "phase": 1}\n'
    ),
}


SLOW = {"report", "compare"}  # a second each, for the figures


@pytest.fixture
def run(known: Cases, tmp_path: Path) -> Path:
    """A finished run to be damaged, and beside it its config."""
    known.unbroken("dpo")
    folder = shutil.copytree(known.path / "dpo" / "tiny", tmp_path / "tiny")
    shutil.copytree(folder, tmp_path / "other")
    config = known.at("dpo", tmp_path).config
    (tmp_path / "config.yaml").write_text(dump_config(config))
    FORBIDDEN.clear()
    return Path(folder)


def invoke(*arguments: str) -> Result:
    with (
        simulated(SimulatedRay(WORKERS, lambda call: "", lambda *_: None)),
        mock.patch("io.open", guarded),
        mock.patch("builtins.open", guarded),
    ):
        return CliRunner().invoke(app, list(arguments))


def commands(run: Path) -> dict[str, tuple[str, ...]]:
    config, out = str(run.parent / "config.yaml"), str(run.parent / "out.html")
    return {
        "status": ("status", str(run)),
        "report": ("report", str(run), "--output", out),
        "compare": ("compare", str(run), str(run.parent / "other"), "--output", out),
        "timeline": ("timeline", str(run), "--out", out),
        "dry run": ("run", config, "--resume", "--dry-run"),
        "resume": ("run", config, "--resume"),
    }


def damage(run: Path, name: str, kind: str) -> Path:
    """Of a folder of files, its first one."""
    path = run / name
    file = min(path.glob("0*.parquet")) if path.is_dir() else path
    assert file.is_file(), "the run has no such file"
    DAMAGES[kind](file)
    return file


def check_told(found: Result, file: Path, what: str) -> None:
    """A line that names the file, or an end as if nothing was."""
    text = found.output
    assert found.exception is None or isinstance(found.exception, SystemExit), f"{what}: {found.exception!r}"
    assert "Traceback" not in text, what
    if found.exit_code:
        assert found.exit_code in (1, 2), what
        told = [line for line in text.splitlines() if str(file) in line or str(file.parent) in line]
        assert told and ("; " in told[-1] or ": " in told[-1]), f"{what}: {text}"


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_told_by_every_command(run: Path, name: str, kind: str) -> None:
    file = damage(run, name, kind)
    for command, arguments in commands(run).items():
        if command not in SLOW or kind in ("cut", "other types"):
            check_told(invoke(*arguments), file, f"{command}, {name} is {kind}")


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_config_is_a_line_for_those_who_are_given_it(run: Path, kind: str) -> None:
    file = damage(run, "config.yaml", kind)
    for command in (("submit", "--address", "http://h:1", "--dry-run"), ("run", "--dry-run"), ("plan",)):
        found = invoke(command[0], str(file), *command[1:])
        check_told(found, file, f"{command}, {kind}")
        assert found.exit_code == 2


def test_the_whole_run_is_told_without_a_complaint(run: Path) -> None:
    for command, arguments in commands(run).items():
        assert invoke(*arguments).exit_code == 0, command
    assert yaml.safe_load((run / "config.yaml").read_text())["type"] == "online"
    remove(run / "inputs.json")
    assert invoke("run", str(run.parent / "config.yaml"), "--resume").exit_code == 0
