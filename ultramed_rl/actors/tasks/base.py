"""The contract between a training rank and what it learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch

from ultramed_rl.learning.batching import MicroBatch


class Sums:
    """Named numbers that a rank adds up over a batch, and that are then added up over ranks.

    What the device computes is added up there: reading a number would wait for all that it still has to do.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.names = tuple(names)
        self._known = [0.0] * len(self.names)
        self._computed = torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def add(self, **amounts: float | torch.Tensor) -> None:
        """Add numbers, or scalars of the device, to some of them."""
        for name, amount in amounts.items():
            place = self.names.index(name)
            if isinstance(amount, torch.Tensor):
                self._computed[place] += amount.detach()
            else:
                self._known[place] += amount

    @property
    def values(self) -> torch.Tensor:
        """[names] float64, on the device."""
        known = torch.tensor(self._known, dtype=torch.float64)
        return self._computed + known.to(self._computed.device, non_blocking=True)


class Task(Protocol):
    """Samples by index and the loss of a batch."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens that each sample costs in a forward pass."""
        ...

    @property
    def sums(self) -> tuple[str, ...]:
        """What `losses` adds up; `loss`, `units`, `tokens` and `flops` (of the whole step) among them."""
        ...

    def sample_id(self, index: int) -> str:
        """The name that errors give a sample."""
        ...

    def losses(
        self, batch: Sequence[int], micro_batches: Sequence[MicroBatch], sums: Sums, first: bool
    ) -> Iterator[torch.Tensor]:
        """Each micro-batch's share of the whole batch's mean loss; adds to `sums` as it goes. Collective.

        Args:
            batch: indices of the whole batch, of all ranks.
            micro_batches: this rank's part of it.
            first: whether this is the first step since the task was set.
        """
        ...

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """A batch's metrics out of its sums over all ranks."""
        ...
