"""The program that the commands belong to: what they have in common, how they speak, and how they end."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ultramed_rl.tracking.console import speaking, tell_result
from ultramed_rl.tracking.heartbeat import was_terminated

if TYPE_CHECKING:
    from ultramed_rl.config.document import Document

FAILED, WRONG, INTERRUPTED, TERMINATED = 1, 2, 130, 143
EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 the config or command line is wrong, 130 interrupted by Ctrl-C, 143 by SIGTERM."
app = typer.Typer(
    name="ultramed-rl",
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=f"""Online iterative preference learning for specialised language models.

Use: `ultramed-rl COMMAND CONFIG section.key=value`. Complete configs are in configs/. `ultramed-rl COMMAND --help` shows an
example. `--install-completion` lets the shell complete commands and options.

{EXIT_CODES}
""",
)

# -- arguments and options ---------------------------------------------------------------------------------

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="a YAML file; see configs/")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.KEY=VALUE", help="any key of the config, as in training.epochs=2"),
]
ConfigOrOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="CONFIG|SECTION.KEY=VALUE", help="a YAML file, then any of its keys; or options alone"
    ),
]
RunDirectoryPath = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="a run's folder, as in runs/NAME")]
RunPlace = Annotated[
    str, typer.Argument(metavar="RUN_DIR", help="a run's folder, as in runs/NAME, or the URL of its copy")
]
Resume = Annotated[bool, typer.Option("--resume", help="continue where an earlier run stopped")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="check the config, the data and the plan; start nothing")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="print errors only, and at the end the path of the result")
]
Json = Annotated[
    bool,
    typer.Option("--json", help="print a JSON object per event on stdout, the result last; text on stderr"),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("ultramed_rl"))
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show it and exit")
    ] = False,
) -> None:
    # Without a docstring: the program's help is above.
    pass


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command of the program. It takes --quiet and --json too, and has its exit codes under its help; interrupted, it
    ends with one line and 130 or 143."""

    def add(run: Callable[..., None]) -> Callable[..., None]:
        @wraps(run)
        def speak_and_run(*arguments: Any, quiet: bool = False, json: bool = False, **options: Any) -> None:
            if quiet and json:
                fail("--quiet and --json: choose one; --json says nothing for people on stdout either", WRONG)
            with speaking("quiet" if quiet else "json" if json else "people"), interruptible():
                run(*arguments, **options)

        signature = inspect.signature(run, eval_str=True)
        manners = [
            inspect.Parameter(manner, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
            for manner, option in (("quiet", Quiet), ("json", Json))
        ]
        parameters = [*signature.parameters.values(), *manners]
        speak_and_run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return app.command(name, epilog=EXIT_CODES)(speak_and_run)

    return add


# -- ends --------------------------------------------------------------------------------------------------


def fail(message: str, code: int, **fields: Any) -> NoReturn:
    """Say it on stderr and exit; `fields` are for programs."""
    message = message.encode(errors="backslashreplace").decode()
    tell_result(False, exit_code=code, error=message, **fields)
    typer.echo(message, err=True)
    raise typer.Exit(code)


@contextmanager
def checking(document: Document | None = None) -> Iterator[None]:
    """Within, what says that something is wrong ends the command with code 2, a line for each problem; what fails of
    itself with code 1.

    Args:
        document: the config that it is about, which names the file and the line.
    """
    from ultramed_rl.config.base import ConfigError, Problems

    try:
        yield
    except ValueError as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        names_file = isinstance(error, ConfigError) and not isinstance(error, Problems)
        if document is not None and not names_file:
            problems = [document.tell(problem) for problem in problems]
        fail(str(ConfigError(problems)), WRONG)
    except typer.Exit:
        raise
    except (RuntimeError, OSError) as error:
        fail(one_line(error), FAILED)


@contextmanager
def carrying_out(again: str | None = None) -> Iterator[dict[str, Any]]:
    """Within, failures are one line with an exit code, unless they are our own bugs; what is put into the mapping is told
    to programs at the end.

    Args:
        again: the command that goes on with it; None where there is nothing to go on with.
    """
    how = f"go on with: {again}" if again else "nothing is lost"
    result: dict[str, Any] = {}
    try:
        with interruptible(f"what was finished is kept, {how}" if again else "", resume=again):
            yield result
    except typer.Exit:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        from ultramed_rl.config.base import ConfigError

        fail(one_line(error), WRONG if isinstance(error, ConfigError) else FAILED, resume=again)
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


def one_line(error: BaseException) -> str:
    """The message of an error; of one that crossed from a Ray actor, the message that was raised there; of the system's,
    the file first."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        name = os.fsdecode(error.filename)
        return f"{name}: {error.strerror}; mend the file or its permissions, or put it back from a copy"
    cause = getattr(error, "cause", None)
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(error)
