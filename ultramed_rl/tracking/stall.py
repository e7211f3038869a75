"""Who waits for whom in a streamed round, in sentences; and when nothing moves any more."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

# What a role takes, and what its workers are called.
_ITEMS = {"rollout": "completion", "reward": "completion", "reference": "pair", "policy": "pair"}
_WORKERS = {"rollout": "engine", "policy": "rank"}
_AFTER_S = 60.0
_LONG_S = 5.0  # that something queued beside idle workers is no mere moment


@dataclass(frozen=True)
class RoleState:
    """How a role stands at this moment.

    Args:
        workers: all it has; `starting` of them are not up yet, `busy` are at work.
        waiting: items queued for it that no worker has yet; `held` are with its workers.
        room: how many more items it would take before those who make them must wait.
        upstream: the roles whose items it takes.
        idle_s: seconds since it last finished something; since its start where it hasn't.
    """

    role: str
    workers: int
    starting: int
    busy: int
    waiting: int
    held: int
    room: int
    upstream: tuple[str, ...]
    idle_s: float

    @property
    def up(self) -> int:
        """Workers that could be at work."""
        return max(0, self.workers - self.starting)

    @property
    def idle(self) -> int:
        """Workers that are up and have nothing to do."""
        return max(0, self.up - self.busy)

    @property
    def under_way(self) -> int:
        """Items that it has yet to finish."""
        return self.waiting + self.held


def explain_wait(states: Sequence[RoleState]) -> list[str]:
    """Who waits for whom, and why, a sentence each; none where all have work, or none is left.

    Workers that are missing come first, then who is held back, then who has nothing to do.
    """
    by_role = {state.role: state for state in states}
    return [
        *(text for state in states for text in _missing(state)),
        *(text for state in states for text in _holding_back(state, by_role)),
        *(text for state in states for text in _not_taken(state)),
        *(text for state in states for text in _starved(state, by_role)),
    ]


class StallWatch:
    """Says that nothing finishes anywhere though there is work, again at doubling intervals, and when it goes on.

    Args:
        after_s: seconds without anything finished, while there was work, that make a stall.
        clock: seconds that only grow.
    """

    def __init__(self, after_s: float = _AFTER_S, clock: Callable[[], float] = time.monotonic) -> None:
        assert after_s > 0, after_s
        self.after_s, self._clock = after_s, clock
        self._next_s = after_s
        self._work_since: float | None = None
        self._stalled_since: float | None = None  # of a stall that was told

    def look(self, states: Sequence[RoleState]) -> str | None:
        """A sentence where there is something to tell now; to be asked every few seconds, also without work."""
        now = self._clock()
        last = now - min((state.idle_s for state in states), default=math.inf)
        # At a telling nothing had finished for `after_s`: what finishes then is that much later.
        if self._stalled_since is not None and last > self._stalled_since + 0.5 * self.after_s:
            stalled_s = last - self._stalled_since
            self._forget(last)
            return f"goes on again after {_seconds(stalled_s)}"
        if not any(state.under_way for state in states):
            self._forget(None)
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
        return f"nothing has finished for {_seconds(now - since)}: {'; '.join(_stalled(states))}"

    def restart(self) -> None:
        """Nothing was to finish until now, as while the policy trains."""
        self._forget(None)

    def _forget(self, work_since: float | None) -> None:
        self._stalled_since, self._next_s, self._work_since = None, self.after_s, work_since


def _missing(state: RoleState) -> Iterator[str]:
    noun = _WORKERS.get(state.role, "worker")
    if state.workers == 0 and state.under_way:
        yield f"{state.role} has no {noun} left for {_items(state, state.under_way)}"
    elif state.starting and state.starting >= state.workers:
        which = f"its {noun} is" if state.workers == 1 else f"all {state.workers} {noun}s are"
        yield f"{state.role}: {which} starting"
    elif state.starting:
        yield f"{state.role}: {state.starting} of {state.workers} {noun}s {_is(state.starting)} starting again"


def _holding_back(state: RoleState, by_role: dict[str, RoleState]) -> Iterator[str]:
    if state.room > 0 or not state.waiting:
        return
    limit = f"limit {state.waiting + max(0, state.room)}"
    waits = f"{_items(state, state.waiting)} {'waits' if state.waiting == 1 else 'wait'}"
    whom = f"for {_workers(state, state.up)}" if state.up else f"and no {_worker(state)} is up"
    for name in state.upstream:
        if name in by_role and by_role[name].under_way:
            yield f"{name} is held back by {state.role}: {waits} {whom} ({limit})"


def _not_taken(state: RoleState) -> Iterator[str]:
    """Queued beside idle workers for longer than a moment: nobody hands it out."""
    if state.waiting and state.idle and state.idle_s >= _LONG_S:
        queued = f"{_items(state, state.waiting)} {_is(state.waiting)} queued"
        idle = f"{state.idle} of {_workers(state, state.workers)} {_is(state.idle)} idle"
        yield f"{state.role}: {queued} while {idle}"


def _starved(state: RoleState, by_role: dict[str, RoleState]) -> Iterator[str]:
    if state.waiting or not state.idle:
        return
    for source in _sources(state, by_role):
        yield f"{state.role} waits for {source.role}: {_idle(state)}, nothing queued; {_work(source)}"


def _sources(state: RoleState, by_role: dict[str, RoleState]) -> list[RoleState]:
    """The nearest roles upstream that have work: one without any waits itself for those before it."""
    found: dict[str, RoleState] = {}
    seen, names = {state.role}, list(state.upstream)
    while names:
        name = names.pop(0)
        if name in seen or name not in by_role:
            continue
        seen.add(name)
        if by_role[name].under_way:
            found[name] = by_role[name]
        else:
            names.extend(by_role[name].upstream)
    return list(found.values())


def _stalled(states: Sequence[RoleState]) -> list[str]:
    """Why nothing moves; where nobody waits, what each has under way."""
    return explain_wait(states) or [_work(state) for state in states if state.under_way]


def _work(state: RoleState) -> str:
    """What a role has yet to finish, and when it last finished something."""
    last = f"last one {_seconds(state.idle_s)} ago"
    if not state.held:
        return f"{state.role} has {_items(state, state.waiting)} queued and none under way, {last}"
    return f"{state.role} has {_items(state, state.held)} under way, {last}"


def _idle(state: RoleState) -> str:
    return f"{state.idle} of {_workers(state, state.workers)} idle"


def _worker(state: RoleState) -> str:
    return _WORKERS.get(state.role, f"{state.role} worker")


def _workers(state: RoleState, count: int) -> str:
    return f"{count} {_worker(state)}{'' if count == 1 else 's'}"


def _items(state: RoleState, count: int) -> str:
    return f"{count} {_ITEMS.get(state.role, 'item')}{'' if count == 1 else 's'}"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if math.isfinite(seconds) else "long"
