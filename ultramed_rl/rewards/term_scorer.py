"""Every term of a run over the answers of prompts: at once, or prompt by prompt in a thread."""

from __future__ import annotations

import queue
import threading
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from ultramed_rl.records import Completion, Prompt
from ultramed_rl.rewards.term import Scores, Term

Columns = dict[str, list[float]]  # each scorer's numbers of a prompt's answers
_Result = tuple[str, Columns, list[dict[str, float]], str]
_TOGETHER = 64  # prompts that a term is given at once at most; what concurrency it has is its own business
_WAITING = 256


def score_terms(
    terms: Mapping[str, Term], prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> dict[str, Scores]:
    """What each term says, by its name."""
    scores, answers = {}, [completion.without_thought() for completion in completions]
    for name, term in terms.items():
        reads = getattr(getattr(term, "config", None), "reads", "all")
        said = term.score(prompts, answers if reads == "answer" else completions)
        scores[name] = said if isinstance(said, Scores) else Scores(said, [{} for _ in said])
        count = len(scores[name].values)
        assert count == len(completions), f"{name}: {count} numbers, {len(completions)} answers"
    return scores


class TermScorer:
    """Every term over each prompt's answers, in the order of offers, in a thread of its own, which starts with the first:
    services take their time, and engines need not wait for them."""

    def __init__(self, terms: Mapping[str, Term]) -> None:
        self.terms = terms
        self._offers: queue.SimpleQueue[tuple[Prompt, Sequence[Completion]] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[_Result | BaseException] = queue.SimpleQueue()
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

    def results(self) -> Iterator[_Result]:
        """Each finished prompt's numbers by term, what these were made of, and why it is to be set aside. Raises what a term
        raised."""
        while not self._results.empty():
            result = self._results.get()
            if isinstance(result, BaseException):
                raise result
            self._open -= 1
            yield result

    def stop(self) -> None:
        """Score nothing more but what is at the terms just now; nothing can be offered after that."""
        with suppress(queue.Empty):
            while True:
                self._offers.get_nowait()
        self._offers.put(None)

    def _work(self) -> None:
        """Takes what waits, at least one prompt and at most `_TOGETHER`; it waits for an offer, and `stop` ends it."""
        try:
            while (offer := self._offers.get()) is not None:
                offers = [offer]
                while len(offers) < _TOGETHER and not self._offers.empty():
                    if (offer := self._offers.get()) is None:
                        return
                    offers.append(offer)
                self._score(offers)
        except BaseException as error:
            self._results.put(error)

    def _score(self, offers: Sequence[tuple[Prompt, Sequence[Completion]]]) -> None:
        answers = [completion for _, completions in offers for completion in completions]
        said = score_terms(self.terms, [prompt for prompt, _ in offers], answers)
        start = 0
        for prompt, completions in offers:
            own = slice(start, start + len(completions))
            columns = {name: scores.values[own] for name, scores in said.items()}
            parts = zip(*(scores.details[own] for scores in said.values()), strict=True)
            details = [dict(ChainMap(*part)) for part in parts]
            errors = [error for scores in said.values() if (error := scores.errors.get(prompt.prompt_id))]
            self._results.put((prompt.prompt_id, columns, details, "; ".join(errors)))
            start = own.stop
