"""Numbers in running text: which one an answer gives, and none where that is unclear."""

from __future__ import annotations

import math
import re

# "B12", "CD4", "COVID-19", "3rd", ranges ("5-10"), ratios ("120/80") and times ("8:30") hold no plain number.
_AFTER = r"(?!\d|[.,/:]\d|\s*[-–—−]\s*\d|(?:st|nd|rd|th)\b)"
_DIGITS = r"[-+−]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_POWER = r"(?:\s*[x×]\s*10\s*\^\s*\{?[-+−]?\d+\}?)?"
NUMBER = re.compile(rf"(?<![\w.,/:^–—−-])(?>{_DIGITS}{_POWER}){_AFTER}")
_MARKED = re.compile(
    r"(?:\banswer\s*(?:is|would\s+be|:|=)|####)[\s*_$(:=]*"
    rf"(?:(?:about|approximately|approx\.?|roughly|around|~|≈)\s*)?[$€£]?(?P<number>{NUMBER.pattern})",
    re.IGNORECASE,
)
_ANOTHER = re.compile(rf"[\s*)]*(?:[^\W\d]{{1,10}}\s+)?(?:or|to|and)\s+{NUMBER.pattern}")
_RANGE = re.compile(r"\d\s*[-–—−]\s*\d")
_TIMES_TEN = re.compile(r"[x×]\s*10\s*\^\s*\{?([-+]?\d+)\}?")
BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")


def to_float(text: str) -> float | None:
    """The value of a match of `NUMBER`, or None where it overflows."""
    plain = text.replace("−", "-").replace(",", "")
    mantissa, power = _TIMES_TEN.sub("", plain).strip(), _TIMES_TEN.search(plain)
    if power and "e" in mantissa.lower():
        return None
    value = float(f"{mantissa}e{int(power[1][:6])}" if power else mantissa)
    return value if math.isfinite(value) else None


def only_number(text: str) -> float | None:
    """The one number in a text; None where there is none, another, or a range."""
    if _RANGE.search(text):
        return None
    numbers = {to_float(match[0]) for match in NUMBER.finditer(text)}
    return numbers.pop() if len(numbers) == 1 else None


def read_number(answer: str) -> float | None:
    """The number that an answer ends with, or None for none and for a choice of several ("5 or 10", "5-10").

    It is the last boxed one, else the last "answer is ..." or "#### ...", else the only one on the last line.
    """
    boxed = BOXED.findall(answer)
    if boxed:
        return only_number(boxed[-1])
    marked = list(_MARKED.finditer(answer))
    if marked:
        return None if _ANOTHER.match(answer, marked[-1].end()) else to_float(marked[-1]["number"])
    lines = [line for line in answer.splitlines() if line.strip()]
    return only_number(lines[-1]) if lines else None


def read_reference_number(reference: str) -> float | None:
    """The number of a reference that is one: "42", "81 mg", "The answer is 4.5.".

    None for other prose, in which a number is no answer.
    """
    if _MARKED.search(reference) or BOXED.search(reference):
        return read_number(reference)
    starts = NUMBER.match(reference.strip().lstrip("$€£~≈ "))
    return only_number(reference) if starts and len(reference.split()) <= 4 else None
