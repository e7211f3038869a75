"""Arguments and options that commands have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ultramed_rl.cli.exits import fail
from ultramed_rl.tracking.console import Manner

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="a YAML file; see configs/")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="as in training.epochs=2")
]
ConfigOrOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG] [SECTION.KEY=VALUE]...", help="a YAML file, or options alone"),
]
RunDirectoryPath = Annotated[Path, typer.Argument(metavar="RUN_DIR", help="a run's folder, as in runs/NAME")]
RunPlace = Annotated[
    str, typer.Argument(metavar="RUN_DIR", help="a run's folder, as in runs/NAME, or the URL of its copy")
]
RunNameOption = Annotated[str | None, typer.Option(help="the run's name, a folder under runs/")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cuda or cpu")]
PrecisionOption = Annotated[str | None, typer.Option(help="auto, bfloat16 or float32")]
Resume = Annotated[bool, typer.Option("--resume", help="go on where an earlier run stopped")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="check and plan, say what would be done, start nothing")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="only errors, and at the end the path of what was made")
]
Json = Annotated[
    bool, typer.Option("--json", help="a JSON object per event on stdout, the result last; lines on stderr")
]


@dataclass(frozen=True)
class Order:
    """What a command was asked to do, with which config; `flags` are its own options, for the command to go on."""

    config_path: str | None
    overrides: tuple[str, ...] = ()
    resume: bool = False
    dry_run: bool = False
    flags: tuple[str, ...] = ()


def manner_of(quiet: bool, json: bool) -> Manner:
    """How to speak. Exits with code 2 where both are asked for."""
    if quiet and json:
        fail("--quiet and --json: choose one; --json says nothing for people on stdout either", 2)
    return "quiet" if quiet else "json" if json else "people"
