"""A round of policy training by a crew alone."""

from __future__ import annotations

from collections.abc import Sequence

from ultramed_rl.actors.trainer import TrainingPlace
from ultramed_rl.crew.online import Crew
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs


def learn(
    crew: Crew, pairs: Sequence[PreferenceGroup], references: Sequence[ReferenceLogprobs], number: int
) -> list[dict[str, float]]:
    """Each step's metrics; `number` seeds the order of the pairs."""
    with crew.policy.awake():
        crew.begin_training()
        return list(crew.go_on_training(pairs, references, TrainingPlace(0, 1, number), 0))
