"""Run configs and recipes: each stage with what the earlier ones made; finished ones are read back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.plan import make_plan
from ultramed_rl.config import AnyConfig
from ultramed_rl.config.base import Problems
from ultramed_rl.config.recipe import RecipeConfig, stage_config, stage_inputs
from ultramed_rl.kinds import KINDS, load
from ultramed_rl.store.remote_folder import RemoteFolder
from ultramed_rl.tracking import Progress, watched


@dataclass(frozen=True)
class RecipeResult:
    """What each stage made, by its name: a model's directory, or a file."""

    directory: Path
    outputs: dict[str, str]


def stages_of(config: AnyConfig | RecipeConfig) -> list[tuple[str, AnyConfig]]:
    """A recipe's stages by their names, as if each made a model of the shape that it starts from; of another config itself,
    without a name."""
    if isinstance(config, RecipeConfig):
        return [(name, stage_config(config, name, {})) for name in config.stages]
    return [("", config)]


@contextmanager
def of_stage(name: str) -> Iterator[None]:
    """What is wrong with a stage, after its key in the recipe."""
    try:
        yield
    except ValueError as error:
        if not name:
            raise
        lines = error.problems if isinstance(error, Problems) else [str(error)]
        raise Problems([f"stages.{name}: {line}" for line in lines]) from None


def check_runnable(config: AnyConfig | RecipeConfig) -> None:
    """Plan each stage, look its URL and benchmarks up, and ask OpenRLHF's limits where it is to compute. Raises ValueError
    with what does not fit, which names the stage."""
    for name, stage in stages_of(config):
        with of_stage(name):
            if stage.run.url is not None:
                RemoteFolder(stage.run.url)  # which refuses what nothing opens
            make_plan(stage)
            problems: list[str] = []
            benchmarks = getattr(stage, "benchmarks", None)
            if benchmarks is not None:
                from ultramed_rl.evaluation.suite import task_problems

                problems += task_problems(benchmarks)
            if getattr(stage, "engine", "native") == "openrlhf":
                from ultramed_rl.stages.openrlhf import openrlhf_problems

                problems += openrlhf_problems(stage)
            if problems:
                raise Problems(problems)


def run_config(config: AnyConfig, resume: bool, **options: Any) -> str:
    """Run one config of any kind, with options of its own kind; the path of what it made."""
    kind = KINDS[config.type]
    load(kind.run)(config, resume=resume, **options)
    return str(kind.output_of(config))


def run_recipe(recipe: RecipeConfig, *, resume: bool = False) -> RecipeResult:
    """Run all stages that aren't finished.

    Raises:
        ValueError: bad input, or a recipe that was started before, without `resume`.
    """
    progress = Progress()
    check_runnable(recipe)
    directory = recipe.run.folder
    started = [name for name in recipe.stages if (directory / name / "config.yaml").is_file()]
    if started and not resume:
        raise ValueError(
            f"{directory}: holds stages already ({', '.join(started)}); go on with --resume, or choose another "
            "run.name"
        )
    outputs: dict[str, str] = {}
    directory.mkdir(parents=True, exist_ok=True)
    with watched(directory, stages=tuple(recipe.stages)):
        for number, name in enumerate(recipe.stages, start=1):
            config = stage_config(recipe, name, outputs)
            progress.say(f"-- stage {number} of {len(recipe.stages)}: {name} ({config.type})")
            began = time.perf_counter()
            # One that was started on another machine is at its URL: the stage's own directory finds it.
            outputs[name] = run_config(config, resume)
            progress.say(f"-- {name}: {time.perf_counter() - began:.0f} s, {outputs[name]}")
    return RecipeResult(directory, outputs)


def data_stage(recipe: RecipeConfig, name: str) -> AnyConfig:
    """The config of one data stage, to be run by itself, with what finished stages have made.

    Raises:
        ValueError: no such stage, one of another type, or one before it isn't finished; names it.
    """
    kinds = {stage: section["type"] for stage, section in recipe.stages.items()}
    if kinds.get(name) != "data":
        known = ", ".join(stage for stage, kind in kinds.items() if kind == "data")
        raise ValueError(f"stages.{name}: no data stage of this recipe ({known}); name one, or all")
    outputs = {}
    for needed in stage_inputs(recipe, name):
        made = recipe.run.folder / needed / "records"
        if kinds[needed] != "data" or not made.with_suffix(".json").is_file():
            raise ValueError(
                f"stages.{name}: needs stage {needed}, which isn't finished; run that first, or all"
            )
        outputs[needed] = str(made)
    return stage_config(recipe, name, outputs)
