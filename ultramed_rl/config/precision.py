"""Which number format `auto` means, decided without torch."""

from __future__ import annotations

from pathlib import Path


def resolve_precision(precision: str, device: str) -> str:
    """`bfloat16` or `float32`. `auto` is bfloat16 on GPUs and on CPUs that compute it natively.

    A CPU without AVX512-BF16 or AMX emulates bfloat16: measured at a third of the fp32 rate.
    """
    if precision != "auto":
        return precision
    if device == "cuda" or native_bfloat16():
        return "bfloat16"
    return "float32"


def native_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether this machine's CPU lists a bfloat16 instruction set."""
    try:
        text = Path(cpuinfo).read_text()
    except OSError:
        return False
    return "avx512_bf16" in text or "amx_bf16" in text
