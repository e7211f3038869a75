"""What there is to compute on."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ultramed_rl.cli.doctor.finding import Finding

_DRIVER = "install the NVIDIA driver and a CUDA build of torch (launch/setup.sh chooses it), or set cluster.device=cpu"


def cuda_devices() -> list[str]:
    """A line for each GPU that torch sees: name, memory, whether it computes bfloat16 itself."""
    import torch

    if not torch.cuda.is_available():
        return []
    lines = []
    for index in range(torch.cuda.device_count()):
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
            yield Finding(
                "devices", "warn", line, "set precision: float32, or use a GPU of the Ampere kind or newer"
            )
        else:
            yield Finding("devices", "ok", line)
    if gpus:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    said = f"no GPU; torch {torch.__version__}, {cores} cores, {_memory_gib():.0f} GiB"
    if wanted == "cuda" and not elsewhere:
        yield Finding("devices", "fail", f"{said}, but the config says cluster.device=cuda", _DRIVER)
    elif _has_driver():
        yield Finding("devices", "warn", f"{said}, but there is an NVIDIA device file", _DRIVER)
    else:
        yield Finding("devices", "ok", said)


def _has_driver() -> bool:
    return os.path.exists("/dev/nvidiactl")


def _memory_gib() -> float:
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2**30
