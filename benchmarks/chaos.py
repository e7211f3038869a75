"""Does a run come to the same end while its processes are killed all the time?

    python benchmarks/chaos.py --kills 50

The tiny models of the tests run a few rounds, once unbroken and once beside a killer. Each role's workers and the
driver have their turn in random order, spread over the rounds: SIGKILL, or for a `hang` SIGSTOP, to one of them at a
random time; every other strike first waits for a phase (training, weight sync, evaluation) that is drawn too. Most
strikes wait for the recovery from the one before, though not for ever; some don't. A driver that is killed is started
again with --resume, after what was left of its processes has been ended.

Both runs are compared round by round: prompts, answers (`lost`, `doubled`, and `changed` ones with other tokens),
pairs, reference logprobs, and the last weights. `ratio` is the share of identical pairs among all that either has.

`recovery_s` is counted from a strike until all workers are whole again, that is every role has all its workers loaded and
the driver lives, and one of the workers is at a turn, by the run's timeline. A worker that is struck while it has
nothing to do is missed when it is needed, and the time until then counts as well; `replacing_s` is counted from the
first sight of a new process of its role. Where the run ended before, the strike is `unmeasured`. `gave_up` counts
drivers that ended with an error, `stayed` processes that outlived their driver by 15 seconds. `missed` strikes were
not made, as the run had ended: give it more --rounds or --prompts. The last line is JSON; the exit status is 1 if
anything differs or was missed.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from killer import KINDS, ROOT, WORKERS, Killer, Strike, log_end, start_driver, turns_of_kinds
from line import print_line

ENGINE = {"kv_cache_gib": 0.1, "enforce_eager": True}
MOST_LOGPROB_GAP = 1e-4


# -- what is compared --------------------------------------------------------------------------------------

Answer = tuple[str, int, tuple[int, ...]]  # prompt, sample, tokens
Pair = tuple[str, tuple[int, ...], tuple[int, ...]]  # prompt, chosen and rejected tokens


@dataclass(frozen=True)
class RoundRecords:
    """What a round came to; `references` are logprobs by group."""

    prompts: list[str]
    answers: list[Answer]
    pairs: list[Pair]
    references: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Difference:
    """How a struck run's rounds differ from the unbroken one's, in sums over rounds.

    `either`: pairs that at least one of the two has. `prompts`: those in the one run only.
    """

    identical: int = 0
    either: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    prompts: int = 0
    logprob_gap: float = 0.0

    def __add__(self, other: Difference) -> Difference:
        sums = {name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__}
        return Difference(**{**sums, "logprob_gap": max(self.logprob_gap, other.logprob_gap)})


def compare_rounds(whole: RoundRecords, struck: RoundRecords) -> Difference:
    """The difference in one round."""
    expected = {(prompt, sample): tokens for prompt, sample, tokens in whole.answers}
    found = Counter((prompt, sample) for prompt, sample, _ in struck.answers)
    pairs, ours = Counter(whole.pairs), Counter(struck.pairs)
    groups = whole.references.keys() | struck.references.keys()
    gaps = [_widest(whole.references.get(group, ()), struck.references.get(group, ())) for group in groups]
    return Difference(
        identical=(pairs & ours).total(),
        either=(pairs | ours).total(),
        lost=len(expected.keys() - found.keys()),
        doubled=found.total() - len(found) + len(found.keys() - expected.keys()),
        changed=sum(expected.get((prompt, sample)) != tokens for prompt, sample, tokens in struck.answers),
        prompts=len(set(whole.prompts) ^ set(struck.prompts)),
        logprob_gap=max(gaps, default=0.0),
    )


def _widest(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest difference; infinite where a number is missing, or is none."""
    gap = max(abs(x - y) for x, y in zip(a, b, strict=True)) if len(a) == len(b) else math.inf
    return math.inf if math.isnan(gap) else gap


def read_round(folder: Path) -> RoundRecords:
    """The records of a committed round."""
    from ultramed_rl.records import PreferenceGroup, Prompt, ReferenceLogprobs, ScoredCompletion
    from ultramed_rl.store.shards import RecordFiles
    from ultramed_rl.store.tables import read_records

    answers = [s.completion for s in RecordFiles(folder / "scored.parquet", ScoredCompletion)]
    pairs = read_records(PreferenceGroup, folder / "pairs.parquet")
    references = RecordFiles(folder / "reference.parquet", ReferenceLogprobs)
    return RoundRecords(
        prompts=[p.prompt_id for p in read_records(Prompt, folder / "prompts.parquet")],
        answers=[(a.prompt_id, a.sample, a.token_ids) for a in answers],
        pairs=[(p.prompt.prompt_id, p.chosen.token_ids, p.rejected.token_ids) for p in pairs],
        references={reference.group_id: reference.logprobs for reference in references},
    )


def weight_gap(whole: Path, struck: Path) -> float:
    """The largest difference of any weight of two checkpoints."""
    from safetensors.torch import load_file

    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, struck))
    gaps = [float((found[name] - weight).abs().max()) for name, weight in expected.items()]
    return math.inf if any(map(math.isnan, gaps)) else max(gaps)


# -- the two runs ------------------------------------------------------------------------------------------


def write_config(root: Path, name: str, options: argparse.Namespace) -> Path:
    """The config of one of the runs; the models and prompts that both read are made if need be."""
    import yaml

    sys.path.insert(0, str(ROOT))
    from tests.tiny import make_policy, make_questions, make_reward, tiny_run

    if not (root / "questions.jsonl").is_file():
        make_policy(root / "policy")
        make_reward(root / "reward")
        make_questions(root / "questions.jsonl", 4 + options.rounds * options.prompts)
    settings = tiny_run(
        root,
        run__name=name,
        run__rounds=options.rounds,
        prompts__per_round=options.prompts,
        sampling__max_new_tokens=32,
        cluster__sequential_phases=False,
        # Few at a time, so that a round of few tokens takes long enough to be struck.
        cluster__rollout={"engines": WORKERS["rollout"], "max_num_seqs": 8, **ENGINE},
        cluster__reward={"replicas": WORKERS["reward"]},
        cluster__faults={"attempts": 6, "restarts": 60, "hang_s": options.hang_s, "start_s": 300.0},
    )
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def recovery_seconds(strikes: Sequence[Strike], timeline: Path) -> list[tuple[float, float]]:
    """Seconds since the strike, and since a replacement was begun, until all workers were seen whole and at work."""
    from ultramed_rl.tracking.timeline import CONTROLLER, read_spans

    spans = [span for span in read_spans(timeline) if span.role != CONTROLLER]
    found = []
    for strike in strikes:
        at_work = [max(strike.whole, s.started) for s in spans if s.ended > strike.whole]
        if strike.whole and at_work:
            found.append((min(at_work) - strike.at, min(at_work) - strike.replacing))
    return found


# -- the benchmark -----------------------------------------------------------------------------------------


def run_unbroken(config: Path) -> float:
    """Run to the end; returns the seconds."""
    started = time.monotonic()
    process = start_driver(config, {})
    if process.wait() != 0:
        raise RuntimeError(f"the unbroken run failed; its log ends:\n{log_end(config)}")
    return time.monotonic() - started


def report(
    whole: Path, struck: Path, killer: Killer, seconds: Mapping[str, float], rounds: int
) -> dict[str, Any]:
    """The JSON line."""
    folders = [(run / "rounds" / f"{i:03d}") for i in range(rounds) for run in (whole, struck)]
    records = [read_round(folder) for folder in folders]
    each = [compare_rounds(a, b) for a, b in zip(records[::2], records[1::2], strict=True)]
    found = sum(each, Difference())
    recovered = recovery_seconds(killer.strikes, struck / "timeline.jsonl")
    last = f"rounds/{rounds - 1:03d}/checkpoint"
    return {
        "benchmark": "chaos",
        "ours": found.identical,
        "peer": sum(len(r.pairs) for r in records[::2]),
        "ratio": round(found.identical / max(1, found.either), 4),
        "unit": "pairs",
        "peer_name": "the same run unbroken",
        "kills": dict(Counter(strike.kind for strike in killer.strikes)),
        "phases": dict(Counter(strike.phase for strike in killer.strikes)),
        **{name: getattr(found, name) for name in ("lost", "doubled", "changed")},
        "prompts_differ": found.prompts,
        "by_round": [difference.either - difference.identical for difference in each],
        "logprob_gap": _finite(found.logprob_gap),
        "weight_gap": _finite(weight_gap(whole / last, struck / last)),
        "recovery_s": _middle_and_most([since for since, _ in recovered]),
        "replacing_s": _middle_and_most([since for _, since in recovered]),
        "unmeasured": len(killer.strikes) - len(recovered),
        "gave_up": killer.gave_up,
        "stayed": len(killer.stayed),
        "rounds": rounds,
        "seconds": {name: round(value) for name, value in seconds.items()},
    }


def _finite(gap: float) -> float | None:
    """For JSON, which has no infinity."""
    return gap if math.isfinite(gap) else None


def _middle_and_most(seconds: Sequence[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    return {"median": round(statistics.median(seconds), 1), "max": round(max(seconds), 1)}


def is_same(line: Mapping[str, Any]) -> bool:
    """Whether nothing differs that must not."""
    zero = ("lost", "doubled", "changed", "prompts_differ", "gave_up", "missed")
    return (
        line["ours"] == line["peer"]
        and line["ratio"] == 1.0
        and not any(line[name] for name in zero)
        and line["logprob_gap"] is not None
        and line["logprob_gap"] <= MOST_LOGPROB_GAP
        and line["weight_gap"] == 0.0
    )


def run_both(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    configs = {name: write_config(root, name, options) for name in ("unbroken", "struck")}
    seconds = {"unbroken": run_unbroken(configs["unbroken"])}
    print(f"unbroken: {seconds['unbroken']:.0f} s", flush=True)
    chance = random.Random(options.seed)
    runs = root / "runs"
    shutil.rmtree(runs / "struck", ignore_errors=True)
    killer = Killer(configs["struck"], runs / "struck", options.rounds, chance)
    started = time.monotonic()
    killer.run(turns_of_kinds(options.kinds, options.kills, chance))
    seconds["struck"] = time.monotonic() - started
    line = report(runs / "unbroken", runs / "struck", killer, seconds, options.rounds)
    return {
        **line,
        "missed": options.kills - len(killer.strikes),
        "work": f"{options.kills} kills and hangs of every kind of actor and the driver: {line['lost']} lost, {line['doubled']} doubled, "
        f"{line['changed']} changed; whole again after {(line['recovery_s'] or {}).get('median')} s (median)",
    }


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--kills", type=int, default=50)
    arguments.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="who is struck")
    arguments.add_argument("--rounds", type=int, default=8)
    arguments.add_argument("--prompts", type=int, default=96, help="of each round, four answers each")
    arguments.add_argument("--hang-s", type=float, default=60.0, help="seconds after which a worker hangs")
    arguments.add_argument("--seed", type=int, default=0, help="of the strikes")
    arguments.add_argument(
        "--directory", type=Path, help="a folder to keep; a finished unbroken run is used again"
    )
    options = arguments.parse_args()

    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        root = (options.directory or Path(temporary)).absolute()
        root.mkdir(parents=True, exist_ok=True)
        line = run_both(root, options)
    print_line(line, *[] if is_same(line) else ["the runs differ, or strikes were missed"])


if __name__ == "__main__":
    main()
