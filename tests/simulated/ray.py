"""Ray without processes: actors are objects of this process, and time is a number.

    handle.method.remote() --> the actor's queue --> method --> (its seconds later) --> Reference --> get(), wait()

An actor makes one call after the other, in the order in which they came. The clock stands still while the driver
works, and goes on while it waits: to the next thing that happens, or to the end of its patience. A driver that would
wait for ever is an AssertionError. What befalls a call is up to `fate`.
"""

from __future__ import annotations

import heapq
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError

_NODE = "5e" * 28  # the one there is
CALL_S = 0.01  # of a call that says nothing of its seconds
_living: dict[int, Actor] = {}  # by number, for handles that were pickled


@dataclass(frozen=True)
class Call:
    """A call that begins, or a generator's next item: whose, of which method, and how many began before it."""

    role: str
    rank: int
    method: str
    number: int
    arguments: tuple[Any, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Takes:
    """What a simulated method returns to say how long it took."""

    seconds: float
    value: Any = None


class Reference:
    """A result that is there, or will be."""

    def __init__(self) -> None:
        self.done, self.payload = False, b""
        self.error: Exception | None = None
        self.awaiting: list[Actor] = []  # whose next call has it for an argument

    def settle(self, value: Any = None, error: Exception | None = None) -> None:
        if self.done:
            return
        self.done, self.error = True, error
        self.payload = b"" if error is not None else pickle.dumps(value, protocol=5)
        for actor in self.awaiting:
            actor.ray.wake(actor)
        self.awaiting.clear()

    def read(self) -> Any:
        if self.error is not None:
            raise self.error
        return pickle.loads(self.payload)


class Stream(Reference):
    """A generator's results; `done` when the next of them is there, or its end."""

    def __init__(self) -> None:
        super().__init__()
        self.items: deque[Reference] = deque()
        self.ended = False

    def settle(self, value: Any = None, error: Exception | None = None) -> None:
        """The generator ends, by an error or not."""
        if self.ended:
            return
        if error is not None:
            self.put(None, error)
        self.ended = self.done = True

    def put(self, value: Any, error: Exception | None = None) -> None:
        item = Reference()
        item.settle(value, error)
        self.items.append(item)
        self.done = True

    def __next__(self) -> Reference:
        assert self.done, "the driver asks a stream that has nothing yet"
        if not self.items:
            raise StopIteration
        item = self.items.popleft()
        self.done = bool(self.items) or self.ended
        return item


@dataclass
class _Task:
    method: str
    packed: bytes
    waits_for: list[Reference]
    reference: Reference
    iterator: Iterator[Any] | None = None  # of a generator that has begun

    def arguments(self) -> tuple[Any, ...]:
        """As the actor gets them: results that were awaited in their places."""
        awaited = iter(self.waits_for)
        return tuple(
            next(awaited).read() if given is _AWAITED else given for given in pickle.loads(self.packed)
        )


class _Awaited:
    """Stands in a pickle for a result that isn't there yet."""

    def __reduce__(self) -> str:
        return "_AWAITED"


_AWAITED = _Awaited()


class Actor:
    """A simulated process."""

    def __init__(self, ray: SimulatedRay, number: int, worker: Any) -> None:
        self.ray, self.number, self.worker = ray, number, worker
        self.rank = int(worker.rank)
        self.alive, self.frozen = True, False
        self.queue: deque[_Task] = deque()
        self.running: _Task | None = None
        self.collectives = 0  # that it has begun

    @property
    def role(self) -> str:
        """The worker's, which an engine knows when it has started."""
        return str(self.worker.role)

    def die(self, error: str) -> None:
        """The process is gone, and with it all that was asked of it."""
        self.alive = False
        lost = [self.running, *self.queue] if self.running is not None else [*self.queue]
        self.running = None
        self.queue.clear()
        for task in lost:
            task.reference.settle(error=actor_error(error))

    @property
    def responds(self) -> bool:
        return self.alive and not self.frozen


class Handle:
    """What the driver, and other actors, hold of an actor."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("__") and name != "__ray_call__":
            raise AttributeError(name)
        return _Method(self._actor, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _handle_of, (self._actor.number,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and other._actor is self._actor

    def __hash__(self) -> int:
        return self._actor.number


def _handle_of(number: int) -> Handle:
    return Handle(_living[number])


@dataclass(frozen=True)
class _Method:
    actor: Actor
    name: str
    streaming: bool = False

    def options(self, num_returns: str) -> _Method:
        assert num_returns == "streaming", num_returns
        return _Method(self.actor, self.name, True)

    def remote(self, *arguments: Any) -> Reference:
        reference: Reference = Stream() if self.streaming else Reference()
        if self.name == "__ray_call__":  # where the process is
            if not self.actor.frozen:
                reference.settle((_NODE, 0))
            return reference
        waits_for = [given for given in arguments if isinstance(given, Reference)]
        places = [_AWAITED if isinstance(given, Reference) else given for given in arguments]
        task = _Task(self.name, pickle.dumps(places, protocol=5), waits_for, reference)
        self.actor.ray.submit(self.actor, task)
        return reference


class _Class:
    def __init__(self, ray: SimulatedRay, worker: type) -> None:
        self.ray, self.worker = ray, worker

    def options(self, **_: Any) -> _Class:
        return self

    def remote(self, *arguments: Any) -> Handle:
        return self.ray.spawn(self.worker(*arguments))


@dataclass
class _Meeting:
    """A collective call that waits until every rank has come to it."""

    arrived: list[tuple[Actor, _Task, Takes]] = field(default_factory=list)


class SimulatedRay:
    """The part of `ray` that cluster/ uses.

    Args:
        workers: the simulated class of each class of actors. An instance has `role` and `rank`; of methods named in
            `collective`, all `ranks` of a `meeting` begin the same one before any of them ends.
        fate: what befalls a call: "" nothing; "dies" before it, "dies late" after its work and before its result;
            "hangs"; "raises".
        refuse: the error with which workers refuse a request of this key, or "".
        timer: seconds of real time; the driver's own, between its calls, are then added to the clock.
    """

    def __init__(
        self,
        workers: Mapping[type, type],
        fate: Callable[[Call], str] = lambda call: "",
        refuse: Callable[[str], str] = lambda key: "",
        timer: Callable[[], float] | None = None,
    ) -> None:
        self.workers, self.fate, self.refuse, self.timer = workers, fate, refuse, timer
        self.time, self.driver_s, self.calls = 0.0, 0.0, 0
        self.begun: list[Call] | None = []  # None: nobody keeps them
        self.full = False  # no new actor finds a place
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers, self._meetings = count(), dict[Any, _Meeting]()
        self._left = 0.0 if timer is None else timer()

    # -- what cluster/ calls -------------------------------------------------------------------------------

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 64.0}}]

    def remote(self, worker: type) -> _Class:
        """A class of actors."""
        return _Class(self, self.workers[worker])

    def kill(self, handle: Handle) -> None:
        """End an actor."""
        handle._actor.die("killed by the driver")

    def get(self, references: Any, timeout: float | None = None) -> Any:
        """Results; the first error of any is raised as soon as it is there."""
        if isinstance(references, Reference):
            return self.get([references], timeout)[0]

        def over() -> bool:
            return any(r.error is not None for r in references) or all(r.done for r in references)

        if not self._wait_until(over, timeout, references):
            raise GetTimeoutError(f"not there after {timeout} s")
        for reference in references:
            if reference.error is not None:
                raise reference.error
        return [reference.read() for reference in references]

    def wait(
        self,
        references: Sequence[Reference],
        num_returns: int = 1,
        timeout: float | None = None,
        fetch_local: bool = True,
    ) -> tuple[list[Reference], list[Reference]]:
        """(those that are there, at most `num_returns`; the others)."""
        self._wait_until(lambda: sum(r.done for r in references) >= num_returns, timeout, references)
        ready = [r for r in references if r.done][:num_returns]
        chosen = {id(r) for r in ready}
        found = ready, [r for r in references if id(r) not in chosen]
        self._leave()
        return found

    # -- the clock -----------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        """The virtual clock, for whoever asks `time`."""
        self._enter()
        self._leave()
        return self.time

    def sleep(self, seconds: float) -> None:
        """Let time go on."""
        self._wait_until(lambda: False, seconds, ())

    def _wait_until(
        self, over: Callable[[], bool], timeout: float | None, waited_for: Sequence[Reference]
    ) -> bool:
        self._enter()
        deadline = None if timeout is None else self.time + timeout
        self._happen(self.time)
        while not over():
            if not self._coming or (deadline is not None and self._coming[0][0] > deadline):
                assert deadline is not None, f"the driver waits for ever for {len(waited_for)} results"
                self.time = max(self.time, deadline)
                break
            self._happen(self._coming[0][0])
        found = over()
        self._leave()
        return found

    def _happen(self, until: float) -> None:
        """All that happens up to a time."""
        while self._coming and self._coming[0][0] <= until:
            at, _, event = heapq.heappop(self._coming)
            self.time = max(self.time, at)
            event()

    def _enter(self) -> None:
        """Here the driver's own time ends."""
        if self.timer is not None:
            spent = self.timer() - self._left
            self.driver_s, self.time = self.driver_s + spent, self.time + spent

    def _leave(self) -> None:
        if self.timer is not None:
            self._left = self.timer()

    def _later(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (self.time + seconds, next(self._numbers), event))

    # -- actors --------------------------------------------------------------------------------------------

    def spawn(self, worker: Any) -> Handle:
        """A new actor."""
        worker.ray = self
        actor = Actor(self, next(self._numbers), worker)
        actor.frozen = self.full
        _living[actor.number] = actor
        return Handle(actor)

    def submit(self, actor: Actor, task: _Task) -> None:
        """A call, behind those that the actor was given before."""
        if not actor.alive:
            task.reference.settle(error=actor_error("it is dead"))
            return
        actor.queue.append(task)
        self.wake(actor)

    def wake(self, actor: Actor) -> None:
        """Let an actor look whether it can begin its next call."""
        self._later(0.0, lambda: self._begin_next(actor))

    def _fate(self, actor: Actor, method: str, arguments: tuple[Any, ...] = ()) -> str:
        call = Call(actor.role, actor.rank, method, self.calls, arguments)
        self.calls += 1
        if self.begun is not None:
            self.begun.append(call)
        return self.fate(call)

    def _begin_next(self, actor: Actor) -> None:
        if not actor.responds or actor.running is not None or not actor.queue:
            return
        open_ = [r for r in actor.queue[0].waits_for if not r.done]
        if open_:
            open_[0].awaiting.append(actor)
            return
        task = actor.running = actor.queue.popleft()
        failed = next((r.error for r in task.waits_for if r.error is not None), None)
        if failed is not None:
            self._end(actor, task, error=failed)
            return
        self._go_on(actor, task)

    def _go_on(self, actor: Actor, task: _Task) -> None:
        """A call begins, or a generator goes on to its next item."""
        arguments = () if task.iterator is not None else task.arguments()
        fate = self._fate(actor, task.method, arguments)
        if fate == "dies":
            actor.die("by its fate")
        elif fate == "hangs":
            actor.frozen = True
        elif fate == "raises":
            error = RuntimeError(f"{actor.role} {actor.rank}: broken in {task.method}")
            self._later(CALL_S, lambda: self._end(actor, task, error=task_error(error)))
        else:
            self._compute(actor, task, arguments, fate == "dies late")

    def _compute(self, actor: Actor, task: _Task, arguments: tuple[Any, ...], fatal: bool) -> None:
        try:
            took = self._advance(actor, task, arguments)
        except StopIteration:
            self._end(actor, task)
            return
        except Exception as error:
            wrapped = task_error(error)
            self._later(CALL_S, lambda: self._end(actor, task, error=wrapped))
            return
        if fatal:
            self._later(took.seconds, lambda: actor.die("by its fate"))
        if self._is_collective(actor, task):
            self._meet(actor, task, took)
        else:
            self._later(took.seconds, lambda: self._tell(actor, task, took.value))

    def _advance(self, actor: Actor, task: _Task, arguments: tuple[Any, ...]) -> Takes:
        if task.iterator is None:
            value = getattr(actor.worker, task.method)(*arguments)
            if not isinstance(task.reference, Stream):
                return value if isinstance(value, Takes) else Takes(CALL_S, value)
            task.iterator = iter(value)
        value = next(task.iterator)
        return value if isinstance(value, Takes) else Takes(CALL_S, value)

    def _is_collective(self, actor: Actor, task: _Task) -> bool:
        return task.method in getattr(actor.worker, "collective", ()) and actor.worker.ranks > 1

    def _meet(self, actor: Actor, task: _Task, took: Takes) -> None:
        actor.collectives += 1
        key = (actor.worker.meeting, actor.collectives)
        meeting = self._meetings.setdefault(key, _Meeting())
        meeting.arrived.append((actor, task, took))
        assert len({t.method for _, t, _ in meeting.arrived}) == 1, "ranks make different collective calls"
        if len(meeting.arrived) == actor.worker.ranks:
            for one, its, took in self._meetings.pop(key).arrived:
                self._later(took.seconds, lambda o=one, i=its, t=took: self._tell(o, i, t.value))

    def _tell(self, actor: Actor, task: _Task, value: Any) -> None:
        if actor.running is not task or not actor.responds:
            return
        if isinstance(task.reference, Stream):
            task.reference.put(value)
            self._go_on(actor, task)
        else:
            self._end(actor, task, value)

    def _end(self, actor: Actor, task: _Task, value: Any = None, error: Exception | None = None) -> None:
        if actor.running is not task or not actor.responds:
            return
        actor.running = None
        task.reference.settle(value, error)
        self._begin_next(actor)


def actor_error(words: str) -> RayActorError:
    """What Ray raises of a dead actor."""
    error = ActorDiedError()
    error.error_msg = words
    return error


def task_error(error: Exception) -> Exception:
    """What Ray raises of a method's own error."""
    wrapped = RayTaskError("work", f"{type(error).__name__}: {error}", error, "simulated", 1, "0.0.0.0")
    raised: Exception = wrapped.as_instanceof_cause()
    return raised
