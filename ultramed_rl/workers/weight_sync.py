"""The policy's weights into the engines: the driver starts both ends of the way, and waits for both.

    for each bucket:   ranks describe it --> ranks push it, and engines pull it

Whose call fails or does not end is lost. An engine that is lost is replaced, and gets all buckets in the next attempt; for
a rank that is, the policy starts again.
"""

from __future__ import annotations

import time
from typing import Any

from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.rollout import RolloutWorker
from ultramed_rl.actors.weight_sync import join_buckets
from ultramed_rl.cluster.group import WorkerGroup, wait_for_both


class WeightSync:
    """The way from a policy's ranks to all engines by one backend."""

    def __init__(
        self, policy: WorkerGroup, engines: WorkerGroup, backend: str, tensor_parallel: int = 1
    ) -> None:
        self.policy, self.engines = policy, engines
        self.backend, self.tensor_parallel = backend, tensor_parallel
        self._connected: list[Any] = []  # the actors between which there is a way

    def connect(self) -> None:
        """Make the way, if it is not one between these actors. Raises like `wait_for_both`."""
        actors = [*self.policy.actors, *self.engines.actors]
        if self._connected == actors:
            return
        told = self.policy.call(PolicyWorker.connect, self.backend, len(self.engines), self.tensor_parallel)[
            0
        ]
        both = zip(self.engines.actors, told, strict=True)
        pulled = [engine.init_weight_transfer.remote(info) for engine, info in both]
        wait_for_both(self.policy, self.policy.start(PolicyWorker.meet_engines), self.engines, pulled)
        self._connected = actors

    def send(self, version: int) -> dict[str, float]:
        """The policy's weights into every engine, as this version; bytes and seconds. Raises like `wait_for_both`."""
        self.connect()
        sent = {"bytes": 0.0, "seconds": 0.0, "seconds_describe": 0.0, "seconds_pull": 0.0}
        bucket = None
        while bucket is None or not bucket.last:
            started = time.perf_counter()
            bucket = join_buckets(self.policy.call(PolicyWorker.describe_weights, bucket is None))
            described = time.perf_counter()
            pulled = self.engines.start(RolloutWorker.pull_weights, bucket, version)
            wait_for_both(self.policy, self.policy.start(PolicyWorker.push_weights), self.engines, pulled)
            sent["bytes"] += bucket.bytes
            sent["seconds_describe"] += described - started
            sent["seconds_pull"] += time.perf_counter() - described
        sent["seconds"] = sent["seconds_describe"] + sent["seconds_pull"]
        return sent
