"""The online loop (UltraMedical, section on iterative preference learning; RLHFlow's workflow).

prompts -> completions -> scored -> pairs -> reference logprobs -> policy update
   ^                                                                  |
   +-------- rollout engines <---- weights ---- sync <----------------+

With `run.overlap` a round's policy update goes on beside the next round's completions, which are the policy's before it:

    engines:  0 | 1 by policy 0 | 2 by policy 1 | ...        round 0, round 1, ...
    policy:       learns 0 -> 1 | learns 1 -> 2 | ...        each starts when both before it have ended
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ultramed_rl.config import RunConfig
from ultramed_rl.data.prompts import PromptPool, prompts_for_round
from ultramed_rl.evaluation.metrics import kl_to_reference, token_rates
from ultramed_rl.learning.pairs import PairSelector
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.online.benchmarks import BenchmarkRounds
from ultramed_rl.online.held_out import HeldOutEvaluation, sampling_request
from ultramed_rl.online.rollout import RoundRollout
from ultramed_rl.online.stream import RoundSpec
from ultramed_rl.online.training import RoundTraining
from ultramed_rl.online.watcher import RunWatcher
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.store import RoundRecord, RunDirectory, RunReader
from ultramed_rl.store.artifacts import read_numbers
from ultramed_rl.store.cards import write_pairs_card, write_policy_card
from ultramed_rl.store.shards import RecordFiles
from ultramed_rl.store.work_directory import Asked
from ultramed_rl.token_ids import TokenIds
from ultramed_rl.tracking import Tracker
from ultramed_rl.tracking.verdict import fallen_for, give_verdict, kept_round, write_verdict
from ultramed_rl.workers.online import OnlineWorkers

Metrics = dict[str, float]
_SURVIVES = 0.5  # least share of a round's update that should show in bfloat16


def prune(store: RunDirectory) -> None:
    """Delete checkpoints that run.keep_checkpoints does not keep."""
    if (keep := store.config.run.keep_checkpoints) is not None:
        store.prune_checkpoints(keep, kept_round(RunReader(store.path)))


@dataclass(frozen=True)
class TrainedPolicy:
    """What a round's training came to, and the checkpoint, where one was due."""

    metrics: Metrics
    checkpoint: str | None = None

    @property
    def saved(self) -> str:
        """The checkpoint, which there is: references are made of it."""
        assert self.checkpoint is not None, "a reference is to be made of a policy that no checkpoint holds"
        return self.checkpoint


class Controller:
    """Runs rounds. The workers compute, the store remembers, the tracker tells."""

    def __init__(
        self,
        config: RunConfig,
        store: RunDirectory,
        workers: OnlineWorkers,
        pool: PromptPool,
        tracker: Tracker,
        watcher: RunWatcher,
        benchmarks: BenchmarkRounds | None = None,
    ) -> None:
        self.config, self.store, self.workers, self.pool = config, store, workers, pool
        self.tracker, self.watcher, self.benchmarks = tracker, watcher, benchmarks
        self.progress = watcher.progress
        self.held_out = HeldOutEvaluation(config, workers, pool.held_out, watcher.progress)
        self.judges = {judge.name: judge.type for judge in config.evaluation.judges}
        self.version = 0
        self.policy_steps = 0  # of the rounds before this one
        self._asked: list[Asked] = []  # by round
        self._shares: dict[int, Metrics] = {}  # by round: of its gathering that each role was at work

    def run(self, on_round: Callable[[Metrics], None]) -> list[Metrics]:
        """All rounds that aren't committed yet; returns the metrics of every round, committed ones too."""
        self.version = self.store.committed_rounds()
        self.workers.catch_up = self.catch_up
        if self.workers.version < self.version:  # no checkpoint holds what the last rounds learnt
            self.workers.with_policy_restart(lambda: self.workers.sync(self.version))
        self.workers.with_policy_restart(lambda: self.held_out.begin(self.store.initial))
        if (benchmarks := self.benchmarks) is not None:
            self.workers.with_policy_restart(lambda: benchmarks.evaluate(self.store.initial, 0, self.workers))
        rows: list[Metrics] = list(RunReader(self.store.path).rounds)
        self.policy_steps = int(sum(row["policy_steps"] for row in rows))
        if self.config.run.overlap and self.version < self.config.run.rounds:
            first = self.store.round(self.version)
            self.compute_references(self.roll_out(first, self.prompts(first)))
        for index in range(self.version, self.config.run.rounds):
            rows.append(self.run_round(self.store.round(index), rows))
            on_round(rows[-1])
            if "eval_change" in rows[-1]:
                self.tell_verdict(rows)
            if "stopped" in rows[-1]:
                break
        return rows

    def run_round(self, record: RoundRecord, before: Sequence[Metrics]) -> Metrics:
        """One round, after those with these metrics. Phases that a killed run finished are read back, not computed again."""
        if not self.config.run.overlap:
            prompts = self.prompts(record)
            training = self.training(record, prompts)
            early = training if self.config.training.overlap_training else None
            self.compute_references(self.roll_out(record, prompts, early))
            policy = self.train(record, training)
        else:  # of this round there are pairs and reference logprobs by now
            policy = self.train_beside(record)
        with self.watcher.phase("sync", record.index):
            sync = self.sync(record, policy)
        held_out: Metrics = {}
        if self.ends(record.index, self.config.evaluation.every):
            with self.watcher.phase("evaluate", record.index):
                held_out = self.workers.with_policy_restart(
                    lambda: self.held_out.evaluate(record, self.version)
                )
        benchmarked: Metrics = {}
        if (benchmarks := self.benchmarks) is not None and self.ends(
            record.index, benchmarks.benchmarks.every
        ):
            benchmarked = self.workers.with_policy_restart(
                lambda: benchmarks.evaluate(record, self.version, self.workers)
            )

        metrics = self.round_metrics(record, policy) | held_out | sync | benchmarked
        shares = self._shares.pop(record.index)
        metrics |= {f"utilisation_{role}": share for role, share in shares.items()}
        set_aside = float(len(record.manifest("scored")["set_aside"]))
        metrics |= {"set_aside": set_aside, "restarts": self.restarts()}
        metrics |= self.judge_run([*before, metrics]) if held_out else {}
        # Logged first: a kill between the two logs the round again on resume, after its line was discarded.
        self.tracker.log(metrics, step=record.index, kind="round")
        write_pairs_card(self.store, record, metrics)
        record.commit(metrics)
        prune(self.store)
        return metrics

    def judge_run(self, rounds: Sequence[Metrics]) -> Metrics:
        """Whether the reward rose where a judge fell in the last of these rounds; and `stopped`, where that ends the run."""
        verdict, stop = give_verdict(rounds, self.judges), self.config.run.stop
        metrics = {"over_optimised": float(verdict is not None and verdict.outcome == "over-optimised")}
        if stop is not None and (judge := fallen_for(rounds, self.judges, stop)) is not None:
            self.progress.say(
                f"run.stop={stop}: {judge} has fallen in {stop} evaluated rounds; this round is the last"
            )
            metrics["stopped"] = 1.0
        return metrics

    def tell_verdict(self, rounds: Sequence[Metrics]) -> None:
        """Keep how the run stands; tell those who track it, and everybody at once where the reward rose and a judge fell."""
        write_verdict(RunReader(self.store.path))
        now = give_verdict(rounds, self.judges)
        if now is not None:
            self.tracker.judge(now)
            if now.outcome == "over-optimised":
                self.progress.say(str(now))

    def ends(self, index: int, every: int) -> bool:
        """Whether a round is the last of so many, or of the run."""
        return (index + 1) % every == 0 or index + 1 == self.config.run.rounds

    def restarts(self) -> float:
        """Workers that this process has replaced, of any role."""
        return float(sum(self.watcher.restarts.values()) + self.workers.policy.restarts)

    # -- phases --------------------------------------------------------------------------------------------

    def prompts(self, record: RoundRecord) -> Sequence[Prompt]:
        """Those of a round, chosen when it has none."""
        return RecordFiles(record.file_of("prompts", self.choose_prompts, record.index, kind=Prompt), Prompt)

    def choose_prompts(self, index: int) -> Sequence[Prompt]:
        """The next of the pool: the rounds before have answers and pairs, all of them."""
        seed, size = self.config.run.seed, self.config.prompts.per_round
        later = self.config.run.rounds - index - 1
        self._asked += [self.store.round(i).asked() for i in range(len(self._asked), index)]
        prompts = prompts_for_round(self.pool.training, self.config.prompts, self._asked, seed, later)
        if self.config.training.overlap_training:
            # Batches follow this order; sources stand one after the other.
            first = prompts.places[:size]
            random.Random(derive_seed(seed, "order", index)).shuffle(first)
            prompts.places[:size] = first
        return prompts

    def training(self, record: RoundRecord, prompts: Sequence[Prompt] = ()) -> RoundTraining:
        """The round's training, before its first step; with the prompts it may begin before all have answers."""

        def log(count: int, step: Metrics) -> None:
            self.tracker.log({"round": record.index, **step}, step=self.policy_steps + count, kind="step")

        def discard() -> None:
            self.store.discard_metrics_after(record.index)

        return RoundTraining(self.config, self.workers, self.watcher, record, prompts, log, discard)

    def roll_out(
        self,
        record: RoundRecord,
        asked: Sequence[Prompt],
        early: RoundTraining | None = None,
        beside: RoundTraining | None = None,
    ) -> RoundRollout:
        """A round's scored answers and pairs, while `early` learns them, or `beside` those of the round before."""
        spec = self.spec(record.index)
        rollout = RoundRollout(self.config, self.workers, self.progress, record, spec, early, beside)
        with self.watcher.phase("rollout", record.index) as self._shares[record.index]:
            self.workers.with_policy_restart(lambda: rollout.roll_out(asked))
        return rollout

    def compute_references(self, rollout: RoundRollout) -> None:
        """The reference logprobs of a round's pairs, those that there are not yet."""
        with self.watcher.phase("reference", rollout.record.index):
            self.workers.with_policy_restart(rollout.compute_references)

    def spec(self, index: int) -> RoundSpec:
        """What the round asks of its prompts."""
        sampling, reference = self.config.sampling, None
        version = max(index - self.config.run.overlap, 0)
        if self.config.objective.uses_reference:
            reference = {"initial": 0}.get(self.config.reference.update, version)
        return RoundSpec(
            request=lambda prompt: sampling_request(
                self.config, prompt, sampling.n, sampling.temperature, index
            ),
            extra=self._extra,
            selector=lambda: self._selector(index),
            version=version,
            reference_version=reference,
        )

    def train_beside(self, record: RoundRecord) -> TrainedPolicy:
        """Train on the round's pairs while the engines, which keep the weights that it began with, answer the next round's
        prompts; then the reference logprobs of that one, which a policy that is its own reference has no time for before."""
        training = self.training(record)
        if record.index + 1 == self.config.run.rounds:
            return self.train(record, training)
        following = self.store.round(record.index + 1)
        rollout = self.roll_out(following, self.prompts(following), beside=training)
        policy = self.train(record, training)
        self.compute_references(rollout)
        return policy

    def train(self, record: RoundRecord, training: RoundTraining) -> TrainedPolicy:
        """Train on the round's pairs, and write the checkpoint where one is due; its manifest holds the training metrics.

        Without one, what was learnt is in the policy's ranks alone, and in the pairs: who loses the ranks trains again.
        """

        def attempt(directory: Path | None) -> Metrics:
            metrics = self.learn(record, training, f"round {record.index} train")
            if (shown := metrics["update_survives"]) < _SURVIVES:
                self.progress.say(
                    f"round {record.index}: update_survives={shown:.2f}, below {_SURVIVES}: rounding to bfloat16 hides most "
                    "of this update from the engines until later rounds add to it; take more steps a round "
                    "(prompts.per_round, training.epochs) or raise training.learning_rate"
                )
            if directory is not None:
                self.workers.policy.save(directory)
            return metrics

        def compute(directory: Path) -> Metrics:
            metrics = self.workers.with_policy_restart(lambda: attempt(directory))
            write_policy_card(self.store, record, directory, metrics)
            return metrics

        behind = record.index - read_numbers(record.manifest("pairs")["summary"])["policy_version"]
        assert 0 <= behind <= self.config.run.overlap, f"round {record.index}: pairs of {behind} policies ago"
        with self.watcher.phase("train", record.index):
            if self.ends(record.index, self.config.checkpoint.every):
                learnt = ("pairs", "reference") if self.config.objective.uses_reference else ("pairs",)
                path, metrics = record.phase_directory("checkpoint", compute, *map(record.digest, learnt))
                policy = TrainedPolicy(metrics, str(path))
            else:
                policy = TrainedPolicy(self.workers.with_policy_restart(lambda: attempt(None)))
        self.policy_steps += int(policy.metrics["policy_steps"])  # also of one that a killed run had finished
        return policy

    def learn(self, record: RoundRecord, training: RoundTraining, name: str) -> Metrics:
        """All steps of a round that were not taken yet."""
        total = record.manifest("pairs")["rows"] * self.config.training.epochs
        with self.progress.phase(name, total, "pairs") as bar:
            metrics = training.finish(bar.advance)
        self.workers.policy.end_round(record.index + 1)
        return metrics

    def catch_up(self) -> None:
        """Train a policy that was started again from its checkpoint on the pairs of the rounds since, which are kept: the
        same steps, so the same weights. They were logged before."""
        for index in range(self.workers.policy.trained, self.workers.version):
            record = self.store.round(index)
            again = RoundTraining(
                self.config, self.workers, self.watcher, record, (), lambda *_: None, lambda: None
            )
            self.learn(record, again, f"round {index} train again")

    def sync(self, record: RoundRecord, policy: TrainedPolicy) -> Metrics:
        """From here on everyone works with the new policy: engines always, the reference per config."""
        version = record.index + 1
        if self.config.reference.update == "ema":
            average = self._average_reference(record, policy.saved)
            path, _ = record.phase_directory("reference_model", average, version)
            self.workers.load_reference(str(path))
        elif self.config.reference.update == "previous":
            self.workers.load_reference(policy.saved)
        # Last: engines have the devices from here on.
        sync = self.workers.with_policy_restart(lambda: self.workers.sync(version, policy.checkpoint))
        self.version = version
        return {"sync_seconds": sync["seconds"], "sync_bytes": sync["bytes"]}

    # -- helpers -------------------------------------------------------------------------------------------

    def round_metrics(self, record: RoundRecord, policy: TrainedPolicy) -> Metrics:
        summary = read_numbers(record.manifest("pairs")["summary"])
        # What a round without a checkpoint took to train is in no manifest.
        seconds = {"checkpoint": policy.metrics["seconds_training"], **record.seconds}
        slope, divergence = self.workers.scorers.length_slope, {}
        if self.config.objective.uses_reference:
            divergence = {"kl_to_reference": kl_to_reference(record.path)}
        return {
            "round": record.index,
            **summary,
            **divergence,
            **({} if self.config.reward.length_slope is None else {"reward_length_slope": slope}),
            **policy.metrics,
            **{f"seconds_{name}": value for name, value in seconds.items()},
            "seconds": sum(seconds.values()),
            **token_rates(summary, seconds),
        }

    def _selector(self, index: int) -> PairSelector:
        rule = self.config.pairs
        return PairSelector(
            rejected=rule.rejected,
            min_margin=rule.min_margin,
            max_length_ratio=rule.max_length_ratio,
            seed=self.config.run.seed,
            round_index=index,
            listwise=self.config.objective.listwise,
        )

    def _average_reference(self, record: RoundRecord, checkpoint: str) -> Callable[[Path], Metrics]:
        def compute(directory: Path) -> Metrics:
            self.workers.average_reference(checkpoint, directory)
            write_policy_card(self.store, record, directory, {}, role="reference")
            return {}

        return compute

    def _extra(self, prompt: Prompt) -> Completion | None:
        """UltraMedical scores the data's own answer beside the policy's; one that exceeds the context is left out."""
        if not (self.config.pairs.include_reference_answer and prompt.answer):
            return None
        answer = self._reference_answer(prompt, prompt.answer)
        fits = len(prompt.token_ids) + len(answer.token_ids) <= self.config.policy.max_length
        return answer if fits else None

    def _reference_answer(self, prompt: Prompt, answer: str) -> Completion:
        tokenizer = self.workers.tokenizer
        answer = tokenizer.without_end(answer)
        _, (tokens,) = tokenizer.encode_answers(prompt.messages, [answer], checked=False)
        return Completion(
            prompt_id=prompt.prompt_id,
            sample=self.config.sampling.n,
            text=answer,
            token_ids=TokenIds(tokens),
            finish_reason="reference",
            logprob=0.0,
            policy_version=self.version,
        )
