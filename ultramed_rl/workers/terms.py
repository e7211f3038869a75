"""Terms of the reward in a thread of their own: services take their time, and engines need not wait for them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from ultramed_rl.records import Completion, Prompt
from ultramed_rl.rewards import Term, score_terms

_TOGETHER = 64  # prompts that a term is given at once at most; what concurrency it has is its own business
_WAITING = 256


class TermScorer:
    """Every term over each prompt's answers, in the order of offers. One thread, which starts with the first."""

    def __init__(self, terms: Mapping[str, Term]) -> None:
        self.terms = terms
        self._offers: queue.SimpleQueue[tuple[Prompt, Sequence[Completion]] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[str, dict[str, list[float]]] | BaseException] = (
            queue.SimpleQueue()
        )
        self._open = 0
        self._thread: threading.Thread | None = None

    @property
    def has_capacity(self) -> bool:
        """Whether more may be offered."""
        return self._open < _WAITING

    @property
    def busy(self) -> bool:
        """Whether results are to come."""
        return self._open > 0

    def offer(self, prompt: Prompt, completions: Sequence[Completion]) -> None:
        """Answers to be scored by all terms; without terms nothing comes of it."""
        if not self.terms:
            return
        self._open += 1
        self._offers.put((prompt, completions))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="terms", daemon=True)
            self._thread.start()

    def results(self) -> Iterator[tuple[str, dict[str, list[float]]]]:
        """Each finished prompt's numbers by term. Raises what a term raised."""
        while not self._results.empty():
            found = self._results.get()
            if isinstance(found, BaseException):
                raise found
            self._open -= 1
            yield found

    def stop(self) -> None:
        """Score nothing more but what is at the terms just now; nothing can be offered after that."""
        with suppress(queue.Empty):
            while True:
                self._offers.get_nowait()
        self._offers.put(None)

    def _work(self) -> None:
        try:
            while items := self._gather():
                self._score(items)
        except BaseException as error:
            self._results.put(error)

    def _gather(self) -> list[tuple[Prompt, Sequence[Completion]]]:
        """What waits, at least one; none once it was stopped."""
        found: list[tuple[Prompt, Sequence[Completion]]] = []
        while not found or (len(found) < _TOGETHER and not self._offers.empty()):
            item = self._offers.get()
            if item is None:
                return []
            found.append(item)
        return found

    def _score(self, items: Sequence[tuple[Prompt, Sequence[Completion]]]) -> None:
        answers = [completion for _, completions in items for completion in completions]
        columns = score_terms(self.terms, [prompt for prompt, _ in items], answers)
        start = 0
        for prompt, completions in items:
            stop = start + len(completions)
            self._results.put((prompt.prompt_id, {n: values[start:stop] for n, values in columns.items()}))
            start = stop
