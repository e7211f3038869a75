"""Commands that run configs: online rounds, stages, recipes and the data factory; and plans of any config."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ultramed_rl.cli.program import (
    FAILED,
    WRONG,
    ConfigPath,
    DryRun,
    Overrides,
    Resume,
    carrying_out,
    checking,
    command,
    fail,
)
from ultramed_rl.kinds import KINDS
from ultramed_rl.learning.costs import Gpu
from ultramed_rl.tracking.console import say, say_marked, tell, tell_result

if TYPE_CHECKING:
    from ultramed_rl.config.document import Document

_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # which Ray sets for what runs as a job, however it was submitted


@dataclass(frozen=True)
class Invocation:
    """What a command was asked to do, with which config."""

    config_path: str | None
    overrides: Sequence[str] = ()
    resume: bool = False
    dry_run: bool = False
    retry_failed: bool = False

    def read(self) -> Document:
        """What the file and the overrides say, not validated yet; exits with code 2 where they cannot be read."""
        from ultramed_rl.config.document import read_document

        with checking():
            return read_document(self.config_path, self.overrides)

    def of_trial(self) -> Invocation:
        """In a wandb sweep, with the trial's id in the run's name: each trial is a run, and goes on with its own."""
        from ultramed_rl.tracking.wandb_place import sweep_trial

        if (trial := sweep_trial()) is None or not isinstance(run := self.read().data.get("run"), dict):
            return self
        return replace(self, overrides=[*self.overrides, f"run.name={run.get('name', 'trial')}-{trial}"])

    def again(self, name: str) -> str:
        """The command line that goes on with it, as a shell reads it."""
        config = [self.config_path] if self.config_path else []
        flags = ["--retry-failed"] if self.retry_failed else []
        return shlex.join(["ultramed-rl", *name.split(), *config, *self.overrides, *flags, "--resume"])


_RECIPE = """Run all stages of a recipe; finished ones are skipped on --resume.

Example: ultramed-rl recipe configs/recipes/quickstart.yaml
"""


def add_command(kind: str) -> None:
    """The command of a kind, or of recipes, whose options are those of every run."""

    def run_kind(
        config_path: ConfigPath, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False
    ) -> None:
        run_alone(Invocation(config_path, overrides or [], resume, dry_run), kind)

    name, words = ("recipe", _RECIPE) if kind == "recipe" else (KINDS[kind].command, KINDS[kind].help)
    run_kind.__doc__ = words
    command(name)(run_kind)


for _kind in [*(kind for kind in KINDS if KINDS[kind].help), "recipe"]:
    add_command(_kind)


@command("data")
def data_command(
    step: Annotated[
        str,
        typer.Argument(
            metavar="STEP", help="a step such as score; of a recipe the name of a stage, or all; or show"
        ),
    ],
    config_path: ConfigPath,
    overrides: Overrides = None,
    resume: Resume = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="try the failed records of an earlier run again")
    ] = False,
    dry_run: DryRun = False,
    rows: Annotated[int, typer.Option(min=1, help="for show: samples to print of each source")] = 3,
) -> None:
    """Run a step of the data factory: from a config of its own, or one or all of a recipe. `show` prints what the first rows of
    any config become: tokens with the trained ones marked, rows that don't fit, columns that are not read.

    Example: ultramed-rl data score configs/data/ultramedical.yaml --resume
    """
    from ultramed_rl.config.recipe import check_recipe, stage_config
    from ultramed_rl.recipes.run import data_stage

    invocation = Invocation(config_path, overrides or [], resume, dry_run, retry_failed)
    document = invocation.read()
    if step == "show":
        return show_data(document, rows)
    if document.data.get("type") != "recipe":
        config = check_kind(document, "data")
        if config.step.type != step:
            use = f"use ultramed-rl data {config.step.type}"
            fail(document.tell(f"step.type={config.step.type!r}: {use}"), WRONG)
        run_checked(config, invocation, document, f"data {step}")
    elif step == "all" and not retry_failed:
        run_checked(check_kind(document, "recipe"), invocation, document, "recipe")
    else:
        with checking(document):
            recipe = check_recipe(document)
            if dry_run and recipe.stages.get(step, {}).get("type") == "data":
                config = stage_config(recipe, step, {})  # as if the stages before it had made what they make
            else:
                config = data_stage(recipe, step)
        run_checked(config, invocation, document, f"data {step}")


@command("plan")
def plan_command(
    config_path: ConfigPath,
    overrides: Overrides = None,
    gpu: Annotated[
        Gpu, typer.Option(help="the GPU whose published rates the hours are computed from")
    ] = "H100",
) -> None:
    """Show every role's processes, devices and bytes against what the nodes have, and estimate the hours of an online round.
    Starts nothing.

    Example: ultramed-rl plan configs/llama3-70b-4node.yaml cluster.policy.offload_optimizer=true --gpu H200
    """
    from ultramed_rl.config.recipe import check_config

    document = Invocation(config_path, overrides or []).read()
    with checking(document):
        show_plans(check_config(document), gpu)
    tell_result(True, exit_code=0)


def show_plans(config: Any, gpu: Gpu = "H100") -> None:
    """The plan of a config, or of each stage of a recipe. Raises ValueError where one doesn't fit."""
    from ultramed_rl.cluster.host_adam import host_adam_problem
    from ultramed_rl.cluster.hours import round_hours
    from ultramed_rl.cluster.layout import render_plan
    from ultramed_rl.cluster.plan import make_plan
    from ultramed_rl.config import RunConfig
    from ultramed_rl.recipes.run import of_stage, stages_of

    plans = []
    for name, stage in stages_of(config):
        with of_stage(name):
            plans.append((name, stage, make_plan(stage)))
    for name, stage, plan in plans:
        hours = None
        if isinstance(stage, RunConfig) and plan.cluster.device == "cuda":
            hours = round_hours(stage, plan, gpu)
        tell("plan", name=stage.run.name, type=stage.type, plan=asdict(plan), hours=hours and asdict(hours))
        say(f"{name} ({stage.type}):\n{render_plan(plan)}" if name else render_plan(plan))
        if hours is not None:
            say(hours.describe())
        if problem := host_adam_problem(plan.cluster):
            say(f"warning: {problem}")
        if name:
            say("")


def show_data(document: Document, rows: int) -> None:
    """The first samples of each source of a config or recipe; exits with code 2 where its run would stop at them."""
    from ultramed_rl.config.recipe import check_config
    from ultramed_rl.recipes.run import of_stage, stages_of
    from ultramed_rl.recipes.samples import view_sources

    problems = []
    with checking(document):
        for name, config in stages_of(check_config(document)):
            with of_stage(name):
                for view in view_sources(config, rows):
                    samples = [asdict(sample) for sample in view.samples]
                    about = {"uri": view.uri, "problem": view.problem, "samples": samples}
                    tell("source", stage=name, **about, **vars(view.notes))
                    say(f"{name}: {view.describe()}" if name else view.describe())
                    for sample in view.samples:
                        say(f"\n[{sample.name}] {sample.about}")
                        say_marked(sample.parts)
                    problems += [view.problem] if view.problem else []
                    say("")
        if problems:
            raise ValueError(problems[0])
    tell_result(True, exit_code=0)


def run_alone(invocation: Invocation, kind: str) -> None:
    """Check, then run one config of this kind, or say what would be done."""
    invocation = invocation.of_trial()
    document = invocation.read()
    config = check_kind(document, kind)
    run_checked(config, invocation, document, command_of(config))


def check_kind(document: Document, kind: str) -> Any:
    """The config or recipe, valid and of this kind; else exit with code 2."""
    from ultramed_rl.config.recipe import check_config, check_recipe

    with checking():
        config: Any = check_recipe(document) if kind == "recipe" else check_config(document)
    if config.type != kind:
        fail(document.tell(f"type={config.type!r}: use ultramed-rl {command_of(config)}"), WRONG)
    return config


def command_of(config: Any) -> str:
    """The command that runs a config or recipe of this type."""
    return "recipe" if config.type == "recipe" else KINDS[config.type].command.format(config=config)


def run_checked(config: Any, invocation: Invocation, document: Document, name: str) -> None:
    """A config or recipe that is valid: plan it, look for what it names, and run it, or say what would be done.

    A run that goes on may need no more what it names.
    """
    from ultramed_rl.cluster.host_adam import host_adam_problem
    from ultramed_rl.cluster.inputs import lost_with_job
    from ultramed_rl.config.base import Problems
    from ultramed_rl.recipes.inputs import check_inputs
    from ultramed_rl.recipes.run import check_runnable, of_stage, run_config, run_recipe, stages_of

    goes_on = invocation.resume or invocation.retry_failed
    with checking(document):
        if _IN_JOB in os.environ and (problems := lost_with_job(config.to_mapping()["run"])):
            raise Problems(problems)
        check_runnable(config)
        if invocation.dry_run:
            _show(config, goes_on)
            return
        for stage, one in stages_of(config):
            with of_stage(stage):
                if problem := host_adam_problem(getattr(one, "cluster", None)):
                    raise ValueError(problem)
        if not goes_on:
            check_inputs(config)
    with carrying_out(invocation.again(name)) as result:
        if config.type == "recipe":
            made = run_recipe(config, resume=invocation.resume)
            result.update(output=str(made.directory), outputs=made.outputs)
        else:
            options = {"retry_failed": True} if invocation.retry_failed else {}
            output = run_config(config, invocation.resume, **options)
            result.update(output=output, directory=config.run.place)


def _show(config: Any, goes_on: bool) -> None:
    """What would be done, stage by stage: where, from where on, on which devices. Nothing is started or written. Exits with
    code 1 where a directory is in the way; raises ValueError where what is named isn't there, or prompts don't last."""
    from ultramed_rl.cluster.layout import render_plan
    from ultramed_rl.cluster.plan import make_plan
    from ultramed_rl.config.recipe import stage_inputs
    from ultramed_rl.recipes.inputs import check_data, check_inputs
    from ultramed_rl.recipes.run import of_stage, stages_of

    stages = []
    for name, stage in stages_of(config):
        stages.append((name, stage, stage.run.place, what_happens(stage.run.place, goes_on)))
    if not goes_on:
        check_inputs(config)
    for name, stage, directory, does in stages:
        if name:
            inputs = stage_inputs(config, name)
            say(f"{name}: {'from ' + ', '.join(inputs) if inputs else 'from no other stage'}")
        plan = make_plan(stage)
        about = {"name": stage.run.name, "type": stage.type, "directory": directory, "does": does}
        tell("plan", **about, plan=asdict(plan))
        say(f"{stage.run.name} ({stage.type}) in {directory}: {does}\n{render_plan(plan)}\n")
        if not goes_on:
            with of_stage(name):
                check_data(stage)
    say("nothing was started")
    tell_result(True, exit_code=0, dry_run=True)


def what_happens(directory: str, goes_on: bool) -> str:
    """New, or what becomes of the run that is there; exits with code 1 where it is in the way."""
    from ultramed_rl.store.remote import at_hand
    from ultramed_rl.tracking.status import read_status

    with checking(), at_hand(directory, words=True, empty=True) as folder:
        if not (folder / "config.yaml").is_file():
            return "would begin"
        status = read_status(folder)
    if status.state == "running":
        fail(f"{directory}: another process is writing this run; wait for it or stop it", FAILED)
    if not goes_on:
        words = "holds a run already; go on with it by --resume, or choose another run.name"
        fail(f"{directory}: {words}", FAILED)
    if status.state == "finished":
        return "is finished and would be read back"
    if status.rounds_wanted is not None:
        return f"would go on after {len(status.rounds)} of {status.rounds_wanted} rounds"
    return "would go on where it stopped"
