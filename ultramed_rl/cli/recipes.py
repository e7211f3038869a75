"""Commands about several stages: recipes, the data factory, and plans of any config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ultramed_rl.cli.dry_run import show_recipe, show_run
from ultramed_rl.cli.exits import WRONG, carry_out, check, fail, resume_command
from ultramed_rl.cli.options import ConfigPath, DryRun, Json, Order, Overrides, Quiet, Resume, manner_of
from ultramed_rl.cli.program import command
from ultramed_rl.cli.runs import check_config, check_named, is_recipe, read_order
from ultramed_rl.tracking.console import say, speaking, tell, tell_result

if TYPE_CHECKING:
    from ultramed_rl.config.document import Document


@command("recipe")
def recipe_command(
    config_path: ConfigPath,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run all stages of a recipe; finished ones are skipped on --resume.

    Example: ultramed-rl recipe configs/recipes/quickstart.yaml run.name=mine
    """
    with speaking(manner_of(quiet, json)):
        order = Order(config_path, tuple(overrides or ()), resume, dry_run)
        run_recipe_whole(order, read_order(order))


@command("data")
def data_command(
    step: Annotated[
        str,
        typer.Argument(metavar="STAGE", help="a step such as score; of a recipe, the stage's name, or all"),
    ],
    config_path: ConfigPath,
    overrides: Overrides = None,
    resume: Resume = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="do the failed records of an earlier run again")
    ] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a stage of the data factory: a config of its own, or one stage of a recipe, or all of them.

    Example: ultramed-rl data score configs/data/ultramedical.yaml --resume
    """
    flags = ("--retry-failed",) if retry_failed else ()
    order = Order(config_path, tuple(overrides or ()), resume, dry_run, flags)
    with speaking(manner_of(quiet, json)):
        document = read_order(order)
        if not is_recipe(document):
            run_data(_step_config(step, document), order, document)
        elif step == "all" and not retry_failed:
            run_recipe_whole(order, document)
        else:
            run_data(_recipe_stage(step, order, document), order, document)


@command("plan")
def plan_command(config_path: ConfigPath, overrides: Overrides = None, json: Json = False) -> None:
    """Show every role's processes, devices and bytes against what the nodes have. Starts nothing.

    Example: ultramed-rl plan configs/llama3-70b-4node.yaml cluster.policy.zero_stage=2
    """
    from ultramed_rl.cluster.plan import make_plan, render_plan
    from ultramed_rl.config.load import check_any
    from ultramed_rl.config.recipe import check_recipe
    from ultramed_rl.recipes.run import of_stage, planned_stages

    with speaking(manner_of(False, json)):
        document = read_order(Order(config_path, tuple(overrides or ())))
        if is_recipe(document):
            recipe = check(lambda: check_recipe(document))
            stages = planned_stages(recipe)
        else:
            stages = [("", check(lambda: check_any(document)))]

        def make_plans() -> Iterator[tuple[str, Any, Any]]:
            for name, config in stages:
                with of_stage(name) if name else nullcontext():
                    yield name, config, make_plan(config)

        for name, config, plan in check(lambda: list(make_plans()), document):
            tell("plan", name=config.run.name, type=config.type, plan=asdict(plan))
            say(f"{name} ({config.type}):\n{render_plan(plan)}\n" if name else render_plan(plan))
        tell_result(True, exit_code=0)


def run_recipe_whole(order: Order, document: Document) -> None:
    """All stages, checked and planned before the first one starts."""
    from ultramed_rl.config.recipe import check_recipe
    from ultramed_rl.recipes.inputs import check_recipe_inputs
    from ultramed_rl.recipes.run import plan_recipe, run_recipe

    recipe = check(lambda: check_recipe(document))
    check(lambda: plan_recipe(recipe), document)
    if order.dry_run:
        show_recipe(recipe, order.resume, document)
        return
    if not order.resume:
        check(lambda: check_recipe_inputs(recipe), document)

    def run() -> dict[str, Any]:
        result = run_recipe(recipe, resume=order.resume)
        return {"output": str(result.directory), "outputs": result.outputs}

    carry_out(run, resume_command("recipe", order.config_path, order.overrides, ()))


def run_data(config: Any, order: Order, document: Document) -> None:
    """One data stage whose config is checked."""
    if order.dry_run:
        show_run(config, order.resume or bool(order.flags), document)
        return
    check_named(config, order, document)

    def run() -> dict[str, Any]:
        from ultramed_rl.stages.data.run import make_data

        return {"output": str(make_data(config, resume=order.resume, retry_failed=bool(order.flags)))}

    name = config.run.name if is_recipe(document) else config.step.type
    carry_out(run, resume_command(f"data {name}", order.config_path, order.overrides, order.flags))


def _step_config(step: str, document: Document) -> Any:
    config = check_config(document, "data")
    if config.step.type != step:
        use = f"use ultramed-rl data {config.step.type}"
        fail(document.tell(f"step.type={config.step.type!r}: {use}"), WRONG)
    return config


def _recipe_stage(name: str, order: Order, document: Document) -> Any:
    """One data stage of a recipe, with what the stages before it have made; dry, as if they had."""
    from ultramed_rl.config.recipe import check_recipe, stage_config
    from ultramed_rl.recipes.run import check_runnable, data_stage

    recipe = check(lambda: check_recipe(document))
    if not order.dry_run or recipe.stages.get(name, {}).get("type") != "data":
        return check(lambda: data_stage(recipe, name), document)
    config = check(lambda: stage_config(recipe, name, {}))
    check(lambda: check_runnable(config), document)
    return config
