"""Numbers as reports show them."""

from __future__ import annotations

import math

from ultramed_rl.evaluation.statistics import Interval

DASH = "–"
MARKS = "Marks: * p < 0.05, ** p < 0.01, *** p < 0.001, McNemar's exact test, not corrected for the number of rows."


def number(value: float | None, form: str = ".3g") -> str:
    """A number in a format, or a dash where there is none."""
    return DASH if value is None or not math.isfinite(value) else format(value, form)


def interval_words(interval: Interval, form: str = "+.2f") -> str:
    """A mean with its interval: +1.49 (+0.97 to +2.02)."""
    return f"{interval.mean:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def share_words(interval: Interval) -> str:
    """A share with its interval: 86% (74% to 93%)."""
    return f"{percent(interval.mean)} ({percent(interval.low)} to {percent(interval.high)})"


def percent(value: float, digits: int = 0) -> str:
    return DASH if not math.isfinite(value) else f"{100 * value:.{digits}f}%"


def stars(p_value: float | None) -> str:
    """The mark of a p-value."""
    if p_value is None or not math.isfinite(p_value):
        return ""
    return next((mark for bound, mark in ((0.001, "***"), (0.01, "**"), (0.05, "*")) if p_value < bound), "")


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
