"""Numbers as reports show them."""

from __future__ import annotations

import math

from ultramed_rl.evaluation.statistics import Interval

DASH = "–"
MARKS = "Marks: * p < 0.05, ** p < 0.01, *** p < 0.001, McNemar's exact test, not corrected for the number of rows."


def number(value: float | None, form: str = ".3g") -> str:
    """A number in a format, or a dash where there is none."""
    return DASH if value is None or not math.isfinite(value) else format(value, form)


def percent(value: float | None, digits: int = 0) -> str:
    """A share as 86%, or a dash where it is no number."""
    return number(value, f".{digits}%")


def interval_words(interval: Interval | None, form: str = "+.2f") -> str:
    """A mean with its interval: +1.49 (+0.97 to +2.02)."""
    if interval is None:
        return DASH
    return f"{interval.mean:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def share_words(interval: Interval | None) -> str:
    """A share with its interval: 86% (74% to 93%)."""
    return interval_words(interval, ".0%")


def marked(interval: Interval | None) -> str:
    """A change with its interval, and a star where that leaves no doubt of the sign."""
    clear = interval is not None and (interval.low > 0 or interval.high < 0)
    return interval_words(interval) + " *" * clear


def stars(p_value: float | None) -> str:
    """The mark of a p-value."""
    return "" if p_value is None else "*" * sum(p_value < bound for bound in (0.05, 0.01, 0.001))


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 7 min 05 s, 3 h 20 min."""
    if not math.isfinite(seconds):
        return DASH
    rounded = round(seconds)
    if rounded < 60:
        return f"{seconds:.1f} s" if rounded < 10 else f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def spoken(name: str) -> str:
    """A metric's name as words."""
    return name.replace("_", " ")
