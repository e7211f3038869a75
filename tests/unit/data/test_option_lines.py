"""Options in lines: what ends a run, and which run is the last."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.data.vignettes import OptionRun, last_run

OPTION = re.compile(r"([A-Z])\. (.+)")


@pytest.mark.parametrize(
    ("over", "least", "found"),
    [
        ("nothing", 1, OptionRun(8, 9, ("lone",))),
        ("nothing", 2, OptionRun(1, 3, ("x", "y"))),
        ("blank", 2, OptionRun(1, 5, ("x", "y", "z"))),
        ("any", 1, OptionRun(8, 9, ("lone",))),
        ("any", 2, OptionRun(1, 7, ("x", "y", "z", "w"))),
        ("any", 5, OptionRun(9, 9, ())),
    ],
)
def test_a_run_goes_over_what_it_may_and_short_ones_do_not_count(
    over: str, least: int, found: OptionRun
) -> None:
    lines = ["Stem", "A. x", "B. y", "", "C. z", "words", "D. w", "C. again", "A. lone"]
    assert last_run(lines, OPTION, over=over, least=least) == found  # type: ignore[arg-type]


def test_a_run_without_a_is_none_and_z_is_followed_by_a_new_run() -> None:
    assert last_run(["B. y", "C. z"], OPTION, over="any") == OptionRun(2, 2, ())
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZAB"
    lines = [f"{letter}. {number}" for number, letter in enumerate(letters)]
    assert last_run(lines, OPTION, over="nothing") == OptionRun(26, 28, ("26", "27"))
    assert last_run(lines, OPTION, over="nothing", least=26).texts[-1] == "25"


@given(st.lists(st.sampled_from(["A. a", "B. b", "C. c", "", "word"]), max_size=12), st.integers(1, 3))
def test_unbroken_runs_are_lines_in_the_order_of_letters(lines: list[str], least: int) -> None:
    run = last_run(lines, OPTION, over="nothing", least=least)
    assert [f"{text.upper()}. {text}" for text in run.texts] == lines[run.start : run.end]
    assert "".join(run.texts) == "abc"[: len(run.texts)]
    assert not run.texts or len(run.texts) >= least
