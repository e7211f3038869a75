"""Whole runs over simulated workers: what they come to, and the same with the driver killed at any change of the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulated.cases import Cases, cases, check_run
from tests.simulated.outcome import check_same

NAMES = list(cases(Path()))


@pytest.mark.parametrize("name", NAMES)
def test_a_run_comes_to_what_its_seeds_and_weights_say(known: Cases, name: str) -> None:
    outcome, _ = known.unbroken(name)
    check_run(known.at(name, known.path / name), outcome)


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_a_change_of_the_disk_and_resumed(known: Cases, name: str, tmp_path: Path) -> None:
    """Every change of a streamed run, every third of one whose steps follow each other, ten of the other cases."""
    expected, whole = known.unbroken(name)
    every = {"streamed": 1, "dpo": 3}.get(name, whole.disk.changes // 10)
    for point in range(1 + NAMES.index(name) % every, whole.disk.changes + 1, every):
        simulation = known.at(name, tmp_path / str(point))
        ended = simulation.run(kill_at=point)
        assert ended.killed, point
        simulation.run(resume=True)
        check_same(simulation.outcome(), expected, ended.disk.killed)


@pytest.mark.parametrize("name", NAMES)
def test_killed_again_and_again(known: Cases, name: str, tmp_path: Path) -> None:
    """A little later each time: a resumed run makes fewer changes than are left."""
    expected, whole = known.unbroken(name)
    simulation, kills = known.at(name, tmp_path), 0
    while simulation.run(resume=kills > 0, kill_at=11 + 7 * kills).killed:
        kills += 1
        assert kills < whole.disk.changes
    check_same(simulation.outcome(), expected, f"{kills} kills")
    assert kills > 3
