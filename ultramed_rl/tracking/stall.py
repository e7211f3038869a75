"""Who waits for whom in a streamed round, by the depths of the queues; and when nothing moves any more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_AFTER_S = 60.0  # without anything finished, while there was work, that make a stall
_LONG_S = 5.0  # that something queued beside idle workers is no mere moment


@dataclass(frozen=True)
class RoleState:
    """How a role stands at this moment."""

    role: str
    workers: int  # all it has
    starting: int  # of them, not up yet
    busy: int  # at work
    waiting: int  # items queued for it that no worker has yet
    held: int  # items with its workers
    room: int  # how many more items it takes before those who make them must wait
    upstream: tuple[str, ...]  # the roles whose items it takes
    idle_s: float  # seconds since it last finished something; since its start where it hasn't

    @property
    def up(self) -> int:
        """Workers that could be at work."""
        return max(0, self.workers - self.starting)

    @property
    def under_way(self) -> int:
        """Items that it has yet to finish."""
        return self.waiting + self.held

    def __str__(self) -> str:
        """Its workers, what is queued for them of how much they take, and what they have."""
        starting = f", {self.starting} starting" if self.starting else ""
        return (
            f"{self.role} {self.busy} of {self.up} busy{starting}, {self.waiting} of {self.waiting + max(0, self.room)} "
            f"queued, {self.held} under way, last one {_seconds(self.idle_s)} ago"
        )


def explain_wait(states: Sequence[RoleState]) -> list[str]:
    """Who waits for whom, a line each with the depths of their queues; none where all have work, or none is left. Workers
    that are missing come first, then who is held back, then who has nothing to do."""
    by_role = {state.role: state for state in states}
    waits = [wait for state in states for wait in _waits(state, by_role)]
    return [line for _, line in sorted(waits, key=lambda wait: wait[0])]


def _waits(state: RoleState, by_role: dict[str, RoleState]) -> Iterator[tuple[int, str]]:
    """(rank, line) of all that a role waits for."""
    role, idle = state.role, state.busy < state.up
    if state.workers == 0 and state.under_way:
        yield 0, f"{role} has no worker left: {state}"
    elif state.starting:
        yield 0, f"{role} starts {'all its' if state.starting >= state.workers else 'some'} workers: {state}"
    if state.waiting and state.room <= 0:
        for name in state.upstream:
            if name in by_role and by_role[name].under_way:
                yield 1, f"{name} is held back by {role}: {state}"
    # Queued beside idle workers for longer than a moment: nobody hands it out.
    if state.waiting and idle and state.idle_s >= _LONG_S:
        yield 2, f"{role} has idle workers beside its queue: {state}"
    if idle and not state.waiting:
        # It waits for the nearest roles upstream that have work: one without any waits itself for those before it.
        seen, names = {role}, list(state.upstream)
        while names:
            name = names.pop(0)
            if name in seen or name not in by_role:
                continue
            seen.add(name)
            if by_role[name].under_way:
                yield 3, f"{role} waits for {name}: {state}; {by_role[name]}"
            else:
                names.extend(by_role[name].upstream)


class StallWatch:
    """Says that nothing finishes anywhere though there is work, again at doubling intervals, and when it goes on. `clock`:
    seconds that only grow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._next_s = clock, _AFTER_S
        self._work_since: float | None = None
        self._stalled_since: float | None = None  # of a stall that was told

    def look(self, states: Sequence[RoleState]) -> str | None:
        """A line where there is something to tell now: a stall with the depths of all queues, or its end; to be asked every few
        seconds, also without work."""
        now = self._clock()
        last = now - min((state.idle_s for state in states), default=math.inf)
        # At a telling nothing had finished for that long: what finishes then is that much later.
        if self._stalled_since is not None and last > self._stalled_since + 0.5 * _AFTER_S:
            stalled_s = last - self._stalled_since
            self.restart(last)
            return f"goes on again after {_seconds(stalled_s)}"
        if not any(state.under_way for state in states):
            self.restart()
            return None
        if self._work_since is None:
            self._work_since = now
        since = max(last, self._work_since)
        if now - since < self._next_s:
            return None
        if self._stalled_since is None:
            self._stalled_since = since
        while self._next_s <= now - since:
            self._next_s *= 2
        return f"nothing has finished for {_seconds(now - since)}: {'; '.join(map(str, states))}"

    def restart(self, work_since: float | None = None) -> None:
        """Nothing was to finish until now, as while the policy trains; or until then."""
        self._stalled_since, self._next_s, self._work_since = None, _AFTER_S, work_since


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if math.isfinite(seconds) else "long"
