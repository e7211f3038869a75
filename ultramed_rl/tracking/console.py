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
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from typing import Any, Literal, TextIO

from ultramed_rl.store.atomic import without_non_finite
from ultramed_rl.tracking.heartbeat import Count, at_work

_LINE_EVERY_S = 10.0
Manner = Literal["people", "quiet", "json"]


# Of the process: phases also end in threads, which inherit no context.
_manner: Manner = "people"
_machine: TextIO | None = None  # the stdout that programs read


@contextmanager
def speaking(manner: Manner) -> Iterator[None]:
    """Print in this manner. Unless it is people's, what others print goes to stderr: stdout is for programs."""
    global _manner, _machine
    before = _manner, _machine
    _manner, _machine = manner, sys.stdout
    try:
        with nullcontext() if manner == "people" else redirect_stdout(sys.stderr):
            yield
    finally:
        _manner, _machine = before


def manner() -> Manner:
    """The manner of the process."""
    return _manner


def say(text: str) -> None:
    """A line for people."""
    if _manner != "quiet":
        print(text, flush=True)


def say_marked(parts: Iterable[tuple[str, bool]]) -> None:
    """A text for people in parts, of which some are marked: by colour in a terminal, elsewhere by brackets."""
    if _manner == "quiet":
        return
    if not sys.stdout.isatty():
        return say("".join(f"\u27e6{text}\u27e7" if marked else text for text, marked in parts))
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(
        Text.assemble(*((t, "bold green" if marked else "") for t, marked in parts))
    )


def tell(event: str, **fields: Any) -> None:
    """An event for programs: one JSON object on a line, if they asked for any. A non-finite number is null."""
    if _manner == "json":
        payload = {"event": event, "time": round(time.time(), 3), **fields}
        _write(json.dumps(without_non_finite(payload), allow_nan=False, default=str))


def tell_result(ok: bool, **fields: Any) -> None:
    """The last thing that a command tells programs; quietly, the path of its output alone."""
    tell("result", ok=ok, **fields)
    if _manner == "quiet" and fields.get("output"):
        _write(str(fields["output"]))


def _write(line: str) -> None:
    global _machine
    if _machine is None:
        return
    try:
        _machine.write(line + "\n")
        _machine.flush()
    except (OSError, ValueError):  # nobody reads any more: no reason to stop a training
        _machine = None


class Bar:
    """A phase that is advanced. Where nothing draws it, it is a line every ten seconds, which reads well in a log."""

    def __init__(self, count: Count, draw: Callable[[int], None] | None) -> None:
        self.count, self._draw, self._told = count, draw, time.monotonic()

    def advance(self, units: int) -> None:
        """So many more units are done."""
        count = self.count
        count.done += units
        if self._draw is not None:
            self._draw(units)
        elif time.monotonic() - self._told > _LINE_EVERY_S:
            self._told = time.monotonic()
            of = "" if count.total is None else f"/{count.total}"
            tell("progress", phase=count.phase, done=count.done, total=count.total, unit=count.unit)
            say(f"{count.phase}: {count.done}{of} {count.unit}")


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
        with at_work(count), _terminal_bar(count) if self.terminal else nullcontext() as draw:
            yield Bar(count, draw)
        seconds = time.perf_counter() - started
        rate = f", {count.done / seconds:.1f} {unit}/s" if count.done > 1 and seconds > 0 else ""
        done = count.done if total is None else min(count.done, total)
        tell("phase_finished", phase=name, done=done, total=total, unit=unit, seconds=round(seconds, 3))
        self.say(f"{name}: {done} {unit} in {seconds:.1f} s{rate}")


@contextmanager
def _terminal_bar(count: Count) -> Iterator[Callable[[int], None]]:
    """Draws the phase; what it yields moves it on."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield partial(bars.advance, bars.add_task(count.phase, total=count.total))
