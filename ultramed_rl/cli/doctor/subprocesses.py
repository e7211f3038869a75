"""Checks in processes of their own: a crash or a hang there is a finding, not the end of the examination."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LENGTH = 300


@dataclass(frozen=True)
class Outcome:
    """Whether it worked, and the last thing that it said."""

    worked: bool
    said: str


def run_python(
    arguments: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None
) -> Outcome:
    """This interpreter with these arguments, for so long at most."""
    command = [sys.executable, *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Outcome(False, f"nothing within {timeout_s:g} s")
    if done.returncode == 0:
        return Outcome(True, _last_line(done.stdout))
    if done.returncode < 0:
        return Outcome(False, f"killed by signal {-done.returncode}; {_last_line(done.stderr)}".rstrip("; "))
    return Outcome(False, _last_line(done.stderr) or f"exit code {done.returncode}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_LENGTH] if lines else ""
