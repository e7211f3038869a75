"""Commands that read run directories: how a run stands, its report, a comparison of runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ultramed_rl.cli.program import (
    FAILED,
    WRONG,
    RunDirectoryPath,
    RunPlace,
    carrying_out,
    checking,
    command,
    fail,
)
from ultramed_rl.tracking.console import say, tell


@command("status")
def status_command(
    run_dir: RunPlace,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="until the run ends; then 1 unless it finished")
    ] = False,
) -> None:
    """Show how a run, a stage or a recipe stands: phase, progress, time left, last metrics, who drives it.

    It reads the run's files alone, so it works from any machine that sees them, and disturbs nothing.

    Example: ultramed-rl status runs/quickstart --follow
    """
    from ultramed_rl.tracking.status import follow as follow_status
    from ultramed_rl.tracking.status import read_status, render_status, status_mapping

    with _at_hand(run_dir, words=True, follow=follow) as folder:
        with checking():
            status = follow_status(folder) if follow else read_status(folder)
        if not follow:
            tell("status", **{**status_mapping(status), "directory": str(run_dir)})
            say(render_status(status))
        elif status.state != "finished":
            raise typer.Exit(FAILED)


@command("timeline")
def timeline_command(
    run_dir: RunDirectoryPath,
    out: Annotated[
        Path | None, typer.Option(help="the trace; by default trace.json in the run's folder")
    ] = None,
) -> None:
    """Show how busy each role was in each phase of an online run, and write the trace that Perfetto opens.

    Example: ultramed-rl timeline runs/quickstart --out trace.json
    """
    from ultramed_rl.store.atomic import write_lines
    from ultramed_rl.tracking.timeline import (
        read_timeline,
        render_utilisation,
        trace_events,
        utilisation_table,
        workers_of,
    )

    with checking():
        spans = read_timeline(run_dir)
    table = utilisation_table(spans)
    tell("utilisation", phases=table)
    say(render_utilisation(table, workers_of(spans)))
    with carrying_out() as result:
        path = run_dir / "trace.json" if out is None else out
        write_lines(path, [trace_events(spans)])
        say(f"trace: {path} (open it at https://ui.perfetto.dev)")
        result["output"] = str(path)


@command("report")
def report_command(
    run_dir: RunPlace,
    output: Annotated[
        Path | None,
        typer.Option(help="the HTML file; by default in the run's folder, of a URL NAME.html here"),
    ] = None,
) -> None:
    """Write a run's report: one HTML file that needs no network.

    Example: ultramed-rl report runs/quickstart --output quickstart.html
    """
    with _at_hand(run_dir) as folder:
        _check_runs([folder])
        target = Path(f"{folder.name}.html") if output is None and "://" in run_dir else output
        with carrying_out() as result:
            from ultramed_rl.report import write_report

            result["output"] = str(write_report(folder, target))
            say(f"report: {result['output']}")


@command("compare")
def compare_command(
    run_dirs: Annotated[
        list[str],
        typer.Argument(metavar="RUN_DIR RUN_DIR...", help="two runs or more, or URLs of their copies"),
    ],
    output: Annotated[Path, typer.Option(help="the HTML file")] = Path("comparison.html"),
) -> None:
    """Compare runs in one HTML file, with paired statistics where they share their prompts.

    Example: ultramed-rl compare runs/dpo runs/simpo --output dpo-simpo.html
    """
    if len(run_dirs) < 2:
        fail(f"{run_dirs[0]}: 1 run, but a comparison needs 2 or more; name another beside it", WRONG)
    with ExitStack() as open_runs:
        folders = [open_runs.enter_context(_at_hand(run_dir)) for run_dir in run_dirs]
        _check_runs(folders)
        with carrying_out() as result:
            from ultramed_rl.report import write_comparison

            result["output"] = str(write_comparison(folders, output))
            say(f"report: {result['output']}")


@contextmanager
def _at_hand(run_dir: str, *, words: bool = False, follow: bool = False) -> Iterator[Path]:
    """The run's folder, or what is read of its copy at a URL."""
    from ultramed_rl.store.remote import at_hand

    with ExitStack() as fetched:
        with checking():
            folder = fetched.enter_context(at_hand(run_dir, words=words, follow=follow))
        yield folder


def _check_runs(run_dirs: list[Path]) -> None:
    from ultramed_rl.tracking.status import read_status

    with checking():
        for run_dir in run_dirs:
            read_status(run_dir)
