"""What the driver asks of every worker, and what they give back. Loads no torch."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class Worker:
    """What every class of actors has; on a `device`, "cuda" or "cpu", from when it has loaded."""

    device = "cpu"

    def offload(self) -> None:
        """Leave the device to other roles."""
        raise NotImplementedError

    def reload(self) -> None:
        """Come back to the device."""
        raise NotImplementedError

    def peak_memory(self) -> int:
        """Bytes: the GPU's peak allocation, or this process's resident peak on CPU."""
        if self.device == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@dataclass(frozen=True)
class WorkBatch:
    """A turn of a stateless worker: new requests by key, keys that need no answer any more, and how long the worker may go
    on before it reports."""

    requests: Sequence[tuple[str, Any]] = ()
    cancelled: Sequence[str] = ()
    seconds: float = 1.0


@dataclass(frozen=True)
class WorkResult:
    """What became of requests, of this turn's or of earlier ones.

    `failed`: keys with the error of that one request; a worker that cannot go on raises instead. `started` and
    `ended` are unix seconds on the worker's clock, without waiting for the turn.
    """

    done: list[tuple[str, Any]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    started: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True)
class TrainingPlace:
    """Where in the run a training stands: in round `index` of `rounds` that share a schedule (one alone is
    0 of 1), cut to `max_steps` if there are more.

    `most`: steps may be taken before all samples are there, of which there will be at most so many. Batches are then
    in the samples' order, and rates those of a training on so many.
    """

    index: int
    rounds: int
    seed: int
    max_steps: int | None = None
    most: int | None = None
