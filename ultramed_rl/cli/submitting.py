"""Commands that run a config as a job of a Ray cluster, and look after such jobs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ultramed_rl.cli.exits import WRONG, check, fail
from ultramed_rl.cli.jobs import Address, address_of, follow_to_end, reaching
from ultramed_rl.cli.options import ConfigPath, DryRun, Json, Order, Overrides, Quiet, manner_of
from ultramed_rl.cli.program import command
from ultramed_rl.cli.runs import command_of, is_recipe, read_order
from ultramed_rl.tracking.console import say, speaking, tell, tell_result

if TYPE_CHECKING:
    from ultramed_rl.cluster.submission import Submission


@command("submit")
def submit_command(
    config_path: ConfigPath,
    address: Address,
    overrides: Overrides = None,
    name: Annotated[
        str | None, typer.Option("--name", "--submission-id", help="the job's id; by default the run's name")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="go on where an earlier run stopped, if there is one")
    ] = True,
    working_dir: Annotated[
        Path | None,
        typer.Option(help="a folder to send along; relative paths of the config then lead into it"),
    ] = None,
    runtime_env: Annotated[
        Path | None, typer.Option(help="YAML of the job's environment: env_vars, pip and Ray's other keys")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE, or KEY with its value here; again for more")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="follow the log until the job ends, or only send it")
    ] = True,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a config of any type as a job of a Ray cluster; the same line starts a run and takes it up again.

    Only the resolved config is sent. Variables can be read on Ray's dashboard by whoever reaches it.

    Example: ultramed-rl submit configs/llama3-70b-4node.yaml run.directory=/shared/runs --address http://HEAD:8265
    """
    with speaking(manner_of(quiet, json)):
        address = address_of(address)
        config = _checked(config_path, overrides or [], working_dir)
        variables = check(lambda: _runtime_env(runtime_env, env or []))
        submission = _submission(config, name, resume, variables, working_dir)
        _announce(submission, config)
        if dry_run:
            say("nothing was sent")
            tell_result(True, exit_code=0, dry_run=True)
        else:
            _send(submission, address, wait)


def _send(submission: Submission, address: str, wait: bool) -> None:
    with reaching(address) as server:
        identity = server.submit(submission)
        tell("submitted", id=identity, address=address)
        say(f"submitted as Ray job {identity}")
    if wait:
        follow_to_end(server, identity)
    else:
        say(f"follow: ultramed-rl jobs logs {identity} --follow --address {address}")
        say(f"stop:   ultramed-rl jobs stop {identity} --address {address}")
        tell_result(True, exit_code=0, id=identity)


def _checked(config_path: str, overrides: list[str], working_dir: Path | None) -> Any:
    """The config or recipe, valid and planned, with paths that mean the same on the cluster; else exit with 2."""
    from ultramed_rl.cluster.submission import is_relative, path_problems
    from ultramed_rl.config import ConfigError
    from ultramed_rl.config.load import check_any
    from ultramed_rl.config.recipe import check_recipe
    from ultramed_rl.recipes.run import check_runnable, plan_recipe

    if working_dir is not None and not working_dir.is_dir():
        fail(f"--working-dir {working_dir}: no such folder; name one that exists", WRONG)
    document = read_order(Order(config_path, tuple(overrides)))
    whole = is_recipe(document)
    read: Any = check_recipe if whole else check_any
    config = check(lambda: read(document))
    problems = path_problems(config.to_mapping(), working_dir)
    if problems:
        fail(str(ConfigError([document.tell(line) for line in problems])), WRONG)
    with chdir(working_dir or Path()):
        check(lambda: (plan_recipe if whole else check_runnable)(config), document)
    if is_relative(config.run.directory):
        say(
            f"run.directory={config.run.directory!r}: in the job's copy of {working_dir}, which goes when the job is "
            "gone; a run that is to be kept needs an absolute path"
        )
    return config


def _runtime_env(file: Path | None, variables: list[str]) -> dict[str, Any]:
    from ultramed_rl.cluster.submission import read_runtime_env

    return read_runtime_env(file, variables, os.environ)


def _submission(
    config: Any, name: str | None, resume: bool, runtime_env: Mapping[str, Any], working_dir: Path | None
) -> Submission:
    from ultramed_rl.cluster.submission import CONFIG_FILE, Submission
    from ultramed_rl.config import dump_config

    words = command_line(config, CONFIG_FILE, resume)
    return Submission(name or config.run.name, words, dump_config(config), runtime_env, working_dir)


def command_line(config: Any, file: str, resume: bool) -> tuple[str, ...]:
    """The command that runs a config or recipe of this type from a file."""
    return ("ultramed-rl", *command_of(config).split(), file, *(["--resume"] if resume else []))


def _announce(submission: Submission, config: Any) -> None:
    """Say what is sent: variables by their names alone."""
    sent = sorted(submission.runtime_env.get("env_vars", {}))
    tell("submission", name=submission.name, command=list(submission.command), variables=sent)
    say(f"{submission.name} ({config.type}): {' '.join(submission.command)}")
    say(f"variables: {', '.join(sent) or 'none'}")
    unsent = sorted(_variables_read(config.to_mapping()) - set(sent))
    if unsent:
        say(f"the config reads {', '.join(unsent)}: the nodes must have them, or send them with --env NAME")


def _variables_read(node: Any) -> set[str]:
    """Environment variables that a config names."""
    if isinstance(node, list):
        return {name for item in node for name in _variables_read(item)}
    if not isinstance(node, Mapping):
        return set()
    named = {value for key, value in node.items() if str(key).endswith("_env") and isinstance(value, str)}
    return named | {name for value in node.values() for name in _variables_read(value)}
