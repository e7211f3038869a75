"""Under which phase each worker's turns are told in a run's timeline."""

from __future__ import annotations

from collections import Counter

from tests.simulated.cases import Cases
from ultramed_rl.tracking.timeline import CONTROLLER, TIMELINE, read_spans

# By role and phase the items of a run of two rounds: 8 prompts and 4 held-out ones, 4 answers each; 8 pairs.
ROUNDS = {
    ("rollout", "generate"): 2 * 8,
    ("rollout", "evaluate"): 3 * 4,
    ("reward", "score"): 2 * 8,
    ("reward", "evaluate"): 3 * 4,
    ("reference", "reference logprobs"): 2 * 8,
    ("policy", "train"): 2 * 2 * 8,  # of two ranks
}
STREAMED = {
    ("rollout", "generate and score"): 2 * 8,
    ("rollout", "evaluate"): 3 * 4,
    ("reward", "generate and score"): 2 * 8,
    ("reward", "evaluate"): 3 * 4,
    ("policy", "train"): 2 * 2 * 8,
}


def items(known: Cases, name: str) -> Counter[tuple[str, str]]:
    known.unbroken(name)
    found: Counter[tuple[str, str]] = Counter()
    for span in read_spans(known.path / name / "tiny" / TIMELINE):
        if span.role != CONTROLLER:
            found[span.role.split("-")[0], span.phase] += span.items
    return found


def test_a_turn_is_told_under_the_phase_that_it_is_of(known: Cases) -> None:
    assert items(known, "dpo") == ROUNDS


def test_what_goes_on_at_once_has_one_name(known: Cases) -> None:
    found = items(known, "streamed")
    reference = {key: found.pop(key) for key in list(found) if key[0] == "reference"}
    assert found == STREAMED
    assert sum(reference.values()) == 2 * 8
    assert {phase for _, phase in reference} <= {"generate and score", "reference logprobs"}


def test_what_is_beside_the_rounds_has_its_own(known: Cases) -> None:
    found = items(known, "benchmarks")
    assert found["rollout", "benchmarks"] > 0 and all(label for _, label in found)
