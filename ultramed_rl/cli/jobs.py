"""The command that looks after submitted jobs: list, status, logs, stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ultramed_rl.cli.exits import FAILED, WRONG, fail, interruptible, one_line
from ultramed_rl.cli.options import Json, manner_of
from ultramed_rl.cli.program import command
from ultramed_rl.tracking.console import manner, say, speaking, tell, tell_result

if TYPE_CHECKING:
    from ultramed_rl.cluster.jobs import JobServer, JobState

Address = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", help="the dashboard of the cluster, as in http://HEAD:8265"
    ),
]
_COLUMNS = [("job", "{identity}"), ("status", "{status}"), ("time", "{time}"), ("command", "{command}")]


@command("jobs")
def jobs_command(
    action: Annotated[
        Literal["list", "status", "logs", "stop"], typer.Argument(metavar="list|status|logs|stop")
    ],
    address: Address,
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="its id; list needs none")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="logs: until the job ends; then 1 unless it succeeded")
    ] = False,
    json: Json = False,
) -> None:
    """List the jobs of a Ray cluster, or show, follow or stop one. Ctrl-C leaves a log, not the job.

    Example: ultramed-rl jobs logs llama3-70b-ultramedical-online --follow --address http://HEAD:8265
    """
    with speaking(manner_of(False, json)):
        address = address_of(address)
        if (job is None) != (action == "list"):
            fail(
                f"jobs {action}: takes {'no JOB' if job else 'the id of a JOB; see ultramed-rl jobs list'}",
                WRONG,
            )
        if follow and action != "logs":
            fail(f"jobs {action}: --follow is for logs alone; use ultramed-rl jobs logs", WRONG)
        with reaching(address) as server:
            if not follow:
                _ACTIONS[action](server, job or "")
                tell_result(True, exit_code=0)
        if follow:
            follow_to_end(server, job or "")


def address_of(text: str) -> str:
    """The address of a job server; exits with code 2 where it reads like that of something else."""
    if not text.startswith(("http://", "https://")):
        fail(f"--address {text}: must be the dashboard's, which takes jobs, as in http://HEAD:8265", WRONG)
    return text.rstrip("/")


@contextmanager
def reaching(address: str) -> Iterator[JobServer]:
    """The jobs behind an address; what fails with them is one line and exit code 1."""
    from ultramed_rl.cluster.jobs import JobServer

    try:
        yield JobServer(address)
    except typer.Exit:
        raise
    except (RuntimeError, OSError) as error:
        fail(one_line(error), FAILED)


def follow_to_end(server: JobServer, identity: str) -> None:
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
        fail(
            f"Ray job {identity}: {state.status} ({state.message}); its log above says why",
            FAILED,
            id=identity,
        )
    say(_line(state))
    tell_result(True, exit_code=0, id=identity)


def _print(text: str) -> None:
    if manner() != "quiet":
        print(text, end="", flush=True)


def _show_list(server: JobServer, _: str) -> None:
    from ultramed_rl.tracking.summary import render_table

    states = server.states()
    for state in states:
        tell("job", **asdict(state))
    rows = [{**asdict(state), "time": _time(state)} for state in states]
    say(render_table(_COLUMNS, rows) if rows else f"no jobs at {server.address}")


def _show_status(server: JobServer, identity: str) -> None:
    state = server.state(identity)
    tell("job", **asdict(state))
    say(_line(state))


def _show_log(server: JobServer, identity: str) -> None:
    text = server.log(identity)
    tell("log", id=identity, text=text)
    _print(text)


def _stop(server: JobServer, identity: str) -> None:
    state = server.stop(identity)
    tell("job", **asdict(state))
    say(_line(state))


_ACTIONS = {"list": _show_list, "status": _show_status, "logs": _show_log, "stop": _stop}


def _line(state: JobState) -> str:
    return f"Ray job {state.identity}: {state.status} ({state.message}), {_time(state)}, {state.command}"


def _time(state: JobState) -> str:
    from ultramed_rl.tracking.status import duration

    return "-" if state.started is None else duration((state.ended or time.time()) - state.started)
