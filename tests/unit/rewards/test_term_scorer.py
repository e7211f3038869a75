"""Terms in their own thread: each prompt's numbers once, and nothing paid for after a stop."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from tests.rounds import make_completion, make_prompt
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.rewards import TermScorer

PATIENCE_S = 20.0


class Gated:
    """A service that answers when the gate is open; the number is the sample's."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.reached, self.gate = threading.Event(), threading.Event()

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        self.asked += [prompt.prompt_id for prompt in prompts]
        self.reached.set()
        assert self.gate.wait(PATIENCE_S)
        return [float(completion.sample) for completion in completions]


def offer(terms: TermScorer, number: int) -> None:
    prompt = make_prompt(number)
    terms.offer(prompt, [make_completion(prompt, sample, 0) for sample in range(2)])


def test_each_prompt_has_its_own_numbers() -> None:
    service = Gated()
    service.gate.set()
    terms = TermScorer({"service": service})
    for number in range(5):
        offer(terms, number)
    found: dict[str, dict[str, list[float]]] = {}
    while terms.busy:
        found |= {name: columns for name, columns, *_ in terms.results()}
    assert found == {make_prompt(i).prompt_id: {"service": [0.0, 1.0]} for i in range(5)}
    terms.stop()


def test_a_stopped_thread_asks_for_nothing_more_and_ends() -> None:
    service = Gated()
    terms = TermScorer({"service": service})
    offer(terms, 0)
    assert service.reached.wait(PATIENCE_S)
    for number in (1, 2):
        offer(terms, number)  # these wait behind the first
    terms.stop()
    service.gate.set()
    assert terms._thread is not None
    terms._thread.join(PATIENCE_S)
    assert not terms._thread.is_alive()
    assert service.asked == [make_prompt(0).prompt_id]


def test_an_error_of_a_term_reaches_who_asks_for_results() -> None:
    class Broken:
        def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
            raise ValueError("the service is gone")

    terms = TermScorer({"service": Broken()})
    offer(terms, 0)
    with pytest.raises(ValueError, match="the service is gone"):
        while terms.busy:
            list(terms.results())
