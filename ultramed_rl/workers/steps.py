"""A round's optimizer steps on their way through the policy's ranks."""

from __future__ import annotations

from collections.abc import Iterator

from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.work import RoundTraining
from ultramed_rl.cluster.group import Generators, WorkerGroup, are_done, ranks_held

Metrics = dict[str, float]


class RoundSteps:
    """All steps of a round from `work.start` on. Every rank reads what its micro-batches hold; when all have, they take one step
    after the other by themselves, and wait for nobody else.

    Each step's metrics come once, by `ready` or by `rest`. Both raise RanksLost, and what a rank says that cannot learn.
    """

    def __init__(self, policy: WorkerGroup, work: RoundTraining) -> None:
        self._policy, self._steps = policy, (work.training, work.place, work.start)
        self._reading = policy.start(PolicyWorker.learn_round, work)
        self._generators: Generators | None = None

    def ready(self) -> list[Metrics]:
        """Of the steps that are done; waits for none."""
        with ranks_held(self._policy):
            if self._generators is None and not are_done(self._reading):
                return []
            return [metrics for rank, metrics in self._begun().ready() if rank == 0]

    def rest(self) -> Iterator[Metrics]:
        """Of all that are left, as they are done."""
        for rank, metrics in self._policy.follow(self._begun()):
            if rank == 0:
                yield metrics

    def _begun(self) -> Generators:
        if self._generators is None:
            # Not before all have read: one that cannot learn its pairs would step on with those of the round before.
            self._policy.wait(self._reading)
            self._generators = self._policy.generate(PolicyWorker.train, [self._steps] * len(self._policy))
        return self._generators
