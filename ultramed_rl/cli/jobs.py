"""Commands that run a config as a job of a Ray cluster, and look after such jobs: list, status, logs, stop."""

from __future__ import annotations

import json
import os
import time
from contextlib import chdir
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ultramed_rl.cli.program import (
    FAILED,
    WRONG,
    ConfigPath,
    DryRun,
    Overrides,
    checking,
    command,
    fail,
    interruptible,
    one_line,
)
from ultramed_rl.cli.runs import Invocation, command_of, show_plans
from ultramed_rl.tracking.console import manner, say, tell, tell_result

if TYPE_CHECKING:
    from ultramed_rl.cluster.jobs import JobServer, JobState, Submission

Address = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", help="the dashboard of the cluster, as in http://HEAD:8265"
    ),
]
Headers = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_JOB_HEADERS",
        help='JSON of what a proxy before the dashboard wants with every request: {"Authorization": "Bearer ..."}',
    ),
]
Verify = Annotated[
    str, typer.Option(help="of https: true, false, or a file or folder with the certificates to trust")
]
_COLUMNS = [("job", "{identity}"), ("status", "{status}"), ("time", "{time}"), ("command", "{command}")]


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
    headers: Headers = None,
    verify: Verify = "true",
    dry_run: DryRun = False,
) -> None:
    """Run a config of any type as a job of a Ray cluster. The same line starts a run and resumes it.

    Only the resolved config is sent. Anyone who reaches Ray's dashboard can read the variables that you send.

    Example: ultramed-rl submit configs/llama3-70b-4node.yaml run.directory=/shared/runs --address http://HEAD:8265
    """
    from ultramed_rl.cluster.jobs import CONFIG_FILE, Submission, check_size, read_runtime_env
    from ultramed_rl.config import dump_config

    address = _address_of(address)
    config = _read_for_cluster(Invocation(config_path, overrides or [], dry_run=dry_run), working_dir)
    with checking():
        variables = read_runtime_env(runtime_env, env or [], os.environ)
    words = command_line(config, CONFIG_FILE, resume)
    submission = Submission(name or config.run.name, words, dump_config(config), variables, working_dir)
    with checking():
        check_size(submission)
    _announce(submission, config)
    if dry_run:
        say("nothing was sent")
        tell_result(True, exit_code=0, dry_run=True)
    else:
        _send(submission, _server(address, headers, verify), wait)


def _announce(submission: Submission, config: Any) -> None:
    """Say what is sent: variables by their names alone."""
    from ultramed_rl.config.base import texts_of
    from ultramed_rl.recipes.run import stages_of

    sent = sorted(submission.runtime_env.get("env_vars", {}))
    tell("submission", name=submission.name, command=list(submission.command), variables=sent)
    say(f"{submission.name} ({config.type}): {' '.join(submission.command)}")
    say(f"variables: {', '.join(sent) or 'none'}")
    named = {text for _, name, text in texts_of(config.to_mapping()) if name.endswith("_env")}
    unsent = sorted(named - set(sent))
    if unsent:
        say(f"the config reads {', '.join(unsent)}: the nodes must have them, or send them with --env NAME")
    modes = {getattr(getattr(stage, "tracking", None), "wandb", "") for _, stage in stages_of(config)}
    if modes & {"auto", "online"} and not {"WANDB_API_KEY", "WANDB_MODE"} & set(sent):
        say(
            "no key of wandb is sent: unless the nodes have one the run is tracked offline; --env WANDB_API_KEY sends the "
            "variable, and ~/.netrc stays here"
        )


def _send(submission: Submission, server: JobServer, wait: bool) -> None:
    address = server.address
    with checking():
        identity = server.submit(submission)
    tell("submitted", id=identity, address=address)
    say(f"submitted as Ray job {identity}")
    if wait:
        _follow_to_end(server, identity)
    else:
        say(f"follow: ultramed-rl jobs logs {identity} --follow --address {address}")
        say(f"stop:   ultramed-rl jobs stop {identity} --address {address}")
        tell_result(True, exit_code=0, id=identity)


@command("jobs")
def jobs_command(
    action: Annotated[
        Literal["list", "status", "logs", "stop"], typer.Argument(metavar="list|status|logs|stop")
    ],
    address: Address,
    job: Annotated[str | None, typer.Argument(metavar="JOB", help="the job's id; list takes none")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="logs: until the job ends; then 1 unless it succeeded")
    ] = False,
    headers: Headers = None,
    verify: Verify = "true",
) -> None:
    """List the jobs of a Ray cluster, or show, follow or stop one. Ctrl-C leaves a log, not the job.

    Example: ultramed-rl jobs logs llama3-70b-ultramedical-online --follow --address http://HEAD:8265
    """
    address = _address_of(address)
    if (job is None) != (action == "list"):
        wanted = "no JOB" if job else "the id of a JOB; see ultramed-rl jobs list"
        fail(f"jobs {action}: takes {wanted}", WRONG)
    if follow and action != "logs":
        fail(f"jobs {action}: --follow is for logs alone; use ultramed-rl jobs logs", WRONG)
    server = _server(address, headers, verify)
    with checking():
        if job is None:
            _show_list(server)
        elif action == "logs" and not follow:
            text = server.log(job)
            tell("log", id=job, text=text)
            _print(text)
        elif action != "logs":
            state = server.stop(job) if action == "stop" else server.state(job)
            tell("job", **asdict(state))
            say(_line(state))
    if follow:
        _follow_to_end(server, job or "")
    else:
        tell_result(True, exit_code=0)


def _read_for_cluster(invocation: Invocation, working_dir: Path | None) -> Any:
    """The config or recipe, valid and planned, with paths that mean the same on the cluster; else exit with 2. A dry run shows
    the plan."""
    from ultramed_rl.cluster.inputs import path_problems
    from ultramed_rl.config.base import Problems
    from ultramed_rl.config.recipe import check_config
    from ultramed_rl.recipes.run import check_runnable

    if working_dir is not None and not working_dir.is_dir():
        fail(f"--working-dir {working_dir}: no such folder; name one that exists", WRONG)
    document = invocation.read()
    with checking(document):
        config = check_config(document)
        if problems := path_problems(config.to_mapping(), working_dir):
            raise Problems(problems)
        with chdir(working_dir or Path()):
            check_runnable(config)
            if invocation.dry_run:
                show_plans(config)
    return config


def command_line(config: Any, file: str, resume: bool) -> tuple[str, ...]:
    """The command that runs a config or recipe of this type from a file."""
    return ("ultramed-rl", *command_of(config).split(), file, *(["--resume"] if resume else []))


def _address_of(text: str) -> str:
    """The address of a job server; exits with code 2 where it reads like that of something else."""
    if not text.startswith(("http://", "https://")):
        fail(f"--address {text}: must be the dashboard's, which takes jobs, as in http://HEAD:8265", WRONG)
    return text.rstrip("/")


def _server(address: str, headers: str | None, verify: str) -> JobServer:
    """The cluster that takes jobs there; exits with 2 where an option isn't readable. No header is shown."""
    from ultramed_rl.cluster.jobs import JobServer

    try:
        sent = json.loads(headers or "{}")
    except ValueError:
        sent = None
    if not isinstance(sent, dict) or not all(isinstance(value, str) for value in sent.values()):
        fail('--headers: must be JSON of texts by name, as in {"Authorization": "Bearer ..."}', WRONG)
    checked = {"true": True, "1": True, "false": False, "0": False}.get(verify.lower(), verify)
    if isinstance(checked, str) and not Path(checked).exists():
        fail(
            f"--verify {verify}: must be true, false, or a file or folder of certificates; there is none",
            WRONG,
        )
    with checking():
        return JobServer(address, sent, checked)


def _follow_to_end(server: JobServer, identity: str) -> None:
    """Print a job's log until it ends; exits with code 1 unless it succeeded. Ctrl-C leaves the job alone."""
    again = f"ultramed-rl jobs logs {identity} --follow --address {server.address}"
    stop = f"ultramed-rl jobs stop {identity} --address {server.address}"
    goes_on = f"Ray job {identity} goes on; follow it with: {again}\nstop it with: {stop}"
    try:
        with interruptible(goes_on, id=identity):
            state = server.follow(identity, _print)
    except typer.Exit:
        raise
    except (RuntimeError, OSError) as error:
        fail(f"{one_line(error)}; follow it with: {again}", FAILED, id=identity)
    if state.status != "succeeded":
        ended = f"{state.status} ({state.message})"
        fail(f"Ray job {identity}: {ended}; its log above says why", FAILED, id=identity)
    say(_line(state))
    tell_result(True, exit_code=0, id=identity)


def _print(text: str) -> None:
    if manner() != "quiet":
        print(text, end="", flush=True)


def _show_list(server: JobServer) -> None:
    from ultramed_rl.tracking.tables import render_table

    states = server.states()
    for state in states:
        tell("job", **asdict(state))
    rows = [{**asdict(state), "time": _time(state)} for state in states]
    say(render_table(_COLUMNS, rows) if rows else f"no jobs at {server.address}")


def _line(state: JobState) -> str:
    return f"Ray job {state.identity}: {state.status} ({state.message}), {_time(state)}, {state.command}"


def _time(state: JobState) -> str:
    from ultramed_rl.tracking.tables import duration

    return "-" if state.started is None else duration((state.ended or time.time()) - state.started)
