"""Does the controller keep hundreds of engines busy, and does its memory stay flat?

    python benchmarks/simulate.py --engines 1 8 64 512 --prompts 1000000 --n 8

Real: `Controller.run` over one round, from the baseline's evaluation to the commit and the run's report, with the store,
tracker, workers, scheduler, pools, dispatchers, scorers, pair selection, reference queue and the tables that it keeps, all of it
on this process's main thread; and the pickling of every call and unpickling of every result. Tables are compressed and
written by threads beside it, as in a run: `beside_s` is what these take of the CPU, and is no part of the controller's
time. Simulated: Ray and the workers, see `tests/simulated/`. Not counted: Ray's own part of a call, and reading the pool
of prompts, which stands ready. The virtual clock goes on by the controller's own time (`--clock`) while engines work, so
a slow controller shows as idle engines.

An engine is a model of 8B parameters in bfloat16 on one H100 with 256 sequences: weights of 16 GB at 3.35 TB/s are
5 ms of a step, launching and scheduling 3 ms; each sequence adds 47 us, about half of it to read a cache of 500
tokens x 128 KiB: 20 ms a step, 12,800 tokens/s when full. Prompts and scorers' tokens are 16 GFLOP each, at half of
990 TFLOP/s: 30,000 tokens/s. Scorers are as many as keep up, with a tenth to spare. The policy has a third as many GPUs as
there are engines, at half their peak; a checkpoint is written in 8 s, weights are synced in 2.

Lengths are measured, not made up: 50 answers and questions of UltraMedical's examples in SmolLM2's tokens, below by
quantiles; answers end at 1024.

`ratio` is the wall time over a bound that no schedule beats: the largest of
- all answers' tokens at a full batch's time per token, and all prompts, shared evenly by the engines;
- the longest answer alone on an engine, with its prompt;
- all tokens of the reward models, and of the reference, shared evenly by their workers;
and then training, checkpoint, sync and the evaluations before and after, each as long as it takes alone.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from line import print_line

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.simulated.engine import EngineSpeed, SimulatedEngine
from tests.simulated.ray import SimulatedRay, Takes
from tests.simulated.run import simulated
from tests.simulated.scorers import SimulatedScorer, number_answers
from tests.simulated.trainers import SimulatedTrainer
from ultramed_rl.actors.policy import PolicyWorker
from ultramed_rl.actors.rollout import RolloutWorker
from ultramed_rl.actors.scorer import ReferenceWorker, RewardWorker
from ultramed_rl.actors.trainer import plan_batches
from ultramed_rl.actors.weight_sync import WeightBucket
from ultramed_rl.actors.work import WorkBatch
from ultramed_rl.config import RunConfig, parse_config
from ultramed_rl.data.prompts import PromptPool
from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.models.controls import ControlTokens
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.online.controller import Controller
from ultramed_rl.online.watcher import RunWatcher
from ultramed_rl.records import Completion, Message, Prompt, SamplingRequest
from ultramed_rl.report.build import write_report
from ultramed_rl.store import RunDirectory
from ultramed_rl.store.artifacts import read_json
from ultramed_rl.token_ids import TokenIds
from ultramed_rl.tracking import Progress, Tracker
from ultramed_rl.workers.online import OnlineWorkers
from ultramed_rl.workers.scorers import Scorers

# fmt: off
ANSWER_TOKENS = [36, 163, 229, 254, 276, 299, 307, 318, 333, 349, 383, 409, 420, 472, 501, 547, 567, 645, 686, 773, 871]
PROMPT_TOKENS = [12, 22, 43, 64, 77, 94, 117, 155, 175, 338, 519]
# fmt: on
LIMIT = 1024
HELD_OUT, BATCH = 1000, 1024
SAVE_S, SYNC_S = 8.0, 2.0  # 16 GB to a disk at 2 GB/s, and between nodes
PHASES = ("prompts", "completions", "scored", "reference", "checkpoint", "evaluation")
CHARACTERS = 4.94  # of an answer's text per token, in the same 50 answers
VOCABULARY = 49_152
SPEED = EngineSpeed(fixed_s=0.008, sequence_s=0.012 / 256, prefill_rate=30_000.0, max_num_seqs=256)
SCORER_RATE, SCORER_TURN_S = 30_000.0, 0.005
MICRO_BATCH = 16_384
SEED = 7


class Answers:
    """Answers of the measured lengths, drawn once; a request's are picked among them by its seed."""

    def __init__(self, count: int = 8192) -> None:
        dice = random.Random(SEED)
        words = dice.choices(range(VOCABULARY), k=1 << 16)
        letters = "".join(dice.choices("etaoinshrdlu ", k=1 << 18))
        self.lengths = np.array([min(LIMIT, round(draw(ANSWER_TOKENS, dice.random()))) for _ in range(count)])
        self.tokens = [TokenIds(_cut(words, int(length), dice)) for length in self.lengths]
        self.texts = [str(_cut(letters, int(length * CHARACTERS), dice)) for length in self.lengths]

    def places(self, seed: int, n: int) -> list[int]:
        return [(seed + 2741 * sample) % len(self.tokens) for sample in range(n)]

    def __call__(self, request: SamplingRequest, version: int) -> list[Completion]:
        name = request.prompt.prompt_id
        return [
            Completion(
                name, sample, self.texts[k], self.tokens[k], "stop", -0.5 * len(self.tokens[k]), version
            )
            for sample, k in enumerate(self.places(request.seed, request.n))
        ]


def _cut(whole: Any, length: int, dice: random.Random) -> Any:
    start = dice.randrange(len(whole) - length)
    return whole[start : start + length]


class Prompts(Sequence[Prompt]):
    """Prompts that are made when they are asked for: a pool that stands ready would be a gigabyte. `seconds` is what that
    took, by `clock`: no part of the controller's time."""

    def __init__(self, count: int, clock: Callable[[], float] = time.thread_time) -> None:
        dice = random.Random(SEED + 1)
        self.count, self.clock, self.seconds = count, clock, 0.0
        self.made = [
            TokenIds(dice.choices(range(VOCABULARY), k=round(draw(PROMPT_TOKENS, dice.random()))))
            for _ in range(4096)
        ]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        began = self.clock()
        message = Message(role="user", content=f"What is known of drug {index}?")
        prompt = Prompt(f"prompt-{index:08d}", (message,), self.made[index % len(self.made)])
        self.seconds += self.clock() - began
        return prompt

    def __iter__(self) -> Iterator[Prompt]:
        return map(self.__getitem__, range(self.count))


# -- the round ---------------------------------------------------------------------------------------------


class Engine(SimulatedEngine):
    """Answers with what was drawn once."""

    speed = SPEED
    answers: Answers

    def start(self, arguments: Any, stop_token: int | None, version: int) -> None:
        self.policy_version = version

    def answer(self, request: SamplingRequest) -> list[Completion]:
        return self.answers(request, self.policy_version)


class Scorer(SimulatedScorer):
    """Forward passes at the rate of one H100."""

    def load(self, path: str, trust_remote_code: bool = False) -> None:
        """Nothing is read."""

    def work(self, work: WorkBatch) -> Takes:
        return number_answers(self.ray, work, self.score, SCORER_TURN_S, SCORER_RATE)


class Reward(Scorer):
    """Rewards that differ between answers and are the same every time."""

    role = "reward"

    def score(self, group: AnswerGroup) -> list[float]:
        return [(answer[0] * 7919 + len(answer)) % 9973 / 1000.0 for answer in group.answers]


class Reference(Scorer):
    """Half a nat a token."""

    role = "reference"

    def score(self, group: AnswerGroup) -> list[float]:
        return [-0.5 * len(answer) for answer in group.answers]


class Policy(SimulatedTrainer):
    """One rank that stands for all, takes the time of their steps, and learns nothing. Ranks read their own pairs: not the
    controller's process."""

    step_s: float  # of a batch

    def load(self, model: Any, spec: Any, address: Any, checkpoint: str | None = None) -> None:
        self._join(address)

    def learn_round(self, folder: str, *task: Any) -> None:
        pairs = read_json(Path(folder) / "pairs.json")["rows"]
        self.set_task(cast(Any, SimpleNamespace(lengths=range(pairs))))

    def train(self, training: Any, place: Any, start: int = 0, stop: int | None = None) -> Iterator[Any]:
        numbers = {"loss": 0.5, "accuracy": 0.5, "implicit_margin": 0.1, "grad_norm": 1.0, "mfu": 0.5}
        batches, _ = plan_batches(len(self.task.lengths), training, place)
        for step, batch in enumerate(batches):
            head = {"step": step, "samples": len(batch), "learning_rate": 1e-6, "tokens": 0.0}
            yield Takes(self.step_s, {**head, **numbers, "seconds": self.step_s})

    def save(self, directory: str) -> Takes:
        (Path(directory) / "weights").touch()
        return Takes(SAVE_S)

    def describe_weights(self, first: bool) -> Takes:
        return Takes(SYNC_S, WeightBucket({"text": ""}, 16 * 10**9))


def draw(values: Sequence[int], share: float) -> float:
    """The quantile at `share` of [0, 1] between equally spaced ones."""
    place = share * (len(values) - 1)
    low = min(int(place), len(values) - 2)
    return values[low] + (place - low) * (values[low + 1] - values[low])


@dataclass(frozen=True)
class Sizes:
    """How many workers each role has."""

    engines: int
    rewards: int
    references: int
    ranks: int  # of the policy; one stands for them


def request_of(prompt: Prompt, n: int) -> SamplingRequest:
    return SamplingRequest(prompt, n, 1.0, 1.0, LIMIT, derive_seed(SEED, 0, prompt.prompt_id))


def run_config(
    sizes: Sizes, count: int, n: int, folder: Path, rounds: int = 1, overlap: int = 0
) -> RunConfig:
    """A run of this size; nothing in it is loaded."""
    return parse_config(
        {
            "run": {
                "name": "simulated",
                "rounds": rounds,
                "overlap": overlap,
                "directory": str(folder),
                "seed": SEED,
            },
            "policy": {"path": "HuggingFaceTB/SmolLM2-135M-Instruct", "max_length": 2048},
            "reward": {
                "train": {"learning_rate": 1.0e-5, "batch_size": 1},
                "micro_batch_tokens": MICRO_BATCH,
            },
            "reference": {"micro_batch_tokens": MICRO_BATCH},
            "prompts": {
                "sources": [{"type": "question", "uri": "none"}],
                "per_round": count,
                "held_out": HELD_OUT,
            },
            "sampling": {"n": n, "temperature": 1.0, "max_new_tokens": LIMIT},
            "pairs": {"rejected": "worst", "min_margin": 0.1},
            "objective": {"type": "dpo"},
            "training": {"learning_rate": 1.0e-6, "batch_size": BATCH},
            "tracking": {"wandb": "disabled"},
            "cluster": {
                "layout": "disaggregated",
                "sequential_phases": False,
                "nodes": sizes.engines + sizes.rewards + sizes.references + 1,
                "devices_per_node": 1,
                "policy": {"ranks": 1, "zero_stage": 0},
                "rollout": {"engines": sizes.engines, "max_num_seqs": SPEED.max_num_seqs},
                "reward": {"replicas": sizes.rewards},
                "reference": {"replicas": sizes.references},
            },
        }
    )


@dataclass(frozen=True)
class Work:
    """What a round has to be done, in seconds of one worker of each role; `longest_s`: one answer, alone."""

    engine_s: float
    reward_s: float
    reference_s: float
    longest_s: float

    def bound(self, sizes: Sizes) -> float:
        return max(
            self.engine_s / sizes.engines,
            self.reward_s / sizes.rewards,
            self.reference_s / sizes.references,
            self.longest_s,
        )

    def step_s(self, sizes: Sizes, count: int) -> float:
        """Of a batch of pairs: three passes' work for each token that the reference reads once."""
        return 3 * self.reference_s / sizes.ranks * BATCH / count


def measure_work(prompts: Sequence[Prompt], answers: Answers, n: int) -> Work:
    """All that the prompts come to; pairs are taken as two answers of mean length each."""
    full_s = SPEED.step_s(SPEED.max_num_seqs) / SPEED.max_num_seqs
    tokens = asked = longest = 0
    for prompt in prompts:
        lengths = answers.lengths[answers.places(request_of(prompt, n).seed, n)]
        tokens += int(lengths.sum())
        longest = max(longest, int(lengths.max()))
        asked += len(prompt.token_ids)
    reference_tokens = asked + 2 * tokens / n
    return Work(
        engine_s=tokens * full_s + asked / SPEED.prefill_rate,
        reward_s=(tokens + asked) / SCORER_RATE,
        reference_s=reference_tokens / SCORER_RATE,
        longest_s=longest * SPEED.step_s(1),
    )


def sizes_for(engines: int, work: Work) -> Sizes:
    """As many scorers as keep up with the engines, and a tenth more."""
    share = 1.1 * engines / work.engine_s
    scorers = int(share * work.reward_s) + 1, int(share * work.reference_s) + 1
    return Sizes(engines, *scorers, ranks=engines // 3 + 1)


# -- one run, in a process of its own ----------------------------------------------------------------------


class AnonymousPeak:
    """The peak of this process's anonymous memory, looked at four times a second."""

    def __init__(self) -> None:
        self.start = self.peak = anonymous_bytes()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.25)


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def simulate(engines: int, count: int, n: int, kind: str, folder: str) -> dict[str, Any]:
    """A round of `count` prompts with so many engines."""
    answers, prompts, held_out = Answers(), Prompts(count, CLOCKS[kind]), list(Prompts(HELD_OUT))
    work = measure_work(prompts, answers, n)
    sizes = sizes_for(engines, work)
    Policy.step_s = work.step_s(sizes, count)
    memory = AnonymousPeak()
    path = Path(tempfile.mkdtemp(prefix="simulate-", dir=folder or None))
    started, beside = time.perf_counter(), time.process_time() - time.thread_time()
    try:
        ray, (metrics,) = run_rounds(run_config(sizes, count, n, path), prompts, held_out, answers)
        beside = time.process_time() - time.thread_time() - beside
        written = sum(file.stat().st_size for file in path.rglob("*.parquet"))
    finally:
        shutil.rmtree(path)
    assert metrics["completions"] == count * n, f"{metrics['completions']} scored of {count * n}"
    after = metrics["policy_steps"] * Policy.step_s + SAVE_S + SYNC_S
    bound = work.bound(sizes) + after + 2 * measure_work(held_out, answers, 1).bound(sizes)
    return {
        "engines": engines,
        "rewards": sizes.rewards,
        "references": sizes.references,
        "policy_ranks": sizes.ranks,
        "prompts": count,
        "wall_s": round(ray.time, 1),
        "bound_s": round(bound, 1),
        "ratio": round(ray.time / bound, 4),
        "controller_s": round(ray.driver_s, 1),
        "completions_per_controller_s": round(count * n / ray.driver_s),
        "controller_share": round(ray.driver_s / ray.time, 4),
        "phases_s": {name: round(metrics[f"seconds_{name}"], 1) for name in PHASES},
        "beside_s": round(beside, 1),
        "calls": ray.calls,
        "pairs": int(metrics["pairs"]),
        "memory_mb": round(memory.peak / 1e6),
        "memory_before_mb": round(memory.start / 1e6),
        "written_gb": round(written / 1e9, 3),
        "real_s": round(time.perf_counter() - started, 1),
    }


def run_rounds(
    config: RunConfig, prompts: Prompts, held_out: Sequence[Prompt], answers: Answers
) -> tuple[SimulatedRay, list[dict[str, float]]]:
    """A run and its rounds' metrics; the simulated Ray knows how long it took."""
    Engine.answers = answers
    classes = {RolloutWorker: Engine, PolicyWorker: Policy, RewardWorker: Reward, ReferenceWorker: Reference}
    ray = SimulatedRay(classes, timer=lambda: prompts.clock() - prompts.seconds)
    ray.begun = None
    pool, progress = PromptPool(cast(Any, prompts), tuple(held_out)), Progress()
    with simulated(ray), RunDirectory.open(config, resume=False) as store:
        nobody, tokens = None, PolicyTokens()
        workers = OnlineWorkers(config, cast(Any, nobody), Scorers(config.reward, cast(Any, tokens)))
        workers.begin_rollout(config.policy.path, 0)
        workers.start_learners(config.policy.path, 0, config.policy.path, [config.policy.path])
        with (
            Tracker(store, config) as tracker,
            RunWatcher(store.path, config.run.name, progress, tracker) as watcher,
        ):
            workers.scheduler.watcher = watcher
            controller = Controller(config, store, workers, pool, tracker, watcher)
            ray.monotonic()
            ray.time = ray.driver_s = 0.0  # the round begins
            rounds = controller.run(lambda row: None)
            write_report(store.path)
            ray.monotonic()  # what came after the last event
    return ray, rounds


class PolicyTokens:
    """What is asked of the policy's tokenizer where reward models read the policy's tokens: a look for control tokens, as
    SmolLM2's has them."""

    names = (
        "endoftext im_start im_end repo_name reponame file_sep filename gh_stars issue_start issue_comment issue_closed "
        "jupyter_start jupyter_text jupyter_code jupyter_output jupyter_script empty_output"
    )
    _marker, _firsts = re.compile("|".join(f"<\\|?{name}\\|?>" for name in names.split())), "<"
    end_id = VOCABULARY  # which no answer here holds
    held = np.arange(end_id + 2) == end_id
    spell_out, count = ChatTokenizer.spell_out, ControlTokens.count

    @property
    def controls(self) -> PolicyTokens:
        return self

    def among(self, token_ids: np.ndarray) -> np.ndarray:
        return self.held.take(token_ids, mode="clip")


# `wall`: seconds by the wall, with waits for the disk. `cpu`: of the calling thread, where others use the machine.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}


def in_own_process(*arguments: Any) -> dict[str, Any]:
    """`simulate` where nothing of another run is in memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(simulate, arguments)


def summary(runs: Mapping[int, dict[str, Any]], tenths: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    worst = max(runs.values(), key=lambda run: run["ratio"])
    return {
        "benchmark": "simulate",
        "ratio": worst["ratio"],
        "ours": worst["wall_s"],
        "peer": worst["bound_s"],
        "unit": "s, virtual",
        "peer_name": "a bound of any schedule",
        "completions_per_controller_s": min(run["completions_per_controller_s"] for run in runs.values()),
        "memory_gb": max(run["memory_mb"] for run in runs.values()) / 1000,
        "by_engines": {str(engines): run for engines, run in runs.items()},
        "tenth_of_prompts": {str(engines): run for engines, run in tenths.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="the controller's own time")
    parser.add_argument(
        "--folder", default="", help="for the records, some GB; default: the system's temporary one"
    )
    asked = parser.parse_args()
    runs, tenths = {}, {}
    for engines in asked.engines:
        for found, count in ((tenths, asked.prompts // 10), (runs, asked.prompts)):
            found[engines] = in_own_process(engines, count, asked.n, asked.clock, asked.folder)
            print(json.dumps(found[engines]), flush=True)
    found = summary(runs, tenths)
    work = f"{asked.prompts:,} prompts x {asked.n}, the worst of {', '.join(map(str, asked.engines))} engines; {found['completions_per_controller_s']:,.0f} completions a second of the driver's thread; its memory {found['memory_gb']:.2f} GB"
    print_line({**found, "work": work})


if __name__ == "__main__":
    main()
