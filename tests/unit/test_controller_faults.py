"""Whole runs over simulated workers of which one dies, hangs or raises at a call: they come to the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulated.cases import Cases, cases
from tests.simulated.fixtures import known, quick  # noqa: F401
from tests.simulated.outcome import check_same
from tests.simulated.ray import Call
from tests.simulated.run import Simulation

NAMES = list(cases(Path()))
KINDS = ("dies", "dies late", "hangs", "raises")
_POINTS = 8  # of a run at which something happens, in each test


def fated(kinds: dict[int, str], struck: list[Call]) -> Callable[[Call], str]:
    """Something befalls the calls of these numbers."""

    def fate(call: Call) -> str:
        kind = kinds.get(call.number, "")
        if kind:
            struck.append(call)
        return kind

    return fate


def survive(simulation: Simulation, kill_at: int | None = None, resume: bool = False) -> str:
    """Until the run is at its end, resumed by somebody who looks whether it is; what ended it on the way."""
    ends = []
    for _ in range(6):
        try:
            ended = simulation.run(resume=resume, kill_at=kill_at)
        except AssertionError:
            raise
        except Exception as error:
            ends.append(f"{type(error).__name__}: {error}")
        else:
            if not ended.killed:
                return "; ".join(ends)
            ends.append(ended.disk.killed)
        simulation, kill_at, resume = simulation.but(fate=lambda call: ""), None, True
    raise AssertionError(f"it never ended: {ends}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_something_befalls_a_worker(known: Cases, name: str, kind: str, tmp_path: Path) -> None:  # noqa: F811
    expected, whole = known.unbroken(name)
    calls = whole.ray.begun
    step = max(1, len(calls) // _POINTS)
    for number in range((3 * NAMES.index(name) + KINDS.index(kind)) % step, len(calls), step):
        struck: list[Call] = []
        simulation = known.at(name, tmp_path / str(number)).but(fate=fated({number: kind}, struck))
        ends = survive(simulation)
        assert struck == [calls[number]], "nothing befell anybody"
        check_same(simulation.outcome(), expected, f"{struck[0]} {kind}; {ends}")
