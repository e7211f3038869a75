"""Commands that measure: policies on benchmarks and by reward, reward models on known pairs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ultramed_rl.cli.devices import device_options, engine_options
from ultramed_rl.cli.exits import WRONG, check, fail
from ultramed_rl.cli.options import (
    ConfigOrOverrides,
    DeviceOption,
    DryRun,
    Json,
    Order,
    PrecisionOption,
    Quiet,
    Resume,
    RunNameOption,
    manner_of,
)
from ultramed_rl.cli.program import command
from ultramed_rl.cli.runs import run_alone
from ultramed_rl.tracking.console import speaking


@command("evaluate")
def evaluate_command(
    arguments: ConfigOrOverrides = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="a policy: PATH or NAME=PATH; again for more, compared with the first"),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="benchmarks with commas between them: medqa,pubmedqa")
    ] = None,
    protocols: Annotated[
        str | None, typer.Option("--protocol", help="likelihood, greedy, self_consistency; greedy by default")
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="TASK=URI: where a task's rows are")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="rows out of installed packages")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="a seeded sample of so many items per task")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="a reward model that reranks self_consistency")] = None,
    name: RunNameOption = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    max_length: Annotated[int | None, typer.Option(help="tokens of a question with its answer")] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Ask policies benchmarks, and compare them; with a config also by reward on held-out prompts.

    Example: ultramed-rl evaluate --model runs/mine/rounds/002/checkpoint --tasks medqa,mmlu_medical --offline
    """
    from ultramed_rl.config.options import evaluate_options

    def options(alone: bool) -> dict[str, Any]:
        given: dict[str, Any] = {
            "reward.path": reward,
            "run.name": name,
            "policy.precision": precision,
            "policy.max_length": max_length,
            **engine_options(device, alone),
        }
        if alone:
            return evaluate_options(
                given, model or [], tasks, protocols, sources=source or [], limit=limit, offline=offline
            )
        if model or tasks or protocols or source or offline or limit:
            fail(
                "--model, --tasks, --protocol, --source, --offline and --limit stand for a CONFIG; give one of both",
                WRONG,
            )
        return given

    with speaking(manner_of(quiet, json)):
        run_alone(_order(arguments, options, resume, dry_run), "evaluate")


@command("reward-bench")
def reward_bench_command(
    arguments: ConfigOrOverrides = None,
    model: Annotated[str | None, typer.Option(help="a reward model's path or hub id")] = None,
    data: Annotated[str | None, typer.Option(help="pairs: hf://owner/name:split or files")] = None,
    subset_column: Annotated[str | None, typer.Option(help="where a row's subset is")] = None,
    name: RunNameOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="read at most so many rows")] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    max_length: Annotated[int | None, typer.Option(help="tokens of a prompt with one answer")] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Count how often a reward model prefers the better answer: Medical RewardBench, RewardBench, any pairs.

    Example: ultramed-rl reward-bench --model runs/mine/reward/model --data hf://allenai/reward-bench:filtered
    """
    from ultramed_rl.config.options import reward_bench_options

    def options(alone: bool) -> dict[str, Any]:
        given: dict[str, Any] = {
            "model.path": model,
            "data.uri": data,
            "data.subset_column": subset_column,
            "run.name": name,
            "data.limit": limit,
            "model.precision": precision,
            "model.max_length": max_length,
            **device_options(device, alone),
        }
        return reward_bench_options(given) if alone else given

    with speaking(manner_of(quiet, json)):
        run_alone(_order(arguments, options, resume, dry_run), "reward_bench")


def _order(arguments: list[str] | None, options: Any, resume: bool, dry_run: bool) -> Order:
    """Options over the file, if there is one, and overrides over both."""
    from ultramed_rl.config.options import option_overrides, split_arguments

    config_path, overrides = split_arguments(arguments or [])
    given = check(lambda: options(config_path is None))
    return Order(config_path, (*option_overrides(given), *overrides), resume, dry_run)
