"""`ultramed-rl doctor`: what this machine has, what is missing, and the cure of each, told as it is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ultramed_rl.cli import communication, examination
from ultramed_rl.cli.examination import Finding
from ultramed_rl.cli.program import FAILED, command
from ultramed_rl.tracking.console import say, tell, tell_result


@command("doctor")
def doctor_command(
    config_path: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG|RUN_DIR]",
            help="also whether this machine suits a config; of a run alone where it listens, and for whom",
        ),
    ] = None,
) -> None:
    """Check this machine: versions, devices, communication, engines, Ray, ports, disk, hub, tracking; each with its fix.

    Exits with 1 if a check fails; warnings don't count.

    Example: ultramed-rl doctor configs/quickstart.yaml
    """
    is_run = config_path is not None and Path(config_path).is_dir()
    counts: Counter[str] = Counter()
    for finding in communication.check_run_ports(Path(config_path or "")) if is_run else examine(config_path):
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


def examine(config_path: str | None = None) -> Iterator[Finding]:
    """Every finding as it comes, in the order in which one would mend things; a check that breaks is itself a finding."""
    config, problem = _read(config_path)
    cluster, run = getattr(config, "cluster", None), getattr(config, "run", None)
    address, device = getattr(cluster, "address", None), getattr(cluster, "device", None)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": examination.check_python,
        "packages": examination.check_packages,
        "devices": lambda: examination.check_devices(device, elsewhere=bool(address)),
        "all_reduce": communication.check_all_reduce,
        "engines": communication.check_engines,
        "ray": lambda: communication.check_ray(address),
        "ports": communication.check_machine_ports,
        "disk": lambda: examination.check_disk(run.folder.parent if run else Path("runs")),
        "hub": examination.check_hub,
        "model": examination.check_offline_model,
        "wandb": examination.check_wandb,
        "tensorboard": examination.check_tensorboard,
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:
            said = f"the check itself broke: {type(error).__name__}: {error}"
            yield Finding(name, "fail", said, "report this line with `ultramed-rl --version`")
    if problem:
        first, *others = problem.splitlines()
        more = f" (and {len(others)} more)" if others else ""
        yield Finding("config", "fail", first + more, f"edit {config_path}: `ultramed-rl plan` says the same")
    elif config is not None:
        yield Finding("config", "ok", f"{config_path}: valid, and its plan fits")


def _read(path: str | None) -> tuple[Any, str]:
    """(the config or recipe, what is wrong with it): None and nothing where there is none."""
    from ultramed_rl.config.document import read_document
    from ultramed_rl.config.recipe import check_config
    from ultramed_rl.recipes.run import check_runnable

    if path is None:
        return None, ""
    try:
        config = check_config(read_document(path))
        check_runnable(config)
        return config, ""
    except (ValueError, OSError) as error:
        return None, str(error)
