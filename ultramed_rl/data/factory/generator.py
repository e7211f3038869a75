"""Who answers a stage's chats: an HTTP API or our own engines, behind one protocol."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from ultramed_rl.records import ChatReply, ChatRequest


class Generator(Protocol):
    """Answers chats."""

    def replies(self, requests: Iterable[ChatRequest]) -> Iterator[ChatReply]:
        """One reply for every request, in the order in which they are done; none lost, none doubled.

        Requests are taken as they can be answered, so that a stream of millions needs no more memory than what
        is in flight. A request that cannot be answered gives a reply with its error. When a budget is used up
        no further request is taken, and the iterator ends.
        """
        ...
