"""One thread around a model: whoever waits for it is served together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Number = TypeVar("Number")


class Waiting(Generic[Item, Number]):
    """Gathers the requests that came while the last call ran, and makes one call of them.

    Start it before the first request. A request whose future is cancelled before its turn isn't computed.
    """

    def __init__(self, call: Callable[[list[Item]], Sequence[Number]], most: int) -> None:
        """`call` gives a number per item; a call takes on requests until it has `most` items or more."""
        self.call, self.most = call, most
        self._queue: queue.SimpleQueue[tuple[Sequence[Item], Future[list[Number]]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._serve, name="reward model", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread after all that was submitted; come back earlier where that takes longer than so long."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def submit(self, items: Sequence[Item]) -> Future[list[Number]]:
        """The numbers of these items, in their order, when the model gets to them."""
        result: Future[list[Number]] = Future()
        self._queue.put((items, result))
        return result

    def _serve(self) -> None:
        while (first := self._queue.get()) is not None:
            requests = [first]
            ending = False
            while sum(len(items) for items, _ in requests) < self.most and not self._queue.empty():
                request = self._queue.get()
                if request is None:
                    ending = True
                    break
                requests.append(request)
            self._answer(
                [(items, result) for items, result in requests if result.set_running_or_notify_cancel()]
            )
            if ending:
                return

    def _answer(self, requests: Sequence[tuple[Sequence[Item], Future[list[Number]]]]) -> None:
        together = [item for items, _ in requests for item in items]
        try:
            numbers = list(self.call(together)) if together else []
            assert len(numbers) == len(together), f"{len(numbers)} numbers for {len(together)} items"
        except Exception as error:  # whoever asked is told; the next call may go well
            for _, result in requests:
                result.set_exception(error)
            return
        start = 0
        for items, result in requests:
            result.set_result(numbers[start : start + len(items)])
            start += len(items)
