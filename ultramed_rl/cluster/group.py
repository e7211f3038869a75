"""A role's actors, called together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from ultramed_rl.cluster.placement import Placement
from ultramed_rl.cluster.plan import Member


class WorkerGroup:
    """The actors of one role, in rank order."""

    def __init__(self, role: str, actors: Sequence[Any], *, takes_turns: bool) -> None:
        self.role, self.actors, self.takes_turns = role, list(actors), takes_turns

    @classmethod
    def launch(
        cls,
        worker: type,
        members: Sequence[Member],
        placement: Placement,
        arguments: Callable[[Member], tuple[Any, ...]],
        *,
        takes_turns: bool,
    ) -> WorkerGroup:
        """Create one actor for each member, on its slots."""
        remote = ray.remote(worker)
        actors = [remote.options(**placement.options(m)).remote(*arguments(m)) for m in members]
        return cls(members[0].role, actors, takes_turns=takes_turns)

    def __len__(self) -> int:
        return len(self.actors)

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on every actor at once and wait for all results."""
        return wait(self.start(method, *arguments))

    def first(self, method: str, *arguments: Any) -> Any:
        """Call a method on rank 0 alone."""
        return ray.get(getattr(self.actors[0], method).remote(*arguments))

    def start(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method on every actor at once; returns the references."""
        return [getattr(actor, method).remote(*arguments) for actor in self.actors]

    def stream(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> Iterator[tuple[int, Any]]:
        """Run a generator method on every actor; yields (rank, item) as items come, from all at once."""
        running = {
            getattr(actor, method).options(num_returns="streaming").remote(*args): rank
            for rank, (actor, args) in enumerate(zip(self.actors, arguments, strict=True))
        }
        while running:
            ready, _ = ray.wait(list(running), num_returns=1, fetch_local=False)
            for generator in ready:
                try:
                    reference = next(generator)
                except StopIteration:
                    del running[generator]
                    continue
                yield running[generator], ray.get(reference)

    @contextmanager
    def awake(self) -> Iterator[WorkerGroup]:
        """On the devices within, off them outside: the whole story of colocation."""
        if self.takes_turns:
            self.call("reload")
        try:
            yield self
        finally:
            if self.takes_turns:
                self.call("offload")

    def stop(self) -> None:
        """End the actors."""
        for actor in self.actors:
            ray.kill(actor)


def wait(pending: Sequence[Any]) -> list[Any]:
    """Results of calls that `WorkerGroup.start` began; the first failure is raised."""
    return ray.get(list(pending))
