"""`ultramed-rl <command> CONFIG [section.key=value ...]`: parse and validate first, then load what computes.

Exit codes: 0 done, 1 the run failed, 2 the config or command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="a YAML file; see configs/")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="as in training.epochs=2")
]


@app.command("run")
def run_command(
    config_path: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where an earlier run stopped")] = False,
) -> None:
    """Run online rounds: sample, score, select pairs, train, sync, evaluate.

    Example: ultramed-rl run configs/quickstart.yaml run.name=mine run.seed=1
    """
    from ultramed_rl.config import ConfigError, load_config

    try:
        config = load_config(config_path, overrides or [])
        from ultramed_rl.cluster.plan import make_plan

        make_plan(config)
    except ConfigError as error:
        fail(str(error), 2)
    except ValueError as error:
        fail(f"{config_path}: {error}", 2)

    from ultramed_rl.online.run import run

    try:
        run(config, resume=resume)
    except KeyboardInterrupt:
        again = f"ultramed-rl run {config_path} {' '.join(overrides or [])}".strip()
        fail(f"interrupted; finished phases are kept, go on with: {again} --resume", 130)
    except (ValueError, RuntimeError, OSError) as error:
        fail(one_line(error), 1)
    except Exception as error:
        if not type(error).__module__.startswith("ray."):
            raise  # our own bug: show where
        fail(f"{one_line(error)}\nfinished phases are kept: go on with --resume", 1)


@app.command("plan")
def plan_command(config_path: ConfigPath, overrides: Overrides = None) -> None:
    """Show every role's processes, devices and bytes against what the nodes have. Starts nothing.

    Example: ultramed-rl plan configs/llama3-70b-4node.yaml cluster.policy.zero_stage=2
    """
    from ultramed_rl.cluster.plan import make_plan, render_plan
    from ultramed_rl.config import ConfigError, load_config

    try:
        typer.echo(render_plan(make_plan(load_config(config_path, overrides or []))))
    except ConfigError as error:
        fail(str(error), 2)
    except ValueError as error:
        fail(f"{config_path}: {error}", 2)


def one_line(error: BaseException) -> str:
    """The message of an error; of one that crossed from a Ray actor, the message that was raised there."""
    cause = getattr(error, "cause", None)
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(error)


def fail(message: str, code: int) -> NoReturn:
    """Say it on stderr and exit."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point."""
    sys.exit(app())


if __name__ == "__main__":
    main()
