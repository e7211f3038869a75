"""Training ranks whose weights are a number that follows from all that was learnt, in its order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.simulated.ray import SimulatedRay, Takes
from tests.simulated.scorers import number_answers, numbers
from tests.simulated.weights import mix, read_weights, write_weights
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.weight_sync import WeightBucket
from ultramed_rl.actors.work import WorkBatch
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.models.load import ADAPTER_FOLDER
from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs
from ultramed_rl.store.shards import RoundPairs, read_references

STEP_S = 0.3


class Learnt:
    """What a rank was given to learn."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.groups: list[PreferenceGroup] = []
        self.references: list[ReferenceLogprobs] | None = None

    @property
    def lengths(self) -> list[int]:
        return [group.packed_tokens for group in self.groups]

    def sample(self, index: int) -> tuple[object, ...]:
        """All of a sample that its gradient would follow from."""
        group = self.groups[index]
        answers = [tuple(c.token_ids) for c in group.completions]
        reference = None if self.references is None else self.references[index]
        return (group.group_id, tuple(group.prompt.token_ids), answers, group.rewards, reference)


class SimulatedTrainer(PolicyWorker):
    """A rank whose batches, steps and rates are the real ones, and whose gradients are digests."""

    role = "policy"
    collective = frozenset(
        {
            "load",
            "train",
            "learn_next",
            "update_survives",
            "save",
            "save_state",
            "load_state",
            "describe_weights",
        }
    )
    peaks = {"mfu": 1e12}
    ray: SimulatedRay
    base = weights = masters = optimizer = ""
    rounded = False  # whether weights are masters rounded to bfloat16
    meeting: tuple[str, int]
    task: Any

    @property
    def ranks(self) -> int:
        return self.world_size

    def rendezvous(self) -> tuple[str, int]:
        return ("node", self.ray.calls)

    def _join(self, address: tuple[str, int]) -> None:
        self.meeting, self.optimizer = address, ""
        self.engine: Any = SimpleNamespace(skipped_steps=0)

    def load(self, model: Any, spec: Any, address: Any, checkpoint: str | None = None) -> Takes:  # type: ignore[override]
        self._join(address)
        self.lora = model.lora is not None
        self.base = read_weights(model.path)
        if self.lora and model.lora.quantize is not None:
            self.base = mix(self.base, model.lora.quantize)
        if checkpoint is None:
            self.weights = self.base
        else:
            self.weights = read_weights(Path(checkpoint) / ADAPTER_FOLDER if self.lora else checkpoint)
        self.masters, self.rounded = self.weights, spec.precision == "bfloat16"
        return Takes(5.0)

    def start_round(self, fresh: bool) -> None:
        if fresh:
            self.optimizer = ""

    def update_survives(self) -> float:
        return 1.0

    def learn_preferences(
        self, groups: Any, references: Any, objective: Any, max_length: int, held_out: Any = None
    ) -> None:
        self.set_task(Learnt(objective))
        self._add(groups, references)

    def learn_round(self, folder: str, objective: Any, max_length: int, *steps: Any) -> None:
        pairs = RoundPairs(Path(folder))
        pairs.load(range(len(pairs)))
        references = read_references(Path(folder), pairs.ids) if objective.uses_reference else None
        self.learn_preferences(list(pairs), references, objective, max_length)

    def _add(self, groups: Any, references: Any) -> None:
        task = self.task
        task.groups += groups
        if references is not None:
            task.references = [*(task.references or []), *references]
            assert [r.group_id for r in task.references] == [g.group_id for g in task.groups]
        assert (references is not None) == task.objective.uses_reference
        names = [group.group_id for group in task.groups]
        assert len(names) == len(set(names)), "a pair was given twice"

    def train(self, training: Any, place: Any, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        for metrics in super().train(training, place, start, stop):
            yield Takes(STEP_S, {**metrics, "seconds": STEP_S, "mfu": 0.5})

    def learn_next(self, *arguments: Any) -> Takes:  # type: ignore[override]
        groups, references, training, place, step = arguments
        self._add(groups, references)
        (taken,) = self.train(training, place, step, step + 1)
        return Takes(STEP_S, taken.value)

    def _step(self, batch: Sequence[int], budget: int, rate: float, first: bool) -> dict[str, float]:
        samples = [self.task.sample(i) for i in batch]
        self.optimizer = mix(self.optimizer, self.task.objective, f"{rate:.12g}", *samples)
        self.masters = mix(self.masters, self.optimizer)
        self.weights = mix(self.masters, "rounded") if self.rounded else self.masters
        loss = seeded_number(self.weights) % 1000 / 1000
        gap = {"rollout_gap": 0.0} if first else {}
        tokens = sum(self.task.lengths[i] for i in batch)
        numbers = {"loss": loss, "accuracy": 0.5, "implicit_margin": loss, "grad_norm": 1.0}
        return {**numbers, **gap, "tokens": float(tokens), "flops": 1e9}

    # -- what it leaves ------------------------------------------------------------------------------------

    def save(self, directory: str) -> Takes:  # type: ignore[override]
        if self.rank == 0:
            write_weights(directory, self.weights)
            if self.lora:
                write_weights(Path(directory) / ADAPTER_FOLDER, self.weights)
        return Takes(1.0)

    def save_state(self, directory: str, moments: bool = True) -> None:
        Path(directory).mkdir(parents=True, exist_ok=True)
        state = f"{self.masters} {self.optimizer if moments else ''}"
        (Path(directory) / f"rank-{self.rank}").write_text(state)

    def load_state(self, directory: str) -> None:
        self.masters, self.optimizer = (Path(directory) / f"rank-{self.rank}").read_text().split(" ")

    # -- as its own reference ------------------------------------------------------------------------------

    def work(self, work: WorkBatch) -> Takes:  # type: ignore[override]
        assert self.scoring_budget > 0
        return number_answers(self.ray, work, lambda group: numbers(self.base, group))

    # -- weights for the engines ---------------------------------------------------------------------------

    def connect(self, backend: str, engines: int, tensor_parallel: int) -> list[dict[str, Any]]:
        return [{}] * engines

    def meet_engines(self) -> None:
        """Engines need nothing."""

    def describe_weights(self, first: bool) -> Takes:  # type: ignore[override]
        """In two buckets, as by CUDA IPC: the first half is no policy."""
        half = len(self.weights) // 2
        text = self.weights[:half] if first else self.weights[half:]
        return Takes(0.2, WeightBucket({"text": text}, 8, first, last=not first))

    def push_weights(self) -> None:
        """The bucket is on its way already."""

    def offload(self) -> None:
        """Nothing is on a device."""

    def reload(self) -> None:
        """Nothing comes back."""

    def peak_memory(self) -> int:
        return 1


class SimulatedRewardTrainer(SimulatedTrainer):
    """The ranks that train a run's own reward model."""

    collective = frozenset({"load", "train", "save", "evaluate"})

    def load(self, model: Any, spec: Any, address: Any, trainable_layers: int | None = None) -> Takes:  # type: ignore[override]
        self._join(address)
        self.lora, self.weights = False, mix(read_weights(model.path), "head")
        self.masters = self.weights
        return Takes(5.0)

    def learn_ranking(
        self, groups: Sequence[PreferenceGroup], objective: Any, max_length: int, held_out: Any = None
    ) -> None:
        task = Learnt(SimpleNamespace(uses_reference=False))
        self.set_task(task)
        task.groups = list(groups)

    def evaluate(self, budget: int) -> Iterator[dict[str, float]]:
        yield {}
        yield {"loss": 0.5, "accuracy": seeded_number(self.weights) % 100 / 100}
