"""Whole runs over simulated workers of which one dies, hangs or raises at a call: they come to the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.simulated.cases import Cases, cases
from tests.simulated.outcome import check_same
from tests.simulated.ray import Call
from tests.simulated.run import Simulation

NAMES = list(cases(Path()))
KINDS = ("dies", "dies late", "hangs", "raises")
_POINTS = 5  # of a run at which something happens, in each test


def fated(kinds: dict[int, str], struck: list[Call]) -> Callable[[Call], str]:
    """Something befalls the first calls of these numbers; a resumed run counts anew."""
    left = dict(kinds)

    def fate(call: Call) -> str:
        kind = left.pop(call.number, "")
        if kind:
            struck.append(call)
        return kind

    return fate


def survive(simulation: Simulation, kill_at: int | None = None) -> None:
    """Until the run is at its end: whoever dies or hangs is replaced. A driver that is killed, or that a worker's own
    error ends, is resumed."""
    ends: list[str] = []
    while len(ends) < 6:
        try:
            ended = simulation.run(resume=bool(ends), kill_at=kill_at)
        except RuntimeError as error:
            assert "broken in" in str(error), f"{ends}, then {error}"
            ends.append(str(error))
        else:
            if not ended.killed:
                return
            ends.append(ended.disk.killed)
        kill_at = None
    raise AssertionError(f"it never ended: {ends}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_something_befalls_a_worker(known: Cases, name: str, kind: str, tmp_path: Path) -> None:
    expected, whole = known.unbroken(name)
    calls = whole.ray.begun
    step = max(1, len(calls) // _POINTS)
    for number in range((3 * NAMES.index(name) + KINDS.index(kind)) % step, len(calls) * 9 // 10, step):
        struck: list[Call] = []
        simulation = known.at(name, tmp_path / str(number)).but(fate=fated({number: kind}, struck))
        survive(simulation)
        assert len(struck) == 1, "nothing befell anybody"
        check_same(simulation.outcome(), expected, f"{struck[0]} {kind}")


@example(name="dpo", befalls={0: "dies", 41: "dies", 42: "hangs"}, kill_at=None)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(NAMES),
    befalls=st.dictionaries(st.integers(0, 400), st.sampled_from(KINDS), max_size=5),
    kill_at=st.none() | st.integers(1, 200),
)
def test_any_order_of_faults(
    known: Cases,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    befalls: dict[int, str],
    kill_at: int | None,
) -> None:
    """Several workers, their replacements too, and perhaps the driver on top."""
    expected, _ = known.unbroken(name)
    struck: list[Call] = []
    simulation = known.at(name, tmp_path_factory.mktemp("faults")).but(fate=fated(befalls, struck))
    survive(simulation, kill_at)
    check_same(simulation.outcome(), expected, f"{name}: {struck}")


@pytest.mark.parametrize("kind", ["dies", "hangs"])
@pytest.mark.parametrize(
    "name", ["early", "lora", "ema, kept optimizer", "bfloat16", "rare checkpoints", "overlap"]
)
def test_the_policy_is_lost_at_any_of_its_steps(known: Cases, name: str, kind: str, tmp_path: Path) -> None:
    """Of the first round: what was learnt before is learnt again, from the policy that the round began with."""
    expected, whole = known.unbroken(name)
    learning = ("learn_preferences", "learn_next", "learn_round", "train", "save")
    calls = [call for call in whole.ray.begun if call.method in learning and call.role == "policy"]
    for call in calls[: len(calls) // 2]:
        simulation = known.at(name, tmp_path / str(call.number)).but(fate=fated({call.number: kind}, []))
        survive(simulation)
        check_same(simulation.outcome(), expected, f"{call} {kind}")


@pytest.mark.parametrize("name", ["early", "overlap, lora, bfloat16, rare checkpoints"])
def test_an_engine_is_lost_while_the_policy_learns(known: Cases, name: str, tmp_path: Path) -> None:
    """The ranks have weights that are newer than the other engines', the last checkpoint has older ones."""
    expected, whole = known.unbroken(name)
    steps = [call.number for call in whole.ray.begun if call.method in ("train", "learn_next")]
    turns = [c for c in whole.ray.begun if (c.role, c.method) == ("rollout", "work") and c.number > steps[0]]
    for call in turns[:: max(1, len(turns) // 12)]:
        simulation = known.at(name, tmp_path / str(call.number)).but(fate=fated({call.number: "dies"}, []))
        survive(simulation)
        check_same(simulation.outcome(), expected, str(call))
