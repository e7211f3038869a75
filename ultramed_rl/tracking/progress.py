"""Progress of a phase: a bar in a terminal, plain lines elsewhere, events for programs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from ultramed_rl.tracking.heartbeat import Count, at_work
from ultramed_rl.tracking.voice import manner, say, tell

_LINE_EVERY_S = 10.0


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
                yield _Lines(count, self.say)
        seconds = time.perf_counter() - started
        rate = f", {count.done / seconds:.1f} {unit}/s" if count.done > 1 and seconds > 0 else ""
        done = count.done if total is None else min(count.done, total)
        tell("phase_finished", phase=name, done=done, total=total, unit=unit, seconds=round(seconds, 3))
        self.say(f"{name}: {done} {unit} in {seconds:.1f} s{rate}")


class _Lines:
    """A line every ten seconds, which reads well in a log."""

    def __init__(self, count: Count, say: Callable[[str], None]) -> None:
        self.count, self.say = count, say
        self.last = time.monotonic()

    def advance(self, count: int) -> None:
        counted = self.count
        counted.done += count
        if time.monotonic() - self.last > _LINE_EVERY_S:
            self.last = time.monotonic()
            of = "" if counted.total is None else f"/{counted.total}"
            tell("progress", phase=counted.phase, done=counted.done, total=counted.total, unit=counted.unit)
            self.say(f"{counted.phase}: {counted.done}{of} {counted.unit}")


@contextmanager
def _terminal_bar(count: Count) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as rich:
        task = rich.add_task(count.phase, total=count.total)

        class Terminal:
            def advance(self, done: int) -> None:
                count.done += done
                rich.advance(task, done)

        yield Terminal()
