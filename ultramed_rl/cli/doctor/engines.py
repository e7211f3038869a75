"""Whether what computes can be loaded, each in a process of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from ultramed_rl.cli.doctor.devices import cuda_devices
from ultramed_rl.cli.doctor.finding import Finding
from ultramed_rl.cli.doctor.subprocesses import run_python

_TIMEOUT_S = 180.0


def check_vllm() -> Iterator[Finding]:
    """Import vLLM, whose compiled part fails first where torch or the machine isn't the one it was built for."""
    extra = "cuda" if cuda_devices() else "cpu"
    code = "import vllm; from vllm import LLM; print(vllm.__version__)"
    fix = f"pip install 'ultramed_rl[{extra}]' with launch/locks/{extra}.txt, as launch/setup.sh does"
    yield _load("vllm", code, fix)


def check_deepspeed() -> Iterator[Finding]:
    """Import DeepSpeed, which looks for a compiler and CUDA while it is loaded."""
    yield _load(
        "deepspeed",
        "import deepspeed; print(deepspeed.__version__)",
        "install the pinned version; where it looks for nvcc, set CUDA_HOME, or DS_ACCELERATOR=cpu without a GPU",
    )


def check_flash_attention() -> Iterator[Finding]:
    """flash-attn on CUDA alone: OpenRLHF's engine needs it, our own takes torch's."""
    if not cuda_devices():
        return
    fix = "pip install flash-attn==2.8.3 --no-build-isolation; only engine=openrlhf needs it"
    if importlib.util.find_spec("flash_attn") is None:
        yield Finding("flash-attn", "warn", "not installed", fix)
        return
    found = _load("flash-attn", "import flash_attn; print(flash_attn.__version__)", fix)
    yield found if found.level == "ok" else Finding("flash-attn", "warn", found.text, fix)


def _load(name: str, code: str, fix: str) -> Finding:
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    outcome = run_python(["-c", code], _TIMEOUT_S, quiet)
    if outcome.worked:
        return Finding(name, "ok", f"{outcome.said} loads")
    return Finding(name, "fail", f"doesn't load: {outcome.said}", fix)
