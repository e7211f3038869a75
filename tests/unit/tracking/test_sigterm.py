"""SIGTERM within this process: raised where Ctrl-C would be, whoever took the signal meanwhile; what a run then says."""

from __future__ import annotations

import os
import signal

import pytest
import typer
from typer.testing import CliRunner

from ultramed_rl.cli.program import app, carrying_out, command
from ultramed_rl.tracking.heartbeat import Terminated, keep_sigterm


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("taken")
def test_the_signal_is_taken_back_from_whoever_took_it() -> None:
    stolen: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stolen.append(number))
    keep_sigterm()
    with pytest.raises(Terminated):
        terminate()
    assert not stolen and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_process_that_never_took_it_keeps_its_own_handler() -> None:
    before = signal.getsignal(signal.SIGTERM)
    keep_sigterm()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("error", "code"), [(Terminated(), 143), (KeyboardInterrupt(), 130), (SystemExit(15), 143)]
)
def test_an_interruption_has_its_exit_code(error: BaseException, code: int) -> None:
    """SystemExit is what Ray makes of the signal while it starts."""
    with pytest.raises(typer.Exit) as caught, carrying_out("ultramed-rl run x.yaml --resume"):
        raise error
    assert caught.value.exit_code == code


@pytest.mark.usefixtures("taken")
def test_a_wait_in_ray_hides_the_signal_and_not_its_exit_code() -> None:
    """Ray raises KeyboardInterrupt for whatever a signal's handler raised."""

    def wait() -> dict[str, object]:
        try:
            terminate()
        except Terminated:
            raise KeyboardInterrupt from None
        return {}

    with pytest.raises(typer.Exit) as caught, carrying_out("ultramed-rl run x.yaml --resume"):
        wait()
    assert caught.value.exit_code == 143


def test_every_command_ends_so_also_outside_of_its_run() -> None:
    before = list(app.registered_commands)

    def wait() -> None:
        raise Terminated

    try:
        command("wait")(wait)
        found = CliRunner().invoke(app, ["wait"])
    finally:
        app.registered_commands[:] = before
    assert found.exit_code == 143 and len(found.stderr.splitlines()) == 1
