"""What would be done: where, from where on, and on which devices. Nothing is started or written."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ultramed_rl.cli.exits import FAILED, check, fail
from ultramed_rl.tracking.console import say, tell, tell_result

if TYPE_CHECKING:
    from ultramed_rl.config.document import Document

_NOTHING = "nothing was started"


def show_run(config: Any, resume: bool, document: Document) -> None:
    """What a run of one config would do. Exits with code 1 where its directory is in the way, with 2 where what it
    names isn't there, or its prompts don't last."""
    _show(config, resume)
    if not resume:
        from ultramed_rl.recipes.inputs import check_inputs, check_pool

        check(lambda: check_inputs(config), document)
        check(lambda: check_pool(config), document)
    say(_NOTHING)
    tell_result(True, exit_code=0, dry_run=True)


def show_recipe(recipe: Any, resume: bool, document: Document) -> None:
    """What a recipe would do, stage by stage."""
    from ultramed_rl.config.recipe import stage_inputs
    from ultramed_rl.recipes.inputs import check_pool, check_recipe_inputs
    from ultramed_rl.recipes.run import planned_stages

    directory = recipe.run.folder
    stages = planned_stages(recipe)
    begun = [name for name, _ in stages if (directory / name / "config.yaml").is_file()]
    if begun and not resume:
        fail(
            f"{directory}: holds stages already ({', '.join(begun)}); go on with --resume, or choose another run.name",
            FAILED,
        )
    if not resume:
        check(lambda: check_recipe_inputs(recipe), document)
    for name, config in stages:
        inputs = stage_inputs(recipe, name)
        say(f"{name}: {'from ' + ', '.join(inputs) if inputs else 'from no other stage'}")
        _show(config, resume)
        if not resume:
            check(lambda name=name, stage=config: check_pool(stage, f"stages.{name}: "), document)  # type: ignore[misc]
    say(_NOTHING)
    tell_result(True, exit_code=0, dry_run=True)


def _show(config: Any, resume: bool) -> None:
    from ultramed_rl.cluster.plan import make_plan, render_plan

    directory = config.run.url or str(config.run.folder)
    does = check(lambda: _what_happens(directory, resume))
    plan = make_plan(config)
    tell(
        "plan",
        name=config.run.name,
        type=config.type,
        directory=directory,
        does=does,
        plan=asdict(plan),
    )
    say(f"{config.run.name} ({config.type}) in {directory}: {does}\n{render_plan(plan)}\n")


def _what_happens(directory: str, resume: bool) -> str:
    """New, or what becomes of the run that is there."""
    from ultramed_rl.store.remote import at_hand
    from ultramed_rl.tracking.status import read_status

    try:
        with at_hand(directory, words=True, empty=True) as folder:
            if not (folder / "config.yaml").is_file():
                return "would begin"
            status = read_status(folder)
    except RuntimeError as error:
        fail(str(error), FAILED)
    if status.state == "running":
        fail(f"{directory}: another process is writing this run; wait for it or stop it", FAILED)
    if not resume:
        fail(
            f"{directory}: holds a run already; go on with it by --resume, or choose another run.name", FAILED
        )
    if status.state == "finished":
        return "is finished and would be read back"
    if status.rounds_wanted is not None:
        return f"would go on after {len(status.rounds)} of {status.rounds_wanted} rounds"
    return "would go on where it stopped"
