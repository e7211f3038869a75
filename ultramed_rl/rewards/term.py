"""What a scorer of the loop is, many numbers per completion into one, and every term of a run over the answers of prompts: at once, or
prompt by prompt in a thread.

What isn't finite becomes NaN: selection sets it aside.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import mul
from statistics import fmean, pstdev
from typing import Protocol, Self

from ultramed_rl.config.rewards import Ensemble
from ultramed_rl.records import Completion, Prompt

Columns = dict[str, list[float]]  # each scorer's numbers of a prompt's answers
_Result = tuple[str, Columns, list[dict[str, float]], str]
_TOGETHER = 64  # prompts that a term is given at once at most; what concurrency it has is its own business
_WAITING = 256


@dataclass
class Scores:
    """What a term says of completions, in their order.

    Attributes:
        values: a number of each; NaN where there is none to be had.
        details: of each, numbers by name that the term's own is made of; they are kept beside the reward.
        errors: by prompt id, why its answers have no numbers, so that the prompt is set aside.
    """

    values: list[float]
    details: list[dict[str, float]]
    errors: dict[str, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, count: int) -> Self:
        """Of so many completions nothing is said yet."""
        return cls([math.nan] * count, [{} for _ in range(count)])


class Term(Protocol):
    """Gives each completion a number, higher is better."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float] | Scores:
        """One number for each completion, in their order; NaN where there is none to be had.

        Completions name their prompt by `prompt_id`.
        """


def with_prompts(
    prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> list[tuple[Prompt, Completion]]:
    """Each completion with its prompt, in the order of the completions."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    missing = sorted({c.prompt_id for c in completions} - by_id.keys())
    assert not missing, f"completions of unknown prompts: {missing[:5]}"
    return [(by_id[completion.prompt_id], completion) for completion in completions]


def weighted_sum(weights: Sequence[float], values: Sequence[Sequence[float]]) -> list[float]:
    """sum_t weights[t] * values[t][i] for each completion i; NaN where any of its values isn't finite."""
    assert len(weights) == len(values), f"{len(weights)} weights of {len(values)} terms"
    return _by_completion(values, lambda column: math.fsum(map(mul, weights, column)))


def combine_members(config: Ensemble, values: Sequence[Sequence[float]]) -> list[float]:
    """An ensemble's reward of each completion from its members' rewards values[member][completion]."""
    assert len(values) == len(config.paths), f"{len(values)} members, {len(config.paths)} paths"
    if config.combine == "min":
        return _by_completion(values, min)
    penalty = config.penalty or 0.0
    return _by_completion(values, lambda rewards: fmean(rewards) - (penalty and penalty * pstdev(rewards)))


def _by_completion(
    values: Sequence[Sequence[float]], combine: Callable[[Sequence[float]], float]
) -> list[float]:
    columns = list(zip(*values, strict=True))
    return [combine(column) if all(map(math.isfinite, column)) else math.nan for column in columns]


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
