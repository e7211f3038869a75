"""Options in lines of their own, A., B., ...: where a text's last run of them is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal


@dataclass(frozen=True)
class OptionRun:
    """Lines [start, end) that begin with the first and end with the last of some options, and the options' texts."""

    start: int
    end: int
    texts: tuple[str, ...]


def last_run(
    lines: Sequence[str], option: re.Pattern[str], *, over: Literal["nothing", "blank", "any"], least: int = 1
) -> OptionRun:
    """The last run of options from A on, each with the next letter; at the end and empty where there is none.

    Args:
        option: matches a whole line that is an option; its groups are the letter and the text.
        over: other lines that may stand between two options; any other line ends the run.
        least: options of a run; shorter runs don't count.
    """
    found = OptionRun(len(lines), len(lines), ())
    start, run = 0, list[str]()
    for number, line in enumerate(lines):
        match = option.fullmatch(line)
        if match and match[1] == "A":
            start, run = number, [match[2]]
        elif match and run and match[1] == ascii_uppercase[len(run) % 26]:
            run.append(match[2])
        else:
            run = run if over == "any" or (over == "blank" and not line.strip()) else []
            continue
        if len(run) >= least:
            found = OptionRun(start, number + 1, tuple(run))
    return found
