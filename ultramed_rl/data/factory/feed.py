"""Who answers a stage's chats, and the requests that it takes while its replies make new ones."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from ultramed_rl.records import ChatReply, ChatRequest

_PATIENCE_S = 60.0


class Generator(Protocol):
    """Answers chats: an HTTP API, or our own engines."""

    def replies(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """One reply for every request, in the order in which they are done; none lost, none doubled.

        Requests are taken as they can be answered, so that a stream of millions needs no more memory than what
        is in flight. A request that cannot be answered gives a reply with its error. When a budget is used up
        no further request is taken, and the iterator ends.
        """
        ...


class Feed:
    """An iterator over requests, to be taken from any thread but one that replies have to pass through (an event
    loop's); its maker adds to it as replies come.

    When nothing is ready, a generator that asks for more in its maker's own thread would wait for itself, since no
    reply can be heard before it gives one: there the feed ends, so that it answers what it has, and what comes
    later is for the feed's `successor`. In another thread it waits for more: until `close`, or until no reply was
    heard for 60 s, since the generator may want more at once than there can be.
    """

    def __init__(self, ready: deque[ChatRequest] | None = None) -> None:
        self._ready: deque[ChatRequest] = deque() if ready is None else ready
        self._changed = threading.Condition()
        self._maker = threading.get_ident()
        self.ended = False

    def put(self, request: ChatRequest, *, first: bool = False) -> None:
        """One more request; `first` puts it before those that wait."""
        with self._changed:
            if first:
                self._ready.appendleft(request)
            else:
                self._ready.append(request)
            self._changed.notify()

    def heard(self) -> None:
        """A reply came: the generator is alive."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End it, for all who wait too."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def successor(self) -> Feed:
        """A feed of the requests that were not taken. This one must have ended."""
        assert self.ended
        return Feed(self._ready)

    def __len__(self) -> int:
        return len(self._ready)

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> ChatRequest:
        with self._changed:
            while not self.ended and not self._ready:
                own = threading.get_ident() == self._maker
                if own or not self._changed.wait(_PATIENCE_S):
                    self.ended = True
            if self.ended:
                self._changed.notify_all()
                raise StopIteration
            return self._ready.popleft()
