"""Commands that read run directories: how a run stands, its report, a comparison of runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ultramed_rl.cli.exits import FAILED, WRONG, carry_out, check, fail
from ultramed_rl.cli.options import Json, Quiet, RunDirectoryPath, manner_of
from ultramed_rl.cli.program import command
from ultramed_rl.tracking.voice import say, speaking, tell


@command("status")
def status_command(
    run_dir: RunDirectoryPath,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="until the run ends; then 1 unless it finished")
    ] = False,
    json: Json = False,
) -> None:
    """Show how a run, a stage or a recipe stands: phase, progress, time left, last metrics, who drives it.

    It reads the run's files alone, so it works from any machine that sees them, and disturbs nothing.

    Example: ultramed-rl status runs/quickstart --follow
    """
    from ultramed_rl.tracking.status import read_status
    from ultramed_rl.tracking.status_view import follow as follow_status
    from ultramed_rl.tracking.status_view import render_status, status_mapping

    with speaking(manner_of(False, json)):
        if not follow:
            status = check(lambda: read_status(run_dir))
            tell("status", **status_mapping(status))
            say(render_status(status))
            return
        status = check(lambda: follow_status(run_dir))
        if status.state != "finished":
            raise typer.Exit(FAILED)


@command("report")
def report_command(
    run_dir: RunDirectoryPath,
    output: Annotated[Path | None, typer.Option(help="the HTML file; by default in the run's folder")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write a run's report: one HTML file that needs no network.

    Example: ultramed-rl report runs/quickstart --output quickstart.html
    """
    with speaking(manner_of(quiet, json)):
        _check_runs([run_dir])

        def write() -> dict[str, Any]:
            from ultramed_rl.report import write_report

            return _written(write_report(run_dir, output))

        carry_out(write)


@command("compare")
def compare_command(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR RUN_DIR...", help="two runs or more")],
    output: Annotated[Path, typer.Option(help="the HTML file")] = Path("comparison.html"),
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Compare runs in one HTML file, with paired statistics where they share their prompts.

    Example: ultramed-rl compare runs/dpo runs/simpo --output dpo-simpo.html
    """
    with speaking(manner_of(quiet, json)):
        if len(run_dirs) < 2:
            fail(f"{run_dirs[0]}: a comparison needs another run beside it; name two or more", WRONG)
        _check_runs(run_dirs)

        def write() -> dict[str, Any]:
            from ultramed_rl.report import write_comparison

            return _written(write_comparison(run_dirs, output))

        carry_out(write)


def _check_runs(run_dirs: list[Path]) -> None:
    from ultramed_rl.tracking.status import read_status

    for run_dir in run_dirs:
        check(lambda run_dir=run_dir: read_status(run_dir))  # type: ignore[misc]


def _written(path: Path) -> dict[str, str]:
    say(f"report: {path}")
    return {"output": str(path)}
