"""README's table is what the kept lines say, and a line's ratio is refused where it would mislead."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import table
from line import compare_sides, machine, print_line
from table import keep_line, read_lines, split_readme, write_table

LINE: dict[str, Any] = {
    "benchmark": "packing",
    "command": "packing.py",
    "ours": 0.0,
    "peer": 0.374,
    "ratio": 1.6,
    "unit": "padding",
    "peer_name": "TRL",
    "work": "pairs",
    "date": "2026-11-21",
    "commit": "c7bf304",
}


def test_every_figure_of_the_readme_is_one_of_a_kept_line() -> None:
    _, written, _ = split_readme(table.README.read_text(encoding="utf-8"))
    assert written == write_table(read_lines())
    kept = [row for file in table.RESULTS.glob("*.json") for row in file.read_text().splitlines()]
    assert len(read_lines()) == len(kept) > 15, "a file that ORDER leaves out"


@pytest.mark.parametrize("line", read_lines(), ids=lambda line: line["command"])
def test_a_kept_line_says_where_and_when(line: dict[str, Any]) -> None:
    assert line["machine"].keys() == machine().keys()
    assert line["date"] and line["commit"] and line["work"] and "spread" in line
    assert not line["commit"].endswith("-dirty")


def test_a_row_has_the_lines_figures() -> None:
    row = "| `packing.py` | 0 padding | 0.374, TRL | 1.6 | pairs | 2026-11-21 `c7bf304` |\n"
    assert write_table([LINE]).endswith(row)


def test_a_line_takes_the_place_of_the_same_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    other = {**LINE, "command": "packing.py --batch 4"}
    for line in (LINE, other, {**LINE, "ratio": 1.7}):
        keep_line(line)
    assert [(line["command"], line["ratio"]) for line in read_lines()] == [
        ("packing.py", 1.7),
        ("packing.py --batch 4", 1.6),
    ]
    for broken in ({"ratio": None, "faults": ["ours: its turns spread"]}, {"faults": ["answers differ"]}):
        with pytest.raises(ValueError, match="quiet machine"):
            keep_line({**LINE, **broken})
    with pytest.raises(ValueError, match="ORDER"):
        keep_line({**LINE, "benchmark": "other"})


def test_the_ratio_is_against_the_best_peer() -> None:
    rates = {"ours": [4.0, 5.0, 4.5], "slow": [2.0, 2.25, 2.5], "fast": [5.0, 5.0, 5.0]}
    line = compare_sides(rates, 1.25)
    assert (line["ours"], line["peer"], line["ratio"], line["peer_name"]) == (4.5, 5.0, 0.9, "fast")
    assert line["ratios"] == {"slow": 2.0, "fast": 0.9} and line["faults"] == [] and line["spread"] == 1.25
    assert line["sides"]["ours"] == {"turns": 3, "min": 4.0, "median": 4.5, "max": 5.0, "spread": 1.25}
    line = compare_sides(rates, 1.25, seconds=True)  # less is better
    assert (line["ratio"], line["peer_name"], line["ratios"]) == (0.5, "slow", {"slow": 0.5, "fast": 1.111})


def test_what_takes_no_turns_has_no_spread(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        print_line({"benchmark": "chaos", "ratio": 1.0})
    assert json.loads(capsys.readouterr().out)["spread"] is None


def test_turns_that_spread_give_no_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    line = compare_sides({"ours": [4.0, 4.0], "peer": [2.0, 2.6]}, 1.25)
    assert line["ratio"] is None and line["ratios"] == {"peer": None} and line["spread"] == 1.3
    with pytest.raises(SystemExit) as ended:
        print_line(line, "answers differ")
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code and told["faults"] == ["peer: its turns spread more than 1.25", "answers differ"]
    assert told["date"] and told["machine"]["cores"] >= 1 and told["versions"]["torch"]
