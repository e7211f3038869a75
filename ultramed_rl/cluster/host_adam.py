"""Whether DeepSpeed can compile the Adam that `offload_optimizer` needs: by files and versions, before anything is loaded. No
torch."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from ultramed_rl.config.cluster import Devices, TrainerGroup

_DRIVER, _USUAL = "/proc/driver/nvidia/version", "/usr/local/cuda"


def host_adam_problem(cluster: Devices | None) -> str:
    """Why a run that computes here, on these devices, would fail when its trainers start, with the cure; else nothing."""
    if cluster is None or not offloads(cluster) or not Path(_DRIVER).is_file():
        return ""
    if cluster.address or cluster.nodes > 1 or os.environ.get("RAY_ADDRESS"):
        return ""
    wanted = torch_cuda()
    if wanted is None or not (missing := find_missing(wanted)):
        return ""
    return (
        f"offload_optimizer=true: DeepSpeed cannot compile its Adam for the host here: {missing}; install a C++ compiler, ninja "
        f"and the toolkit of CUDA {wanted} and set CUDA_HOME, or with one of another {wanted.partition('.')[0]}.x set "
        "DS_SKIP_CUDA_CHECK=1; or set offload_optimizer=false"
    )


def offloads(cluster: Devices | None) -> bool:
    """Whether any of a config's trainers keeps its optimizer on the host."""
    groups = () if cluster is None else vars(cluster).values()
    return any(isinstance(group, TrainerGroup) and group.offload_optimizer for group in groups)


def torch_cuda() -> str | None:
    """The CUDA that the installed torch was built for, as 13.0; None of a build for CPU, or without torch."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).parent / "version.py" if spec is not None and spec.origin else None
    if file is None or not file.is_file():
        return None
    found = re.search(r"^cuda\b.*'(\d+\.\d+)", file.read_text(), re.MULTILINE)
    return found[1] if found else None


def find_missing(wanted: str) -> str:
    """What a build against this CUDA lacks, as DeepSpeed's builder looks for it; else nothing."""
    for name in (os.environ.get("CXX") or "c++", "ninja"):
        if shutil.which(name) is None:
            return f"{name} is not on the PATH"
    on_path = shutil.which("nvcc")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(home or (Path(on_path).parents[1] if on_path else _USUAL)) / "bin" / "nvcc"
    try:
        said = subprocess.run([nvcc, "-V"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return f"{nvcc} does not run"
    found = re.search(r"release (\d+\.\d+)", said)
    if found is None:
        return f"{nvcc} says no version"
    (theirs, _), (ours, _) = found[1].split("."), wanted.split(".")
    # Of 10 to 12 DeepSpeed takes another minor version, of 13 none.
    if (
        found[1] == wanted
        or (theirs == ours and int(ours) < 13)
        or os.environ.get("DS_SKIP_CUDA_CHECK") == "1"
    ):
        return ""
    return f"{nvcc} is of CUDA {found[1]}, torch of {wanted}"
