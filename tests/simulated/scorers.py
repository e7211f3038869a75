"""Reference and reward replicas on a virtual clock: every number follows from the weights and the tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.simulated.engine import EPOCH
from tests.simulated.ray import SimulatedRay, Takes
from tests.simulated.weights import mix, read_weights, write_weights
from ultramed_rl.actors.work import WorkBatch, WorkResult
from ultramed_rl.config.cluster import ReplicaGroup
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.learning.seeds import seeded_number

TURN_S, TOKENS_PER_S = 0.01, 1000.0


def number_answers(
    ray: SimulatedRay,
    work: WorkBatch,
    score: Callable[[AnswerGroup], list[float]],
    turn_s: float = TURN_S,
    rate: float = TOKENS_PER_S,
) -> Takes:
    """A turn's numbers: some seconds for the turn, and its tokens over a rate."""
    assert not work.cancelled
    now, tokens = ray.time, sum(group.packed_tokens for _, group in work.requests)
    seconds = turn_s + tokens / rate
    done = [(key, score(group)) for key, group in work.requests]
    return Takes(seconds, WorkResult(done, [], EPOCH + now, EPOCH + now + seconds))


def numbers(weights: str, group: AnswerGroup) -> list[float]:
    """Between -2 and 2."""
    prompt = tuple(group.prompt)
    return [seeded_number(weights, prompt, tuple(answer)) % 40_001 / 10_000 - 2 for answer in group.answers]


class SimulatedScorer:
    """What both kinds of replicas do."""

    ray: SimulatedRay
    role = ""

    def __init__(
        self, rank: int, device: str, precision: str, batch_tokens: int, group: ReplicaGroup
    ) -> None:
        self.rank, self.batch_tokens, self.weights = rank, batch_tokens, ""
        self.ranks = group.replicas if group.in_lockstep else 1

    def load(self, path: str, trust_remote_code: bool = False) -> Takes:
        self.weights = read_weights(path)
        return Takes(2.0)

    def work(self, work: WorkBatch) -> Takes:
        return number_answers(self.ray, work, lambda group: numbers(self.weights, group))

    def offload(self) -> None:
        """Nothing is on a device."""

    def reload(self) -> None:
        """Nothing comes back."""

    def peak_memory(self) -> int:
        return 1


class SimulatedReward(SimulatedScorer):
    """`RewardWorker`'s methods."""

    role = "reward"


class SimulatedReference(SimulatedScorer):
    """`ReferenceWorker`'s methods."""

    role = "reference"

    def average(
        self, older: str, newer: str, decay: float, directory: str, trust_remote_code: bool = False
    ) -> Any:
        Path(directory).mkdir(exist_ok=True)
        write_weights(directory, mix(read_weights(older), read_weights(newer), decay))
        return Takes(1.0)
