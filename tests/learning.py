"""A round of policy training by a crew alone, and weights that were trained in other ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

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


def check_trained_alike(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], name: str
) -> None:
    """The same training, summed in another order."""
    assert found.keys() == expected.keys(), name
    for key, weight in expected.items():
        # Adam divides by the gradient's size: where that is near zero, rounding decides a step's sign.
        close = torch.isclose(found[key], weight, atol=2e-4)
        assert close.float().mean() > 0.999, f"{name}: {key}"
