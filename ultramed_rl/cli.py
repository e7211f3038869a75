"""`ultramed-rl <command> CONFIG [section.key=value ...]`: parse and validate first, then load what computes.

Exit codes: 0 done, 1 the run failed, 2 the config or command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(add_completion=True, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="a YAML file; see configs/")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="as in training.epochs=2")
]


ConfigOrOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CONFIG] [SECTION.KEY=VALUE]...", help="a YAML file, or options alone"),
]
RunNameOption = Annotated[str | None, typer.Option(help="the run's name, a folder under runs/")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cuda or cpu")]
PrecisionOption = Annotated[str | None, typer.Option(help="auto, bfloat16 or float32")]
Resume = Annotated[bool, typer.Option("--resume", help="go on where an earlier run stopped")]


@app.command("run")
def run_command(config_path: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Run online rounds: sample, score, select pairs, train, sync, evaluate.

    Example: ultramed-rl run configs/quickstart.yaml run.name=mine run.seed=1
    """
    run_alone(config_path, overrides, resume, "online")


@app.command("sft")
def sft_command(config_path: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Fine-tune on conversations; only what the assistant wrote is learnt.

    Example: ultramed-rl sft configs/sft/ultramedical-8b.yaml training.max_steps=20
    """
    run_alone(config_path, overrides, resume, "sft")


@app.command("reward")
def reward_command(config_path: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Train a reward model on ranked answers.

    Example: ultramed-rl reward configs/reward/ultramedrm-8b.yaml --resume
    """
    run_alone(config_path, overrides, resume, "reward")


@app.command("preference")
def preference_command(config_path: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Learn offline preferences: DPO, KTO and the other objectives on answers that are there already.

    Example: ultramed-rl preference configs/preference/ultramedical-8b-dpo.yaml objective.beta=0.05
    """
    run_alone(config_path, overrides, resume, "preference")


@app.command("contrasts")
def contrasts_command(config_path: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Make preference pairs out of a policy's own answers, where no preference data is at hand."""
    run_alone(config_path, overrides, resume, "contrasts")


@app.command("evaluate")
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
) -> None:
    """Ask policies benchmarks, and compare them; with a config also by reward on held-out prompts.

    Example: ultramed-rl evaluate --model runs/mine/rounds/002/checkpoint --tasks medqa,mmlu_medical --offline
    """
    from ultramed_rl.config.options import evaluate_options, option_overrides, split_arguments

    config_path, overrides = split_arguments(arguments or [])
    alone = config_path is None
    options: dict[str, Any] = {
        "reward.path": reward,
        "run.name": name,
        "policy.precision": precision,
        "policy.max_length": max_length,
        **device_options(device, alone),
    }
    if not alone and (model or tasks or protocols or source or offline or limit):
        fail(
            "--model, --tasks, --protocol, --source, --offline and --limit stand for a CONFIG; give one of both",
            2,
        )
    if alone:
        try:
            options = evaluate_options(
                options, model or [], tasks, protocols, sources=source or [], limit=limit, offline=offline
            )
        except ValueError as error:
            fail(str(error), 2)
    run_alone(config_path, [*option_overrides(options), *overrides], resume, "evaluate")


@app.command("reward-bench")
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
) -> None:
    """Count how often a reward model prefers the better answer: Medical RewardBench, RewardBench, any pairs.

    Example: ultramed-rl reward-bench --model runs/mine/reward/model --data hf://allenai/reward-bench:filtered
    """
    from ultramed_rl.config.options import option_overrides, reward_bench_options, split_arguments

    config_path, overrides = split_arguments(arguments or [])
    alone = config_path is None
    options: dict[str, Any] = {
        "model.path": model,
        "data.uri": data,
        "data.subset_column": subset_column,
        "run.name": name,
        "data.limit": limit,
        "model.precision": precision,
        "model.max_length": max_length,
        **({"cluster.device": find_device(device or "auto")} if device or alone else {}),
    }
    if alone:
        options = reward_bench_options(options)
    run_alone(config_path, [*option_overrides(options), *overrides], resume, "reward_bench")


@app.command("data")
def data_command(
    step: Annotated[
        str,
        typer.Argument(metavar="STAGE", help="a step such as score; of a recipe, the stage's name, or all"),
    ],
    config_path: ConfigPath,
    overrides: Overrides = None,
    resume: Resume = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="do the dead letters of an earlier run again")
    ] = False,
) -> None:
    """Run a stage of the data factory: a config of its own, or one stage of a recipe, or all of them.

    Example: ultramed-rl data score configs/data/ultramedical.yaml --resume
    """
    from ultramed_rl.config.load import read_mapping

    if check(lambda: read_mapping(config_path, overrides or []), config_path).get("type") == "recipe":
        if step == "all" and not retry_failed:
            recipe_command(config_path, overrides, resume)
        else:
            run_recipe_stage(step, config_path, overrides, resume, retry_failed)
        return
    config = check_config(config_path, overrides, "data")
    if config.step.type != step:
        fail(f"{config_path}: step.type={config.step.type!r}: use ultramed-rl data {config.step.type}", 2)

    def run() -> None:
        from ultramed_rl.stages.data.run import make_data

        make_data(config, resume=resume, retry_failed=retry_failed)

    carry_out(run, f"ultramed-rl data {step} {config_path}", overrides)


def run_recipe_stage(
    name: str, config_path: str, overrides: list[str] | None, resume: bool, retry_failed: bool
) -> None:
    """One data stage of a recipe, with what the stages before it have made."""
    from ultramed_rl.config.recipe import load_recipe
    from ultramed_rl.recipes.run import data_stage

    config = check(lambda: data_stage(load_recipe(config_path, overrides), name), config_path)

    def run() -> None:
        from ultramed_rl.stages.data.run import make_data

        make_data(config, resume=resume, retry_failed=retry_failed)

    carry_out(run, f"ultramed-rl data {name} {config_path}", overrides)


def check(read: Callable[[], Any], source: str) -> Any:
    """What `read` gives; exits with code 2 where it says that something is wrong."""
    from ultramed_rl.config import ConfigError

    try:
        return read()
    except ConfigError as error:
        fail(str(error), 2)
    except ValueError as error:
        fail(f"{source}: {error}", 2)


@app.command("recipe")
def recipe_command(config_path: ConfigPath, overrides: Overrides = None, resume: Resume = False) -> None:
    """Run all stages of a recipe; finished ones are skipped on --resume.

    Example: ultramed-rl recipe configs/recipes/quickstart.yaml run.name=mine
    """
    from ultramed_rl.config import ConfigError
    from ultramed_rl.config.recipe import load_recipe
    from ultramed_rl.recipes.run import plan_recipe, run_recipe

    try:
        recipe = load_recipe(config_path, overrides)
        plan_recipe(recipe)
    except ConfigError as error:
        fail(str(error), 2)
    except ValueError as error:
        fail(f"{config_path}: {error}", 2)
    carry_out(lambda: run_recipe(recipe, resume=resume), f"ultramed-rl recipe {config_path}", overrides)


@app.command("plan")
def plan_command(config_path: ConfigPath, overrides: Overrides = None) -> None:
    """Show every role's processes, devices and bytes against what the nodes have. Starts nothing.

    Example: ultramed-rl plan configs/llama3-70b-4node.yaml cluster.policy.zero_stage=2
    """
    from ultramed_rl.cluster.plan import make_plan, render_plan
    from ultramed_rl.config import ConfigError, load_any
    from ultramed_rl.config.load import read_mapping
    from ultramed_rl.config.recipe import load_recipe
    from ultramed_rl.recipes.run import planned_stages

    try:
        if read_mapping(config_path, overrides or []).get("type") == "recipe":
            for name, config in planned_stages(load_recipe(config_path, overrides)):
                typer.echo(f"{name} ({config.type}):\n{render_plan(make_plan(config))}\n")
        else:
            typer.echo(render_plan(make_plan(load_any(config_path, overrides or []))))
    except ConfigError as error:
        fail(str(error), 2)
    except ValueError as error:
        fail(f"{config_path}: {error}", 2)


@app.command("serve-reward")
def serve_reward_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a reward model's path or hub id")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, bfloat16 or float32")] = "auto",
    no_token: Annotated[bool, typer.Option("--no-token", help="ask for none; on loopback only")] = False,
) -> None:
    """Serve a reward model over HTTP, in OpenRLHF's protocol.

    Requests must show the token in ULTRAMED_RL_REWARD_TOKEN; one is made up where it isn't set.

    Example: ultramed-rl serve-reward runs/mine/initial/reward_model --port 5001
    """
    for option, value, allowed in (
        ("--device", device, ("auto", "cuda", "cpu")),
        ("--precision", precision, ("auto", "bfloat16", "float32")),
    ):
        if value not in allowed:
            fail(f"{option} {value}: must be one of {', '.join(allowed)}", 2)
    from ultramed_rl.rewards.server import serve_reward

    try:
        serve_reward(model, host, port, no_token=no_token, device=device, precision=precision)
    except ValueError as error:
        fail(str(error), 2)
    except (RuntimeError, OSError) as error:
        fail(one_line(error), 1)


def device_options(device: str | None, alone: bool) -> dict[str, Any]:
    """One engine on this machine, where no config says more."""
    if not alone:
        return {} if device is None else {"cluster.device": find_device(device)}
    found = find_device(device or "auto")
    here = {"cluster.device": found, "cluster.devices_per_node": 1}
    return here | ({"cluster.rollout.kv_cache_gib": 1.0} if found == "cpu" else {})


def find_device(device: str) -> str:
    """`auto` is cuda where this machine has it, else cpu."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_config(config_path: str | None, overrides: list[str] | None, expected: str) -> Any:
    """The config, valid, of the expected type and with a plan that fits; else exit with code 2."""
    from ultramed_rl.config import ConfigError, load_any
    from ultramed_rl.config.load import COMMAND_LINE
    from ultramed_rl.recipes.run import check_runnable

    source = config_path or COMMAND_LINE
    try:
        config = load_any(config_path, overrides or [])
        if config.type != expected:
            fail(f"{source}: type={config.type!r}: use ultramed-rl {command_of(config.type)}", 2)
        check_runnable(config)
    except ConfigError as error:
        fail(str(error), 2)
    except ValueError as error:
        fail(f"{source}: {error}", 2)
    return config


def command_of(kind: str) -> str:
    """The command that runs a config of this type."""
    return "run" if kind == "online" else kind.replace("_", "-")


def run_alone(config_path: str | None, overrides: list[str] | None, resume: bool, expected: str) -> None:
    """Check, then run one stage."""
    config = check_config(config_path, overrides, expected)

    def run() -> None:
        from ultramed_rl.recipes.run import RUNNERS

        RUNNERS[expected](config, resume)

    command = " ".join(["ultramed-rl", command_of(expected), *([config_path] if config_path else [])])
    carry_out(run, command, overrides)


def carry_out(action: Callable[[], object], command: str, overrides: list[str] | None) -> None:
    """Run it; failures are one line with an exit code, unless they are our own bugs."""
    try:
        action()
    except KeyboardInterrupt:
        again = " ".join([command, *(overrides or [])])
        fail(f"interrupted; finished phases are kept, go on with: {again} --resume", 130)
    except (ValueError, RuntimeError, OSError) as error:
        fail(one_line(error), 1)
    except Exception as error:
        if not type(error).__module__.startswith("ray."):
            raise  # our own bug: show where
        fail(f"{one_line(error)}\nfinished phases are kept: go on with --resume", 1)


def one_line(error: BaseException) -> str:
    """The message of an error; of one that crossed from a Ray actor, the message that was raised there."""
    cause = getattr(error, "cause", None)
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else str(error)


def fail(message: str, code: int) -> NoReturn:
    """Say it on stderr and exit."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point."""
    sys.exit(app())


if __name__ == "__main__":
    main()
