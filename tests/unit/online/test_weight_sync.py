"""Whoever dies or hangs in a weight sync is started again, and nobody else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulated.cases import Cases
from tests.simulated.outcome import check_same
from tests.simulated.ray import Call
from tests.simulated.run import FAULTS

APART = "ema, kept optimizer"  # of two ranks and two engines
RANK, OTHER_RANK, ENGINE, OTHER_ENGINE = ("policy", 0), ("policy", 1), ("rollout", 0), ("rollout", 1)
DIES, HANGS = "dies", "hangs"
PUSH, PULL = "push_weights", "pull_weights"

# What befalls whom in which call, and how often policy and engines are started again for it.
FAILURES = {
    "rank dies": ([(RANK, PUSH, DIES)], (1, 0)),
    "other rank dies": ([(OTHER_RANK, PUSH, DIES)], (1, 0)),
    "rank hangs": ([(OTHER_RANK, PUSH, HANGS)], (1, 0)),
    "rank dies before": ([(OTHER_RANK, "describe_weights", DIES)], (1, 0)),
    "rank hangs before": ([(OTHER_RANK, "describe_weights", HANGS)], (1, 0)),
    "engine dies": ([(OTHER_ENGINE, PULL, DIES)], (0, 1)),
    "engine dies late": ([(ENGINE, PULL, "dies late")], (0, 1)),
    "engine hangs": ([(ENGINE, PULL, HANGS)], (0, 1)),
    "engines hang": ([(ENGINE, PULL, HANGS), (OTHER_ENGINE, PULL, HANGS)], (0, 2)),
    "engine dies, other hangs": ([(ENGINE, PULL, DIES), (OTHER_ENGINE, PULL, HANGS)], (0, 2)),
    "both die": ([(RANK, PUSH, DIES), (ENGINE, PULL, DIES)], (1, 1)),
    # By NCCL each side waits for the other.
    "engine dies, rank waits": ([(RANK, PUSH, HANGS), (OTHER_ENGINE, PULL, DIES)], (1, 1)),
    "rank dies, engines wait": (
        [(RANK, PUSH, DIES), (ENGINE, PULL, HANGS), (OTHER_ENGINE, PULL, HANGS)],
        (1, 2),
    ),
    "engine dies, rank raises": ([(RANK, PUSH, "raises"), (ENGINE, PULL, DIES)], (0, 1)),
    "rank dies on the way": ([(RANK, "meet_engines", DIES)], (1, 0)),
    "engine dies on the way": ([(ENGINE, "init_weight_transfer", DIES)], (0, 1)),
    "engine hangs on the way": ([(ENGINE, "init_weight_transfer", HANGS)], (0, 1)),
}


def befalling(strikes: list[tuple[tuple[str, int], str, str]], turn: int) -> Callable[[Call], str]:
    """Each strike once, when its worker makes that call for the time after `turn` others."""
    made = Counter[tuple[tuple[str, int], str]]()

    def fate(call: Call) -> str:
        key = ((call.role, call.rank), call.method)
        made[key] += 1
        kinds = [kind for who, method, kind in strikes if (who, method) == key and made[key] == turn + 1]
        return kinds[0] if kinds else ""

    return fate


def starts(calls: list[Call]) -> tuple[int, int]:
    """How often the policy was loaded, and engines were."""
    return (
        sum((call.role, call.rank, call.method) == ("policy", 0, "load") for call in calls),
        sum((call.role, call.method) == ("rollout", "start") for call in calls),
    )


@pytest.mark.parametrize("bucket", [0, 1])
@pytest.mark.parametrize("name", FAILURES)
def test_who_is_lost_in_a_sync_is_started_again(known: Cases, name: str, bucket: int, tmp_path: Path) -> None:
    strikes, again = FAILURES[name]
    if name.endswith("on the way") and bucket:
        pytest.skip("there is one call")
    expected, whole = known.unbroken(APART)
    simulation = known.at(APART, tmp_path).but(fate=befalling(strikes, bucket))
    ended = simulation.run()
    check_same(simulation.outcome(), expected, name)
    policy, engines = starts(ended.ray.begun)
    before = starts(whole.ray.begun)
    assert (policy - before[0], engines - before[1]) == again
    assert ended.ray.time - whole.ray.time < 2 * FAULTS["hang_s"], "a hang was waited for twice"
