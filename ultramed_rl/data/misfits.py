"""Rows that don't fit their source: counted by reason, shown, and refused past a limit."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.sources import Row, read_placed_rows

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass
class FittingRows:
    """One source's rows as they are read, and those of them that don't fit.

    `unfit` says what a misfit does or is ("are no conversations"), `allowed` is the share of rows that may be
    one, `fix` what to do about more. `counts` gains rows, misfit and, by reason, misfit_NAME.
    """

    uri: str
    limit: int | None
    allowed: float
    unfit: str
    fix: str
    counts: Counter[str]
    quiet: bool = False  # the source was read before, so that a warning would be its second
    rows: int = field(default=0, init=False)
    reasons: Counter[str] = field(default_factory=Counter, init=False)
    first: str = field(default="", init=False)
    missing: set[str | None] = field(default_factory=set, init=False)
    columns: str = field(default="", init=False)

    def parse(self, parse: Callable[[Row], T | None]) -> Iterator[T]:
        """What `parse` makes of each row, in file order. It raises Misfit, and gives None to leave a row out.

        Raises:
            ValueError: an unreadable source; at its end, more misfits than allowed, or nothing else.
        """
        self.counts.update(rows=0, misfit=0)
        for place, row in read_placed_rows(self.uri, self.limit):
            self.rows += 1
            self.counts["rows"] += 1
            try:
                found = parse(row)
            except Misfit as misfit:
                self._add(place, row, misfit)
                continue
            if found is not None:
                yield found
        self._judge()

    def _add(self, place: str, row: Row, misfit: Misfit) -> None:
        self.counts.update({"misfit": 1, f"misfit_{misfit.name}": 1})
        self.reasons[misfit.name] += 1
        self.missing.add(misfit.column)
        self.first = self.first or f"{place}: {misfit}"
        self.columns = ", ".join(row)

    def _judge(self) -> None:
        misfits = self.reasons.total()
        if not misfits:
            return
        (missing, *others) = self.missing
        if misfits == self.rows and missing is not None and not others:
            raise ValueError(
                f"source {self.uri!r}: no row has a column {missing!r}; its columns are {self.columns}: name "
                "one of them, or another type of source"
            )
        if misfits == self.rows or misfits > self.allowed * self.rows:
            reasons = ", ".join(f"{count} {name}" for name, count in self.reasons.items())
            raise ValueError(
                f"source {self.uri!r}: {misfits} of {self.rows} rows {self.unfit} ({reasons}; {self.first}); "
                f"at most {100 * self.allowed:.3g}% may, and not all: {self.fix}"
            )
        if not self.quiet:
            logger.warning("source %s: skipped %d of %d rows (%s)", self.uri, misfits, self.rows, self.first)
