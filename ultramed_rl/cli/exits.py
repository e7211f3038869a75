"""How commands end: exit codes, errors in one line, and how to go on."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from ultramed_rl.tracking.console import tell_result
from ultramed_rl.tracking.termination import was_terminated

if TYPE_CHECKING:
    from ultramed_rl.config.document import Document

T = TypeVar("T")
FAILED, WRONG, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def fail(message: str, code: int, **fields: Any) -> NoReturn:
    """Say it on stderr and exit; `fields` are for programs."""
    message = message.encode(errors="backslashreplace").decode()
    tell_result(False, exit_code=code, error=message, **fields)
    typer.echo(message, err=True)
    raise typer.Exit(code)


def check(read: Callable[[], T], document: Document | None = None) -> T:
    """What `read` gives; exits with code 2 where it says that something is wrong, a line for each problem.

    Args:
        document: the config that it is about, which names the file and the line.
    """
    from ultramed_rl.config.base import ConfigError, Problems

    try:
        return read()
    except ValueError as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        names_file = isinstance(error, ConfigError) and not isinstance(error, Problems)
        told = [document.tell(p) for p in problems] if document and not names_file else problems
        fail(str(ConfigError(told)), WRONG)
    except OSError as error:
        fail(one_line(error), FAILED)


def carry_out(action: Callable[[], Mapping[str, Any]], again: str | None = None) -> None:
    """Run it and tell programs what it gave; failures are one line with an exit code, unless they are our own bugs.

    Args:
        again: the command that goes on with it; None where there is nothing to go on with.
    """
    how = f"go on with: {again}" if again else "nothing is lost"
    try:
        with interruptible(f"what was finished is kept, {how}" if again else "", resume=again):
            result = action()
    except typer.Exit:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        fail(one_line(error), FAILED, resume=again)
    except Exception as error:
        if not type(error).__module__.startswith("ray."):
            raise  # our own bug: show where
        fail(f"{one_line(error)}\nwhat was finished is kept: {how}", FAILED, resume=again)
    tell_result(True, exit_code=0, **result)


@contextmanager
def interruptible(kept: str = "", **fields: Any) -> Iterator[None]:
    """Within, Ctrl-C and SIGTERM end the command with one line and their exit code.

    Args:
        kept: what the line says besides.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        # SystemExit: while Ray starts, it answers a SIGTERM itself.
        by_user = type(error) is KeyboardInterrupt and not was_terminated()
        words = "interrupted" if by_user else "ended by SIGTERM"
        fail(f"{words}; {kept}" if kept else words, INTERRUPTED if by_user else TERMINATED, **fields)


def resume_command(
    name: str, config_path: str | None, overrides: tuple[str, ...], flags: tuple[str, ...]
) -> str:
    """The command line that goes on with a run, as a shell reads it."""
    given = [config_path] if config_path else []
    others = [flag for flag in flags if flag != "--resume"]
    return shlex.join(["ultramed-rl", *name.split(), *given, *overrides, *others, "--resume"])


def one_line(error: BaseException) -> str:
    """The message of an error; of one that crossed from a Ray actor, the message that was raised there; of the system's,
    the file first."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        name = os.fsdecode(error.filename)
        return f"{name}: {error.strerror}; mend the file or its permissions, or put it back from a copy"
    cause = getattr(error, "cause", None)
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(error)
