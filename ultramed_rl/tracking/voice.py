"""How this process speaks: to people, quietly, or as JSON lines.

| manner | stdout | stderr |
|---|---|---|
| people | lines | bars, warnings, errors |
| quiet | the path of what was made, at the end | warnings, errors |
| json | an object per event, the result last | the lines for people |
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal, TextIO

Manner = Literal["people", "quiet", "json"]


@dataclass(frozen=True)
class _Voice:
    manner: Manner
    machine: TextIO | None = None  # the stdout that programs read


_voice = _Voice("people")  # of the process: phases also end in threads, which inherit no context


@contextmanager
def speaking(manner: Manner) -> Iterator[None]:
    """Speak in this manner. Unless it is people's, what others print goes to stderr: stdout is for programs."""
    global _voice
    before, _voice = _voice, _Voice(manner, sys.stdout)
    try:
        if manner == "people":
            yield
        else:
            with redirect_stdout(sys.stderr):
                yield
    finally:
        _voice = before


def manner() -> Manner:
    """The manner of the process."""
    return _voice.manner


def say(text: str) -> None:
    """A line for people."""
    if _voice.manner != "quiet":
        print(text, flush=True)


def tell(event: str, **fields: Any) -> None:
    """An event for programs: one JSON object on a line, if they asked for any. A non-finite number is null."""
    if _voice.manner == "json":
        payload = {"event": event, "time": round(time.time(), 3), **fields}
        _write(json.dumps(_finite(payload), ensure_ascii=True, allow_nan=False, default=str))


def tell_result(ok: bool, **fields: Any) -> None:
    """The last thing that a command tells programs; quietly, the path of its output alone."""
    tell("result", ok=ok, **fields)
    if _voice.manner == "quiet" and fields.get("output"):
        _write(str(fields["output"]))


def _write(line: str) -> None:
    global _voice
    if _voice.machine is None:
        return
    try:
        _voice.machine.write(line + "\n")
        _voice.machine.flush()
    except (OSError, ValueError):  # nobody reads any more: no reason to stop a training
        _voice = _Voice(_voice.manner)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
