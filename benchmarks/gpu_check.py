"""Is this project right on this machine's GPUs, and how fast? Run by launch/gpu_check.sh.

    this process      knows the parts, their time and what they want; never touches a GPU
      a part          a process of its own (gpu_parts.py), so that one that fails, hangs or fills a GPU is that part alone

Each part is measured, or the table says why it wasn't. The last line is JSON. The exit status is 1 where a part failed: it
gave wrong numbers, or ended with an error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    """`call`: a function of gpu_parts.py and its arguments. `minutes`: at most, of the ten that all have."""

    call: tuple[Any, ...]
    minutes: float = 1.5
    packages: tuple[str, ...] = ()
    gpus: int = 1
    beside: str = ""  # others' figures, which were measured elsewhere


_MFU = "MFU of others: open-instruct 0.2248 at 5,282 tokens/s/GPU (OLMo-2-7B, 16 H100, packed DPO at 16k); torchtitan 0.33-0.39"
_SYNC = "verl: 7B in 3.9-4.9 s, 72B in 12-13 s"
_VLLM, _RAY, _DEEPSPEED, _LIGER = "vllm", "ray", "deepspeed", "liger-kernel"
PARTS: dict[str, Part] = {
    "exactness": Part(("exact", "torch")),
    "exactness liger": Part(("exact", "liger"), packages=(_LIGER,)),
    "attention 8B": Part(("attention", "8B"), 1.0),
    "step 8B lora": Part(("step", "8B", {"adapters": True}), 2.0, ("peft",), beside=_MFU),
    "step 1.5B": Part(("step", "1.5B", {"adapters": False}), beside=_MFU),
    "step 0.5B": Part(("step", "0.5B", {"adapters": False}), beside=_MFU),
    "step 8B": Part(("step", "8B", {"adapters": False}), 2.0, beside=_MFU),
    "score 8B": Part(("score", "8B", {})),
    "score 1.5B": Part(("score", "1.5B", {})),
    "rollout 1.5B": Part(("rollout", "1.5B", {}), 3.0, (_VLLM,)),
    "sync ipc 1.5B": Part(("sync", "colocated", "1.5B", {}), 3.0, (_VLLM, _RAY, _DEEPSPEED), beside=_SYNC),
    "sync nccl 1.5B": Part(
        ("sync", "disaggregated", "1.5B", {}), 3.0, (_VLLM, _RAY, _DEEPSPEED), gpus=2, beside=_SYNC
    ),
    "zero-3 1.5B": Part(("two_ranks", "1.5B", {"zero_stage": 3}), 2.0, (_DEEPSPEED,), gpus=2, beside=_MFU),
    "sequence parallel 1.5B": Part(
        ("two_ranks", "1.5B", {"zero_stage": 3, "sequence_parallel": 2}), 2.0, (_DEEPSPEED,), gpus=2
    ),
}
Result = dict[str, Any]  # "figures", or why there are none: "skipped" or "failed"


# -- in a part's process ---------------------------------------------------------------------------------------


def look() -> Result:
    """What there is: versions, and GPUs with their names and bytes."""
    from importlib.metadata import PackageNotFoundError, version

    found: Result = {"versions": {}, "gpus": []}
    packages = ("torch", "transformers", "pydantic", "peft", _VLLM, _RAY, _DEEPSPEED, _LIGER, "flash-attn")
    for package in packages:
        try:
            found["versions"][package] = version(package)
        except PackageNotFoundError:
            continue
    try:
        import torch
    except ImportError:
        return found
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            found["gpus"].append({"name": gpu.name, "gib": round(gpu.total_memory / 2**30, 1)})
        found["cuda"] = torch.version.cuda
    return found


def measure(name: str, seconds: float) -> Result:
    """A part's figures."""
    from benchmarks import gpu_parts

    function, *arguments = PARTS[name].call
    keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
    try:
        return {"figures": getattr(gpu_parts, function)(*arguments, seconds=seconds, **keywords)}
    except gpu_parts.Skip as reason:
        return {"skipped": str(reason)}


# -- in this one -----------------------------------------------------------------------------------------------


def why_not(part: Part, facts: Result) -> str | None:
    """Why a part can't be measured here, or None."""
    missing = [p for p in ("torch", "transformers", "pydantic", *part.packages) if p not in facts["versions"]]
    if "torch" not in missing and len(facts["gpus"]) < part.gpus:
        return f"needs {part.gpus} NVIDIA GPU{'s' * (part.gpus > 1)}, torch sees {len(facts['gpus'])}"
    return f"needs {', '.join(missing)}, not installed" if missing else None


def run(command: Sequence[str], seconds: float) -> Result:
    """The JSON that a process prints last; or that it took too long, or its last error. Whatever it started ends too."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"skipped": f"not done within its {seconds:.0f} s; give it more by --minutes"}
    if process.returncode == 0:
        # Libraries may have a last word of their own.
        found: Result = json.loads(next(li for li in reversed(output.splitlines()) if li.startswith("{")))
        return found
    last = [line.strip() for line in errors.splitlines() if line.strip()] or [f"status {process.returncode}"]
    if "OutOfMemoryError" in errors:
        return {"skipped": f"does not fit: {last[-1][:200]}"}
    return {"failed": last[-1][:400]}


def results(facts: Result, options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Each part's, as it is done."""
    until = time.monotonic() + 60 * options.minutes
    for name, part in PARTS.items():
        left = until - time.monotonic()
        limit = min(60 * part.minutes * options.minutes / 10, left)
        if name in options.skip or (options.only and name not in options.only):
            yield name, {"skipped": "by --skip or --only"}
        elif reason := why_not(part, facts):
            yield name, {"skipped": reason}
        elif limit < 10:
            yield name, {"skipped": f"{max(left, 0):.0f} s of --minutes {options.minutes:g} were left"}
        else:
            # What it measures takes half: models are made and kernels compiled before.
            yield name, run([*COMMAND, "--part", name, "--seconds", f"{limit / 2:.0f}"], limit)


COMMAND = (sys.executable, "-m", "benchmarks.gpu_check")


def rows(name: str, result: Result) -> Iterator[str]:
    """A part's lines of the table."""
    if "figures" not in result:
        yield f"{name:24} " + "; ".join(f"{how}: {why}" for how, why in result.items())
        return
    for figure, value in result["figures"].items():
        shown = value if isinstance(value, str) else f"{value:,.4g}"
        yield f"{name:24} {figure:36} {shown:>13}"
    if beside := PARTS[name].beside:
        yield f"{'':24} beside it: {beside}"


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--minutes", type=float, default=10.0, help="for all parts together")
    arguments.add_argument("--only", nargs="+", default=[], choices=PARTS, metavar="PART", help="these alone")
    arguments.add_argument("--skip", nargs="+", default=[], choices=PARTS, metavar="PART", help="not these")
    arguments.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments.add_argument("--seconds", type=float, default=30.0, help=argparse.SUPPRESS)
    arguments.add_argument("--look", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.look or options.part:
        print(json.dumps(look() if options.look else measure(options.part, options.seconds)))
        return
    started = time.monotonic()
    facts = run([*COMMAND, "--look"], 120.0)
    if "gpus" not in facts:
        facts = {"gpus": [], "versions": {}, **facts}
    hardware = ", ".join(f"{gpu['name']} {gpu['gib']:g} GiB" for gpu in facts["gpus"]) or "no NVIDIA GPU"
    print(f"{hardware}; {', '.join(f'{p} {v}' for p, v in facts['versions'].items())}", flush=True)
    found: dict[str, Result] = {}
    for name, result in results(facts, options):
        found[name] = result
        print(*rows(name, result), sep="\n", flush=True)
    minutes = round((time.monotonic() - started) / 60, 2)
    line = {"benchmark": "gpu_check", "hardware": hardware, "minutes": minutes, **facts, "parts": found}
    print(json.dumps(line))
    sys.exit(any("failed" in result for result in found.values()))


if __name__ == "__main__":
    main()
