"""One round's training: on all pairs at once, alone or beside the next round's generation (`run.overlap`); or on each batch
as soon as it is there (`training.overlap_training`).

Early, batches follow the order of the round's prompts, whoever answered first: a pair waits for those of the prompts
before it. So what is learnt does not depend on who was faster, and a run that was killed learns the same again.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.cluster.group import are_done
from ultramed_rl.config import RunConfig
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.online.watcher import RunWatcher
from ultramed_rl.records import PreferenceGroup, Prompt, ReferenceLogprobs
from ultramed_rl.store import RoundRecord
from ultramed_rl.store.shards import RoundPairs
from ultramed_rl.tracking.timeline import Span
from ultramed_rl.workers.online import OnlineWorkers
from ultramed_rl.workers.policy import RoundSteps

Metrics = dict[str, float]
LearnablePair = tuple[PreferenceGroup, ReferenceLogprobs | None]
_AHEAD = 2  # steps that the policy is given at once, so that it never waits for the driver


class RoundTraining:
    """The training of one round.

    Args:
        log: told of each step's metrics, with the step's place in the round.
        discard: drops what was logged of the round, when its training begins anew.
    """

    def __init__(
        self,
        config: RunConfig,
        workers: OnlineWorkers,
        watcher: RunWatcher,
        record: RoundRecord,
        prompts: Sequence[Prompt],
        log: Callable[[int, Metrics], None],
        discard: Callable[[], None],
    ) -> None:
        self.config, self.workers, self.watcher = config, workers, watcher
        self.folder, index = record.path, record.index
        self.prompts, self.log, self.discard = prompts, log, discard
        whole_run = config.training.schedule_scope == "run"
        self.place = TrainingPlace(
            index=index if whole_run else 0,
            rounds=config.run.rounds if whole_run else 1,
            seed=derive_seed(config.run.seed, "batches", index),
            most=config.prompts.per_round if config.training.overlap_training else None,
        )
        self._begun_as = -1  # the restart of the policy that these steps were taken with
        self._reset()

    def _reset(self) -> None:
        self.steps: list[Metrics] = []
        # By prompt, where those before it are not known yet.
        self._accepted: dict[str, LearnablePair | None] = {}
        self._reached = 0  # prompts that are known without a gap
        self._ready: list[LearnablePair] = []  # of these, and not sent yet
        self._sent: list[str] = []  # groups
        self._pending: deque[list[Any]] = deque()
        self._going: RoundSteps | None = None  # those that all pairs were there for
        self._since = time.time()

    # -- while pairs come ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the first prompt is known, or with all pairs at hand; again when the policy was lost, with the one
        that there is then. What an earlier attempt gave comes once more with the next one."""
        self.discard()  # of an attempt that lost the policy
        self._reset()
        self.workers.policy.begin_round()
        self._begun_as = self.workers.policy.restarts

    def begin_beside(self) -> None:
        """With all pairs at hand: the ranks go on by themselves while others work. Again when the policy was lost."""
        if self._begun_as != self.workers.policy.restarts:
            self.begin()
            self._going = RoundSteps(self.workers.policy, self.folder, self.place, 0)

    def accept(
        self, prompt_id: str, pair: PreferenceGroup | None, reference: ReferenceLogprobs | None
    ) -> None:
        """A prompt's pair is there, with its reference logprobs where there are any; or it gives none."""
        self._accepted[prompt_id] = None if pair is None else (pair, reference)
        while self._reached < len(self.prompts):
            name = self.prompts[self._reached].prompt_id
            if name not in self._accepted:
                break
            known = self._accepted.pop(name)
            self._reached += 1
            if known is not None:
                self._ready.append(known)

    def advance(self) -> None:
        """Take note of steps that are done, and begin those that can begin; waits for nothing. Raises RanksLost.

        Consumes the pairs whose prompts stand before every prompt that is still open; unblocked by the slowest of these.
        """
        if self._going is not None:
            for step in self._going.ready():
                self._note(step)
        while self._pending and are_done(self._pending[0]):
            self._note(self.workers.policy.wait(self._pending.popleft())[0])
        size = self.config.training.batch_size
        while len(self._ready) >= size and len(self._pending) < _AHEAD:
            batch, self._ready = self._ready[:size], self._ready[size:]
            pairs, references = _columns(batch)
            place = len(self._sent) // size
            self._pending.append(self.workers.policy.start_step(pairs, references, self.place, place))
            self._sent += [pair.group_id for pair in pairs]

    # -- when all are there --------------------------------------------------------------------------------

    def finish(self, advance: Callable[[int], None]) -> Metrics:
        """All steps that were not taken yet, on the pairs in the round's folder; the training's metrics. Raises RanksLost."""
        started = time.perf_counter()
        with self.workers.policy.on_device():
            begun = self._going is not None or self.config.training.overlap_training
            if self._begun_as != self.workers.policy.restarts or not begun:
                self.begin()
            early = len(self._sent)
            assert not early or RoundPairs(self.folder).ids[:early] == self._sent, (
                "pairs are others than those learnt"
            )
            while self._pending:
                self._note(self.workers.policy.wait(self._pending.popleft())[0])
            taken = len(self.steps)
            advance(sum(int(step["samples"]) for step in self.steps))
            self._since = time.time()
            going = self._going or RoundSteps(self.workers.policy, self.folder, self.place, taken)
            for step in going.remaining():
                advance(int(step["samples"]))
                self._note(step)
            survives = self.workers.policy.update_survives()
        self._begun_as = -1
        return self._metrics(time.perf_counter() - started, taken) | {"update_survives": survives}

    def _note(self, step: Metrics) -> None:
        self._check_gap(step.get("rollout_gap", 0.0))
        self.steps.append(step)
        now = time.time()
        since = max(self._since, now - step["seconds"])
        for rank in range(len(self.workers.policy)):
            self.watcher.span(Span("policy", f"policy-{rank}", "train", since, now, int(step["samples"])))
        self._since = now
        self.log(len(self.steps), step)

    def _check_gap(self, gap: float) -> None:
        """Engines and policy agree on what was sampled. Raises ValueError."""
        most = self.config.cluster.faults.max_rollout_gap
        if not gap <= most:
            raise ValueError(
                f"rollout_gap={gap:.3g}: above cluster.faults.max_rollout_gap={most:g}: the engines sampled from other weights "
                "than the policy's, or round them too coarsely; set cluster.rollout.quantization=null, or raise the limit and go "
                "on with --resume"
            )

    def _metrics(self, seconds: float, early: int) -> Metrics:
        steps = self.steps
        # Whether steps are taken while answers come, this round's or the next one's.
        overlaps = self.config.training.overlap_training or self.config.run.overlap
        worked = max(seconds, sum(s["seconds"] for s in steps))
        return {
            "policy_steps": len(steps),
            **({"early_steps": early} if overlaps else {}),
            "loss_first": steps[0]["loss"],
            "loss_last": steps[-1]["loss"],
            "implicit_accuracy": fmean(s.get("accuracy", math.nan) for s in steps),
            "implicit_margin": steps[-1].get("implicit_margin", math.nan),
            "grad_norm_max": max(
                (s["grad_norm"] for s in steps if s["grad_norm"] == s["grad_norm"]), default=math.nan
            ),
            "seconds_training": seconds,
            "tokens_per_second_training": sum(s["tokens"] for s in steps) / worked,
            **{name: fmean(s[name] for s in steps) for name in ("mfu", "mfu_measured") if name in steps[0]},
            "rollout_gap": steps[0].get("rollout_gap", math.nan),
            "skipped_steps": sum(math.isnan(s["grad_norm"]) for s in steps),
        }


def _columns(
    batch: Sequence[LearnablePair],
) -> tuple[list[PreferenceGroup], list[ReferenceLogprobs] | None]:
    references = [reference for _, reference in batch if reference is not None]
    return [pair for pair, _ in batch], references or None
