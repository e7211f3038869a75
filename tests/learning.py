"""A round of policy training by its workers alone, and weights that were trained in other ways."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.records import PreferenceGroup, Prompt, ReferenceLogprobs
from ultramed_rl.store.tables import write_records
from ultramed_rl.workers.online import OnlineWorkers
from ultramed_rl.workers.policy import RoundSteps


def learn(
    workers: OnlineWorkers,
    pairs: Sequence[PreferenceGroup],
    references: Sequence[ReferenceLogprobs],
    number: int,
) -> list[dict[str, float]]:
    """Each step's metrics; `number` seeds the order of the pairs."""
    with tempfile.TemporaryDirectory() as folder, workers.policy.on_device():
        write_round(Path(folder), pairs, references)
        workers.policy.begin_round()
        return list(RoundSteps(workers.policy, Path(folder), TrainingPlace(0, 1, number), 0).remaining())


def write_round(
    folder: Path, groups: Sequence[PreferenceGroup], references: Sequence[ReferenceLogprobs]
) -> None:
    """As a round leaves them: prompts in their order, the others as they came, over several files."""
    for name in ("pairs.parquet", "reference.parquet"):
        (folder / name).mkdir(parents=True)
    write_records([group.prompt for group in groups], Prompt, folder / "prompts.parquet")
    backwards = list(zip(groups, references, strict=True))[::-1]
    for number, part in enumerate(filter(None, (backwards[:2], backwards[2:]))):
        pairs, weighed = zip(*part, strict=True)
        write_records(pairs, PreferenceGroup, folder / "pairs.parquet" / f"{number:06d}.parquet")
        write_records(weighed, ReferenceLogprobs, folder / "reference.parquet" / f"{number:06d}.parquet")


def check_trained_alike(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], name: str
) -> None:
    """The same training, summed in another order."""
    assert found.keys() == expected.keys(), name
    for key, weight in expected.items():
        # Adam divides by the gradient's size: where that is near zero, rounding decides a step's sign.
        close = torch.isclose(found[key], weight, atol=2e-4)
        assert close.float().mean() > 0.999, f"{name}: {key}"
