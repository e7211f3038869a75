"""Commands that measure: policies on benchmarks and by reward, reward models on known pairs; and one that serves these."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import typer

from ultramed_rl.cli.program import (
    WRONG,
    ConfigOrOverrides,
    DryRun,
    Resume,
    checking,
    command,
    fail,
)
from ultramed_rl.cli.runs import Invocation, run_alone

RunNameOption = Annotated[str | None, typer.Option(help="the run's name, a folder under runs/")]
DeviceOption = Annotated[
    Literal["auto", "cuda", "cpu"] | None,
    typer.Option(help="where models run; by default what this machine has"),
]


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
        str | None,
        typer.Option(
            "--protocol",
            metavar="likelihood|greedy|self_consistency",
            help="how they are asked, several with commas; greedy by default",
        ),
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="TASK=URI: where a task's rows are")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="rows out of installed packages")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="a seeded sample of so many items per task")
    ] = None,
    name: RunNameOption = None,
    device: DeviceOption = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Run benchmarks on policies and compare them; with a config also by reward on held-out prompts.

    Example: ultramed-rl evaluate --model offline://smollm2-135m-instruct --tasks medqa,mmlu_medical --offline
    """
    config_path, overrides = split_arguments(arguments or [])
    options = {"run.name": name, **device_options(device, alone=config_path is None)}
    if config_path is None:
        with checking():
            of_all = {"uri": "offline" if offline else None, "limit": limit}
            options = evaluate_options(options, model or [], tasks, protocols, source or [], of_all)
    elif model or tasks or protocols or source or offline or limit:
        fail(
            "--model, --tasks, --protocol, --source, --offline and --limit stand for a CONFIG; give one of both",
            WRONG,
        )
    run_alone(Invocation(config_path, [*option_overrides(options), *overrides], resume, dry_run), "evaluate")


@command("reward-bench")
def reward_bench_command(
    arguments: ConfigOrOverrides = None,
    model: Annotated[str | None, typer.Option(help="a reward model's path or hub id")] = None,
    data: Annotated[str | None, typer.Option(help="pairs: hf://owner/name:split or files")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="read at most so many rows")] = None,
    name: RunNameOption = None,
    device: DeviceOption = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Count how often a reward model prefers the better answer: Medical RewardBench, RewardBench, any pairs.

    Example: ultramed-rl reward-bench --model sfairXC/FsfairX-LLaMA3-RM-v0.1 --data hf://allenai/reward-bench:filtered
    """
    config_path, overrides = split_arguments(arguments or [])
    options = {"model.path": model, "data.uri": data, "data.limit": limit, "run.name": name}
    options |= device_options(device, alone=config_path is None)
    if config_path is None:
        options |= {"type": "reward_bench", "run.name": name or run_name([model, data])}
    overrides = [*option_overrides(options), *overrides]
    run_alone(Invocation(config_path, overrides, resume, dry_run), "reward_bench")


@command("serve-reward")
def serve_reward_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a reward model's path or hub id")],
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 5000,
    device: Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="where the model runs")] = "auto",
    precision: Annotated[
        Literal["auto", "bfloat16", "float32"],
        typer.Option(help="auto: bfloat16 where the device computes it natively"),
    ] = "auto",
    no_token: Annotated[
        bool, typer.Option("--no-token", help="accept requests without a token; on loopback only")
    ] = False,
) -> None:
    """Serve a reward model over HTTP, in OpenRLHF's protocol, until Ctrl-C.

    Requests must show the token in ULTRAMED_RL_REWARD_TOKEN; one is made up where it isn't set.

    Example: ultramed-rl serve-reward runs/quickstart/initial/reward_model --port 5001
    """
    from ultramed_rl.rewards.server import serve_reward

    with checking():
        serve_reward(model, host, port, no_token=no_token, device=device, precision=precision)


# -- options as overrides ----------------------------------------------------------------------------------


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """(the config file or None, overrides) out of `[CONFIG] [section.key=value ...]`."""
    if arguments and ("=" not in arguments[0] or Path(arguments[0]).is_file()):
        return arguments[0], list(arguments[1:])
    return None, list(arguments)


def option_overrides(options: Mapping[str, Any]) -> list[str]:
    """Options as overrides: values by their dotted keys, None where not given."""
    # JSON is YAML that says whether it is a text.
    return [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]


def device_options(device: str | None, *, alone: bool) -> dict[str, Any]:
    """The device; without an option a config decides, and where there is none (`alone`) what this machine has."""
    if device is None and not alone:
        return {}
    if device in (None, "auto"):
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return {"cluster.device": device}


def evaluate_options(
    options: Mapping[str, Any],
    models: Sequence[str],
    tasks: str | None,
    protocols: str | None,
    sources: Sequence[str] = (),
    of_all: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What evaluate's options alone make, on one engine of this machine.

    Args:
        models: PATH or NAME=PATH; the first is what the others are compared with.
        tasks, protocols: names with commas between them.
        sources: TASK=URI, where a task's rows are.
        of_all: the keys of all tasks, None where not given.

    Raises:
        ValueError: a model or a source that doesn't read as it should.
    """

    def split(text: str, option: str, form: str) -> tuple[str, str]:
        name, _, value = text.partition("=")
        if not name or not value:
            raise ValueError(f"{option} {text}: must read {form}")
        return name, value

    uris = dict(split(source, "--source", "TASK=URI") for source in sources)
    policies: dict[str, str] = {}
    for model in models:
        name, path = split(model, "--model", "NAME=PATH") if "=" in model else (run_name([model]), model)
        if name in policies:
            raise ValueError(f"--model {model}: a second one named {name!r}; write --model NAME={path}")
        policies[name] = path
    names, kinds = ([n.strip() for n in (text or "").split(",") if n.strip()] for text in (tasks, protocols))
    for name in uris.keys() - names:
        raise ValueError(f"--source {name}=...: --tasks doesn't name that task; add it there")
    shared = {key: value for key, value in of_all.items() if value is not None}
    asked = [{"name": name, **shared, **({"uri": uris[name]} if name in uris else {})} for name in names]
    return {
        "cluster.devices_per_node": 1,
        "cluster.rollout.kv_cache_gib": 1.0 if options.get("cluster.device") == "cpu" else None,
        **options,
        "type": "evaluate",
        "run.name": options.get("run.name") or run_name([*policies, *names][:4]),
        "policies": policies,
        "benchmarks.tasks": asked or None,
        "benchmarks.protocols": [{"type": name} for name in kinds] or None,
    }


def run_name(addresses: Sequence[str | None]) -> str:
    """A run's name after what it is about: the last parts of paths or URIs, without split or file ending."""
    stems = []
    for address in addresses:
        last = re.split(r"[/\\]", (address or "").rstrip("/"))[-1].partition(":")[0]
        stem = re.sub(r"\.(jsonl?|parquet|arrow)$", "", last)
        stems.append(re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "data")
    return "-on-".join(stems)
