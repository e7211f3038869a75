"""`ultramed-rl doctor`: what this machine has, what is missing, and the cure of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ultramed_rl.cli.doctor.finding import Finding
from ultramed_rl.cli.exits import FAILED
from ultramed_rl.cli.options import Json, manner_of
from ultramed_rl.cli.program import command
from ultramed_rl.tracking.console import say, speaking, tell, tell_result


@command("doctor")
def doctor_command(
    config_path: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG|RUN_DIR]",
            help="also whether this machine suits a config; of a run alone where it listens, and for whom",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check this machine: versions, devices, communication, engines, Ray, ports, disk, hub, tracking; each with its fix.

    Exits with 1 if a check fails; warnings don't count.

    Example: ultramed-rl doctor configs/quickstart.yaml
    """
    from ultramed_rl.cli.doctor.examination import Patient, examine
    from ultramed_rl.cli.doctor.ports import check_run_ports

    with speaking(manner_of(False, json)):
        counts: Counter[str] = Counter()
        run = Path(config_path or "")
        for finding in (
            check_run_ports(run) if config_path and run.is_dir() else examine(Patient.of(config_path))
        ):
            counts[finding.level] += 1
            tell("finding", **asdict(finding))
            say(render_finding(finding))
        say(f"{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failures")
        tell_result(not counts["fail"], exit_code=int(bool(counts["fail"])), counts=dict(counts))
        if counts["fail"]:
            raise typer.Exit(FAILED)


def render_finding(finding: Finding) -> str:
    """A finding as a line, its fix as another."""
    fix = f"\n{'':17}fix: {finding.fix}" if finding.fix else ""
    return f"{finding.level:4}  {finding.name:10} {finding.text}{fix}"
