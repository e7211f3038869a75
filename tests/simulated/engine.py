"""A rollout engine on a virtual clock, with continuous batching."""

from __future__ import annotations

import heapq
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.simulated.ray import SimulatedRay, Takes
from tests.simulated.weights import read_weights
from ultramed_rl.actors.weight_sync import WeightBucket
from ultramed_rl.actors.work import WorkBatch, WorkResult
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Completion, OptionLogprobs, OptionRequest, SamplingRequest
from ultramed_rl.token_ids import TokenIds

EPOCH = time.time()  # where virtual clocks begin, for what is shown beside real times
_END = 2  # the tiny tokenizer's end of turn


@dataclass(frozen=True)
class EngineSpeed:
    """Continuous batching: a step of `active` sequences takes `fixed_s + active * sequence_s` seconds, and a prompt
    takes its tokens over `prefill_rate` before its first answer's first step."""

    fixed_s: float
    sequence_s: float
    prefill_rate: float
    max_num_seqs: int

    def step_s(self, active: int) -> float:
        return self.fixed_s + active * self.sequence_s


@dataclass
class _UnderWay:
    request: SamplingRequest
    completions: list[Completion]
    left: int


class SimulatedEngine:
    """`RolloutWorker`'s methods. Answers in the order in which requests come, as many side by side as there are
    sequences: a turn ends when its seconds are over, or when nothing is left to do. With the weights of a folder `judge...`
    it is a judge's engine."""

    role = "rollout"
    speed = EngineSpeed(fixed_s=0.01, sequence_s=0.001, prefill_rate=1e4, max_num_seqs=4)
    ray: SimulatedRay

    def __init__(self, rank: int) -> None:
        self.rank, self.policy_version, self.weights, self.incoming = rank, -1, "", ""
        self._steps = 0  # of this engine, ever: an answer of L tokens ends L steps after it began
        self._active: list[tuple[int, str]] = []  # a heap of (the step at which an answer ends, its prompt)
        self._waiting: deque[tuple[str, int]] = deque()  # prompt, sample
        self._under_way: dict[str, _UnderWay] = {}

    def start(self, arguments: Any, stop_token: int | None, version: int) -> Takes:
        self.weights, self.policy_version = read_weights(arguments.adapter or arguments.model), version
        self.sleep_level = arguments.sleep_level
        if Path(arguments.model).name.startswith("judge"):
            self.role = "judge_engine"
        return Takes(5.0)

    # -- answers -------------------------------------------------------------------------------------------

    def answer(self, request: SamplingRequest) -> list[Completion]:
        """What these weights answer: of any length, the same for the same seed."""
        name = request.prompt.prompt_id
        if name.startswith("judge:"):
            said = self.judge(request.prompt.messages[-1]["content"])
            tokens = TokenIds(range(3, 3 + min(len(said), request.max_new_tokens)))
            return [Completion(name, 0, said, tokens, "stop", 0.0, self.policy_version)]
        found = []
        for sample in range(request.n):
            draw = seeded_number(self.weights, request.seed + sample, request.prompt.prompt_id)
            length = 1 + draw % request.max_new_tokens
            tokens = [3 + (draw >> (3 * k)) % 251 for k in range(length)]
            ends = length < request.max_new_tokens
            if ends:
                tokens[-1] = _END
            text = " ".join(map(str, tokens[:-1] if ends else tokens))
            reason, logprob = "stop" if ends else "length", -0.5 * length
            found.append(
                Completion(name, sample, text, TokenIds(tokens), reason, logprob, self.policy_version)
            )
        return found

    def judge(self, request: str) -> str:
        """What these weights say as a judge: a grade from 1 to 10; of `pair|question|a|b` who is better, or now and then
        whoever stands first; of `rubric|question|answer|criteria` which are met."""
        if request.startswith("rubric|"):
            _, question, answer, criteria = request.split("|")
            named = [line.split(": ", 1) for line in criteria.splitlines()]
            met = [(name, seeded_number(self.weights, question, answer, text) % 2) for name, text in named]
            return "\n".join(f"{name}: {'met' if is_met else 'not met'}" for name, is_met in met)
        if not request.startswith("pair|"):
            return f"Fine.\nGrade: {1 + seeded_number(self.weights, request) % 10}"
        _, question, *answers = request.split("|")
        a, b = (seeded_number(self.weights, question, answer) % 7 for answer in answers)
        biased = seeded_number(self.weights, *sorted(answers)) % 4 == 0
        return f"Verdict: {'A' if biased or a > b else 'B' if b > a else 'tie'}"

    def score_options(self, request: OptionRequest) -> OptionLogprobs:
        """How likely these weights find each option."""
        draws = (seeded_number(self.weights, request.question_id, *option) for option in request.options)
        return OptionLogprobs(
            request.question_id, tuple(-(draw % 1000) / 100 for draw in draws), self.policy_version
        )

    def work(self, work: WorkBatch) -> Takes:
        assert self.policy_version >= 0, "asked in the middle of a weight update"
        now = self.ray.time
        report = WorkResult()
        for key in work.cancelled:
            self._cancel(key)
        for key, request in work.requests:
            if error := self.ray.refuse(key):
                report.failed.append((key, error))
            elif isinstance(request, OptionRequest):
                report.done.append((key, self.score_options(request)))
            else:
                self._begin(key, request)
        ended = self._step(now, now + work.seconds, report.done)
        return Takes(ended - now, WorkResult(report.done, report.failed, EPOCH + now, EPOCH + ended))

    def _begin(self, key: str, request: SamplingRequest) -> None:
        assert key not in self._under_way, f"{key} was given twice"
        completions = self.answer(request)
        self._under_way[key] = _UnderWay(request, completions, len(completions))
        self._waiting.extend((key, sample) for sample in range(len(completions)))

    def _cancel(self, key: str) -> None:
        if self._under_way.pop(key, None) is not None:
            self._waiting = deque(item for item in self._waiting if item[0] != key)
            self._active = [item for item in self._active if item[1] != key]
            heapq.heapify(self._active)

    def _step(self, now: float, until: float, done: list[tuple[str, Any]]) -> float:
        active, under_way = self._active, self._under_way
        while active or self._waiting:
            now += self._admit()
            step_s = self.speed.step_s(len(active))
            steps = active[0][0] - self._steps
            if now + steps * step_s >= until:  # looked at after each step
                steps = min(steps, max(1, -int((now - until) // step_s)))
            self._steps += steps
            now += steps * step_s
            while active and active[0][0] <= self._steps:
                key = heapq.heappop(active)[1]
                mine = under_way[key]
                mine.left -= 1
                if mine.left == 0:
                    del under_way[key]
                    done.append((key, mine.completions))
            if now >= until:
                break
        return now

    def _admit(self) -> float:
        """Fill the batch; the seconds that new prompts take."""
        seconds, waiting = 0.0, self._waiting
        while waiting and len(self._active) < self.speed.max_num_seqs:
            key, sample = waiting.popleft()
            mine = self._under_way[key]
            if sample == 0:
                seconds += len(mine.request.prompt.token_ids) / self.speed.prefill_rate
            length = max(1, len(mine.completions[sample].token_ids))
            heapq.heappush(self._active, (self._steps + length, key))
        return seconds

    # -- weights -------------------------------------------------------------------------------------------

    def init_weight_transfer(self, init_info: Any) -> None:
        """Where the policy connects."""

    def pull_weights(self, bucket: WeightBucket, version: int) -> None:
        if bucket.first:
            self.policy_version, self.incoming = -1, ""
            for key in list(self._under_way):
                self._cancel(key)
        self.incoming += bucket.info["text"]
        if bucket.last:
            self.weights, self.policy_version = self.incoming, version

    def version(self) -> int:
        return self.policy_version

    def offload(self) -> None:
        if self.sleep_level == 2:
            self.weights, self.policy_version = "", -1

    def reload(self) -> None:
        """Nothing comes back."""

    def reload_weights(self) -> None:
        """Nothing comes back."""

    def peak_memory(self) -> int:
        return 1
