"""The program that the commands belong to."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from ultramed_rl.cli.exits import interruptible

EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 the config or command line is wrong, 130 interrupted by Ctrl-C, 143 by SIGTERM."
_HELP = f"""Online iterative preference learning for specialised language models.

`ultramed-rl COMMAND CONFIG section.key=value ...`: complete configs are in configs/; `ultramed-rl COMMAND --help` has
an example. `--install-completion` makes the shell complete commands and options.

{EXIT_CODES}
"""

app = typer.Typer(
    name="ultramed-rl",
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=_HELP,
)


def command(name: str) -> Callable[[Any], Any]:
    """A command of the program, with its exit codes under its help; interrupted, it ends with one line and 130 or 143."""

    def add(run: Any) -> Any:
        @wraps(run)
        def interruptibly(*arguments: Any, **options: Any) -> Any:
            with interruptible():
                return run(*arguments, **options)

        return app.command(name, epilog=EXIT_CODES)(interruptibly)

    return add


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
