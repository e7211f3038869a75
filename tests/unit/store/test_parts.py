"""A phase's parts: what a kill left of them, and what they are made from."""

from __future__ import annotations

from pathlib import Path

from ultramed_rl.records import OptionLogprobs
from ultramed_rl.store.parts import Parts


def records(*numbers: int) -> list[OptionLogprobs]:
    return [OptionLogprobs(f"q{i}", (-1.0, -float(i)), 0) for i in numbers]


def open_parts(path: Path, inputs: str = "a") -> Parts[OptionLogprobs]:
    return Parts(path / "likelihood.parts", OptionLogprobs, (inputs,))


def test_parts_are_read_in_the_order_in_which_they_were_kept(tmp_path: Path) -> None:
    open_parts(tmp_path).keep(records(3, 1))
    open_parts(tmp_path).keep(records(2))
    assert list(open_parts(tmp_path).read()) == records(3, 1, 2)


def test_a_part_that_a_kill_left_half_written_is_no_part(tmp_path: Path) -> None:
    kept = open_parts(tmp_path)
    kept.keep(records(0, 1))
    (kept.path / ".tmp-000001.parquet").write_bytes(b"PAR1")
    assert list(open_parts(tmp_path).read()) == records(0, 1)


def test_parts_of_other_inputs_are_forgotten(tmp_path: Path) -> None:
    open_parts(tmp_path).keep(records(0, 1))
    assert not list(open_parts(tmp_path, "b").read())
