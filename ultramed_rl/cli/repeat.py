"""The command that runs one config at several seeds and reports them together."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ultramed_rl.cli.program import WRONG, ConfigOrOverrides, DryRun, carrying_out, checking, command, fail
from ultramed_rl.cli.runs import Invocation, check_kind, what_happens
from ultramed_rl.tracking.console import say, tell, tell_result

if TYPE_CHECKING:
    from ultramed_rl.config import RunConfig
    from ultramed_rl.config.document import Document

State = Literal["new", "begun", "finished"]


@command("repeat")
def repeat_command(
    arguments: ConfigOrOverrides = None,
    seeds: Annotated[list[str] | None, typer.Option("--seeds", help="whole numbers, as in 42 43 44")] = None,
    output: Annotated[
        Path | None, typer.Option(help="the JSON file; by default NAME-seeds.json beside the runs")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Run an online config once for each seed, each as a run NAME-seedSEED, and report each measure with an interval over seeds
    and prompts. Runs that were begun go on, finished ones are read: the same command goes on after an interruption.

    Example: ultramed-rl repeat configs/quickstart.yaml --seeds 42 43 44 run.rounds=2
    """
    given = arguments or []
    # An option takes one word: the other seeds arrive as arguments.
    words = [*(seeds or []), *filter(_is_number, given)]
    config_path, *overrides = [word for word in given if not _is_number(word)] or [""]
    if not config_path or "=" in config_path:
        fail("repeat: needs a config, as in repeat configs/quickstart.yaml --seeds 42 43 44", WRONG)
    wanted = [int(word) for word in words if _is_number(word)]
    if not wanted or len(set(wanted)) < len(words):
        shown = " ".join(words) or "none"
        fail(f"--seeds {shown}: must be whole numbers, each once, as in --seeds 42 43 44", WRONG)
    document = Invocation(config_path, overrides).read()
    name = check_kind(document, "online").run.name
    configs: list[RunConfig] = []
    for seed in wanted:
        named = [*overrides, f"run.name={name}-seed{seed}", f"run.seed={seed}"]
        configs.append(check_kind(Invocation(config_path, named).read(), "online"))
    with checking():
        states = [_state(config) for config in configs]
    if dry_run:
        return _show(configs, states, document)
    again = shlex.join(["ultramed-rl", "repeat", config_path, "--seeds", *map(str, wanted), *overrides])
    _run(configs, states, document, output, again)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit()


def _state(config: RunConfig) -> State:
    """How far the run is. Raises ValueError: one of another config is there."""
    from ultramed_rl.config import load_any
    from ultramed_rl.store import RunReader
    from ultramed_rl.store.remote import at_hand
    from ultramed_rl.store.work_directory import changed_settings

    with at_hand(config.run.place, words=True, empty=True) as folder:
        if not (folder / "config.yaml").is_file():
            return "new"
        if changed := changed_settings(load_any(folder / "config.yaml"), config):
            raise ValueError(
                f"{config.run.place}: was started with another config ({'; '.join(changed)}); undo the change or choose another "
                "run.name"
            )
        return "finished" if RunReader(folder).finished else "begun"


def _show(configs: Sequence[RunConfig], states: Sequence[State], document: Document) -> None:
    """What would be done with each run, and the plan that they share; of the first new one what it names is looked at, and the
    data opened. Starts nothing."""
    from ultramed_rl.cluster.layout import render_plan
    from ultramed_rl.cluster.plan import make_plan
    from ultramed_rl.recipes.inputs import check_data, check_inputs
    from ultramed_rl.recipes.run import check_runnable

    with checking(document):
        check_runnable(configs[0])
        plan = make_plan(configs[0])
        for config in [c for c, state in zip(configs, states, strict=True) if state == "new"][:1]:
            check_inputs(config)
            check_data(config)
    for config in configs:
        does = what_happens(config.run.place, True)
        tell("plan", name=config.run.name, seed=config.run.seed, directory=config.run.place, does=does)
        say(f"{config.run.name} in {config.run.place}: {does}")
    say(f"{render_plan(plan)}\n\nnothing was started")
    tell_result(True, exit_code=0, dry_run=True)


def _run(
    configs: Sequence[RunConfig], states: Sequence[State], document: Document, output: Path | None, again: str
) -> None:
    """Those that aren't finished, in turn; then the report of all."""
    from ultramed_rl.recipes.inputs import check_inputs
    from ultramed_rl.recipes.run import check_runnable, run_config

    with checking(document):
        for config, state in zip(configs, states, strict=True):
            if state != "finished":
                check_runnable(config)
            if state == "new":
                check_inputs(config)
    with carrying_out(again) as result:
        for config, state in zip(configs, states, strict=True):
            say(f"-- {config.run.name}: {'finished, read' if state == 'finished' else config.run.place}")
            if state != "finished":
                run_config(config, state == "begun")
        beside = Path(configs[0].run.directory) if configs[0].run.url is None else Path()
        name = configs[0].run.name.rpartition("-seed")[0]
        result["output"] = str(_report(configs, output or beside / f"{name}-seeds.json"))


def _report(configs: Sequence[RunConfig], output: Path) -> Path:
    """Print the table and write its numbers."""
    from ultramed_rl.report.online_run import read_online_run
    from ultramed_rl.report.seeds import render_seeds, seed_measures, seeds_to_json
    from ultramed_rl.store import RunReader
    from ultramed_rl.store.atomic import write_json
    from ultramed_rl.store.remote import at_hand

    with ExitStack() as open_runs:
        folders = [open_runs.enter_context(at_hand(config.run.place)) for config in configs]
        runs = [read_online_run(RunReader.of(folder)) for folder in folders]
        measures = seed_measures(runs)
        found = seeds_to_json(runs, measures)
    tell("seeds", **found)
    say(render_seeds(runs, measures))
    write_json(output, found)
    say(f"seeds: {output}")
    return output
