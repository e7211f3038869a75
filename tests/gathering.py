"""One round over simulated workers, in a folder that outlives it: the real gatherer, exchange, pools, scorers and store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.simulated import (
    EngineSpeed,
    SimulatedCrew,
    SimulatedEngine,
    SimulatedScorer,
    SimulatedTransport,
    Sizes,
)
from tests.tiny import tiny_run
from ultramed_rl.actors.rollout import SamplingRequest
from ultramed_rl.actors.turns import Turn
from ultramed_rl.cluster.exchange import Event
from ultramed_rl.config import RunConfig, parse_config
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.learning.pairs import select_pairs
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.online.gather import Gatherer
from ultramed_rl.online.intake import Rules
from ultramed_rl.online.training import RoundTraining
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs, ScoredCompletion
from ultramed_rl.store import RoundRecord
from ultramed_rl.tracking import Progress

N = 3
SPEED = EngineSpeed(fixed_s=0.01, sequence_s=0.001, prefill_rate=1e4, max_num_seqs=4)
PROMPTS = [
    Prompt(f"p{i}", ({"role": "user", "content": f"question {i}"},), tuple(range(1, 3 + i % 4)), "yes")
    for i in range(10)
]


def answer(request: SamplingRequest) -> list[Completion]:
    """Answers of 1 to 40 tokens that go by the request's seed alone, as an engine's do."""
    found = []
    for sample in range(request.n):
        draw = derive_seed(request.seed + sample)
        tokens = tuple((draw >> k) % 97 + 1 for k in range(1 + draw % 40))
        found.append(Completion(request.prompt.prompt_id, sample, str(draw), tokens, "stop", -1.0, 0))
    return found


def rate(key: str, group: AnswerGroup) -> list[float]:
    return [float(sum(answer)) for answer in group.answers]


def weigh(key: str, group: AnswerGroup) -> list[float]:
    return [-float(len(group.prompt) + sum(answer)) for answer in group.answers]


def never(key: str) -> str:
    return ""


@dataclass
class Round:
    """One round over simulated workers, in a folder that outlives it."""

    path: Path
    changes: dict[str, Any] = field(default_factory=dict)
    fate: Callable[[str, int, Turn], str] = lambda role, rank, turn: ""
    refuse: Callable[[str], str] = never
    extra: Callable[[Prompt], Completion | None] = lambda prompt: None
    on_events: Callable[[], None] = lambda: None
    asked: list[str] = field(default_factory=list)  # prompts whose requests were made
    crew: type[SimulatedCrew] = SimulatedCrew
    training: Callable[[RunConfig, Any], RoundTraining] | None = (
        None  # of a config and a crew, for the gatherer
    )
    hold: Callable[[Any, Callable[[], Any]], Any] = lambda crew, work: work()
    after: Callable[[RoundTraining, Any, Any], None] = lambda training, pairs, references: None

    def run(
        self,
    ) -> tuple[list[ScoredCompletion], list[PreferenceGroup], list[ReferenceLogprobs], dict[str, str]]:
        """What the round comes to, scored answers by their ids."""
        config = run_config(self.path, **self.changes)
        record = RoundRecord(self.path / "round", 0)
        record.phase("prompts", lambda: PROMPTS, kind=Prompt)
        crew = self.crew(config, Sizes(3, 2, 2), self._transport())
        training = None if self.training is None else self.training(config, crew)
        gatherer = Gatherer(config, crew, Progress(), record, self._rules(), training)
        gathered = self.hold(crew, lambda: gatherer.gather(PROMPTS))
        scored = sorted(gathered.scored, key=lambda s: s.completion.completion_id)
        kept = [p for p in PROMPTS if p.prompt_id not in gathered.set_aside]
        pairs = select(kept, scored)
        references = gatherer.weigh(pairs)
        assert references is not None and crew.exchange.pools["rollout"].unfinished == 0
        if training is not None:
            self.after(training, pairs, references)
        return scored, pairs, references, gathered.set_aside

    def _rules(self) -> Rules:
        def request(prompt: Prompt) -> SamplingRequest:
            self.asked.append(prompt.prompt_id)
            return SamplingRequest(prompt, N, 1.0, 1.0, 40, derive_seed(7, prompt.prompt_id))

        def pair(prompt: Prompt, scored: Sequence[ScoredCompletion]) -> PreferenceGroup | None:
            return next(iter(select([prompt], scored)), None)

        return Rules(request, self.extra, pair, version=0, reference_version=0)

    def _transport(self) -> SimulatedTransport:
        on_events = self.on_events

        class Transport(SimulatedTransport):
            def events(self, timeout: float, unread: Collection[str] = ()) -> list[Event]:
                on_events()
                return super().events(timeout, unread)

        return Transport(
            {
                "rollout": lambda rank: SimulatedEngine(SPEED, answer, self.refuse),
                "reward": lambda rank: SimulatedScorer(1000.0, 0.01, rate),
                "reference": lambda rank: SimulatedScorer(1000.0, 0.01, weigh),
            },
            fate=self.fate,
        )


def run_config(root: Path, **changes: Any) -> RunConfig:
    training = {"learning_rate": 1.0e-5, "batch_size": 1}
    reward = {"train": training, "micro_batch_tokens": 256}
    cluster = {"cluster__rollout__max_num_seqs": SPEED.max_num_seqs, "cluster__barriers": False}
    return parse_config(tiny_run(root, reward=reward, **{**cluster, **changes}))


def select(prompts: Sequence[Prompt], scored: Sequence[ScoredCompletion]) -> list[PreferenceGroup]:
    rule: dict[str, Any] = {"rejected": "worst", "min_margin": 0.1, "max_length_ratio": None}
    return select_pairs(prompts, scored, **rule, seed=7, round_index=0)[0]
