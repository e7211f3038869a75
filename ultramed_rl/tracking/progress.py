"""Progress of a phase: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_LINE_EVERY_S = 10.0


class Bar(Protocol):
    """Something that can be advanced."""

    def advance(self, count: int) -> None:
        """`count` more units are done."""
        ...


class Progress:
    """Shows phases. Knows by itself whether anybody watches a terminal."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """A line for people, on stdout."""
        print(text, flush=True)

    @contextmanager
    def phase(self, name: str, total: int | None, unit: str) -> Iterator[Bar]:
        """Show a phase from its start to its end; `total` units, or None where nobody has counted them."""
        started = time.perf_counter()
        counter = _Counter()
        if self.terminal:
            with _terminal_bar(name, total, counter) as bar:
                yield bar
        else:
            yield _Lines(self, name, total, unit, counter)
        seconds = time.perf_counter() - started
        rate = f", {counter.done / seconds:.1f} {unit}/s" if counter.done > 1 and seconds > 0 else ""
        done = counter.done if total is None else min(counter.done, total)
        self.say(f"{name}: {done} {unit} in {seconds:.1f} s{rate}")


class _Counter:
    done = 0


class _Lines:
    def __init__(
        self, progress: Progress, name: str, total: int | None, unit: str, counter: _Counter
    ) -> None:
        self.progress, self.name, self.total, self.unit, self.counter = progress, name, total, unit, counter
        self.last = time.monotonic()

    def advance(self, count: int) -> None:
        self.counter.done += count
        if time.monotonic() - self.last > _LINE_EVERY_S:
            self.last = time.monotonic()
            of = "" if self.total is None else f"/{self.total}"
            self.progress.say(f"{self.name}: {self.counter.done}{of} {self.unit}")


@contextmanager
def _terminal_bar(name: str, total: int | None, counter: _Counter) -> Iterator[Bar]:
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
        task = rich.add_task(name, total=total)

        class Terminal:
            def advance(self, count: int) -> None:
                counter.done += count
                rich.advance(task, count)

        yield Terminal()
