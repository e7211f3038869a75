"""README's table of what was measured, made of the lines under `results/`.

    python benchmarks/table.py                                                   # write it anew
    python benchmarks/packing.py | tail -n 1 | python benchmarks/table.py --add  # keep a line, in the place of the same command's

A file has the lines that its benchmark printed, each a row of the table. A line with faults or without a ratio is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- made by benchmarks/table.py -->\n", "<!-- end -->\n"
ORDER = (
    "round",
    "preference_step",
    "sft_step",
    "scoring",
    "rollout",
    "packing",
    "evaluation",
    "agreement",
    "chaos",
    "simulate",
    "overlap",
    "cheap_rounds",
    "weight_sync",
    "data_scale",
    "api_rate",
)
HEAD = "| benchmark | ours | peer | ratio | work | measured |\n|---|---|---|---|---|---|\n"


def read_lines() -> list[dict[str, Any]]:
    """All that is kept, in the table's order."""
    return [line for name in ORDER for line in _read(RESULTS / f"{name}.json")]


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in file.read_text().splitlines()] if file.is_file() else []


def keep_line(line: Mapping[str, Any]) -> None:
    """Keep a benchmark's line in its file.

    Raises:
        ValueError: it is no measurement, or its benchmark has no place in the table.
    """
    if line.get("faults") or line["ratio"] is None:
        raise ValueError(f"{line['command']}: {'; '.join(line['faults'])}; measure again on a quiet machine")
    if line["benchmark"] not in ORDER:
        raise ValueError(f"benchmark {line['benchmark']!r}: has no place in ORDER of {Path(__file__).name}")
    file = RESULTS / f"{line['benchmark']}.json"
    kept = {each["command"]: each for each in _read(file)} | {line["command"]: line}
    file.write_text("".join(json.dumps(each) + "\n" for each in kept.values()))


def write_table(lines: Iterable[Mapping[str, Any]]) -> str:
    """The table, in Markdown."""
    return HEAD + "".join(
        f"| `{line['command']}` | {_number(line['ours'])} {line['unit']} | {_number(line['peer'])}, {line['peer_name']} "
        f"| {_number(line['ratio'])} | {line['work']} | {line['date']} `{line['commit']}` |\n"
        for line in lines
    )


def _number(value: float) -> str:
    """At most three digits, or all of a large number's."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def split_readme(text: str) -> tuple[str, str, str]:
    """What stands before the table, the table, and the rest; the marks are no part of the table."""
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    assert after, f"README.md: no table between {BEGIN!r} and {END!r}"
    return before + BEGIN, table, END + after


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--add", action="store_true", help="keep the line at the standard input first")
    if arguments.parse_args().add:
        keep_line(json.loads(sys.stdin.readline()))
    before, _, after = split_readme(README.read_text(encoding="utf-8"))
    README.write_text(before + write_table(read_lines()) + after, encoding="utf-8")


if __name__ == "__main__":
    main()
