"""The console: what this process prints for people and for programs, and the progress of its phases.

| manner | stdout | stderr |
|---|---|---|
| people | lines | bars, warnings, errors |
| quiet | the path of what was made, at the end | warnings, errors |
| json | an object per event, the result last | the lines for people |

A phase is a bar in a terminal, plain lines elsewhere, events for programs.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TextIO

from ultramed_rl.tracking.heartbeat import Count, at_work

_LINE_EVERY_S = 10.0
Manner = Literal["people", "quiet", "json"]


@dataclass(frozen=True)
class _Console:
    manner: Manner
    machine: TextIO | None = None  # the stdout that programs read


_console = _Console("people")  # of the process: phases also end in threads, which inherit no context


@contextmanager
def speaking(manner: Manner) -> Iterator[None]:
    """Print in this manner. Unless it is people's, what others print goes to stderr: stdout is for programs."""
    global _console
    before, _console = _console, _Console(manner, sys.stdout)
    try:
        if manner == "people":
            yield
        else:
            with redirect_stdout(sys.stderr):
                yield
    finally:
        _console = before


def manner() -> Manner:
    """The manner of the process."""
    return _console.manner


def say(text: str) -> None:
    """A line for people."""
    if _console.manner != "quiet":
        print(text, flush=True)


def tell(event: str, **fields: Any) -> None:
    """An event for programs: one JSON object on a line, if they asked for any. A non-finite number is null."""
    if _console.manner == "json":
        payload = {"event": event, "time": round(time.time(), 3), **fields}
        _write(json.dumps(_finite(payload), ensure_ascii=True, allow_nan=False, default=str))


def tell_result(ok: bool, **fields: Any) -> None:
    """The last thing that a command tells programs; quietly, the path of its output alone."""
    tell("result", ok=ok, **fields)
    if _console.manner == "quiet" and fields.get("output"):
        _write(str(fields["output"]))


def _write(line: str) -> None:
    global _console
    if _console.machine is None:
        return
    try:
        _console.machine.write(line + "\n")
        _console.machine.flush()
    except (OSError, ValueError):  # nobody reads any more: no reason to stop a training
        _console = _Console(_console.manner)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Bar(Protocol):
    """Something that can be advanced."""

    def advance(self, count: int) -> None:
        """`count` more units are done."""
        ...


class Progress:
    """Shows phases. Knows by itself whether anybody watches a terminal."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty() and manner() == "people"

    def say(self, text: str) -> None:
        """A line for people."""
        say(text)

    @contextmanager
    def phase(self, name: str, total: int | None, unit: str) -> Iterator[Bar]:
        """Show a phase from its start to its end; `total` units, or None where nobody has counted them."""
        started = time.perf_counter()
        count = Count(name, total, unit)
        tell("phase_started", phase=name, total=total, unit=unit)
        with at_work(count):
            if self.terminal:
                with _terminal_bar(count) as bar:
                    yield bar
            else:
                yield _Lines(count)
        seconds = time.perf_counter() - started
        rate = f", {count.done / seconds:.1f} {unit}/s" if count.done > 1 and seconds > 0 else ""
        done = count.done if total is None else min(count.done, total)
        tell("phase_finished", phase=name, done=done, total=total, unit=unit, seconds=round(seconds, 3))
        self.say(f"{name}: {done} {unit} in {seconds:.1f} s{rate}")


class _Lines:
    """A line every ten seconds, which reads well in a log."""

    def __init__(self, count: Count) -> None:
        self.count = count
        self.last = time.monotonic()

    def advance(self, count: int) -> None:
        counted = self.count
        counted.done += count
        if time.monotonic() - self.last > _LINE_EVERY_S:
            self.last = time.monotonic()
            of = "" if counted.total is None else f"/{counted.total}"
            tell("progress", phase=counted.phase, done=counted.done, total=counted.total, unit=counted.unit)
            say(f"{counted.phase}: {counted.done}{of} {counted.unit}")


@contextmanager
def _terminal_bar(count: Count) -> Iterator[Bar]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as rich:
        task = rich.add_task(count.phase, total=count.total)

        class Terminal:
            def advance(self, done: int) -> None:
                count.done += done
                rich.advance(task, done)

        yield Terminal()
