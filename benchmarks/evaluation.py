"""How fast are benchmarks by likelihood? Items/s of our engine against lm-evaluation-harness's own backend.

    python benchmarks/evaluation.py --items 1011

Both sides evaluate the same items of MMLU's medical part (SmolLM2-135M-Instruct, float32), from items to
accuracy, models loaded before; in turn, each in a process of its own. lm-eval runs at the fastest of --batches,
found on the first --probe items. The last line is JSON; both sides' answers are compared in it, and if one in a hundred
differs the exit status is 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from agreement import MODEL, items_of
from harness import load_peer, run_peer, write_docs
from line import add_spread, compare_sides, print_line

TASK, PEER = "mmlu_medical", "mmlu_anatomy"


def ours(count: int, turn: Connection) -> None:
    """The product's rollout worker, outside Ray: items to token ids to logprobs to outcomes."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    from ultramed_rl.actors.rollout import EngineArguments, RolloutWorker
    from ultramed_rl.actors.work import WorkBatch
    from ultramed_rl.config.cluster import RolloutGroup
    from ultramed_rl.evaluation.results import grade_likelihoods
    from ultramed_rl.evaluation.suite import Question, encode_options
    from ultramed_rl.evaluation.tasks import find_task
    from ultramed_rl.models.files import resolve_model
    from ultramed_rl.models.tokenizer import load_tokenizer
    from ultramed_rl.records import OptionRequest

    worker = RolloutWorker(0)
    group = RolloutGroup(enforce_eager=True, kv_cache_gib=1.0)
    how = ("cpu", "float32", 2048, group, "shared_memory", False)
    worker.start(EngineArguments(resolve_model(MODEL), *how), None, 0)
    tokenizer, task = load_tokenizer(MODEL), find_task(TASK)
    questions = [Question(task, item, 0, ()) for item in items_of(TASK, None)[:count]]

    def evaluate(asked: int) -> list[int]:
        some = questions[:asked]
        requests = [OptionRequest(q.question_id, *encode_options(tokenizer, q)) for q in some]
        found = dict(worker.work(WorkBatch([(request.question_id, request) for request in requests])).done)
        outcomes = grade_likelihoods(some, [found[q.question_id] for q in some])
        return [ord(outcome.given[0]) - ord("A") for outcome in outcomes]

    turn.send("ready")
    while (asked := turn.recv()) is not None:
        worker.llm.reset_prefix_cache()  # items that were asked before are asked anew
        started = time.perf_counter()
        answers = evaluate(asked)
        turn.send((time.perf_counter() - started, answers))


def peer(turn: Connection) -> None:
    """lm-eval with its own task, prompts and transformers backend, its model loaded once."""
    from ultramed_rl.models.files import resolve_model

    model = load_peer(resolve_model(MODEL), "float32")
    items = items_of(TASK, None)
    turn.send("ready")
    with tempfile.TemporaryDirectory() as folder:
        while (asked := turn.recv()) is not None:
            count, batch = asked
            docs = write_docs(PEER, items[:count], Path(folder) / f"{count}.jsonl")
            started = time.perf_counter()
            answers = run_peer(PEER, docs, model, batch).predictions
            turn.send((time.perf_counter() - started, answers))


def ask(turn: Connection, what: Any) -> tuple[float, list[int]]:
    turn.send(what)
    seconds, answers = turn.recv()
    return seconds, answers


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--items", type=int, default=1011)
    arguments.add_argument("--repeats", type=int, default=1)
    arguments.add_argument("--probe", type=int, default=96, help="items by which lm-eval's batch is chosen")
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    add_spread(arguments, 1.25)
    options = arguments.parse_args()
    os.environ.update(OMP_NUM_THREADS=str(os.cpu_count()), TOKENIZERS_PARALLELISM="true")

    context = multiprocessing.get_context("spawn")
    (our_turn, theirs), (peer_turn, other) = context.Pipe(), context.Pipe()
    context.Process(target=ours, args=(options.items, theirs), daemon=True).start()
    assert our_turn.recv() == "ready"
    context.Process(target=peer, args=(other,), daemon=True).start()
    assert peer_turn.recv() == "ready"

    ask(our_turn, options.probe)  # warm-ups that aren't measured
    ask(peer_turn, (options.probe, options.batches[0]))
    probes = {batch: ask(peer_turn, (options.probe, batch))[0] for batch in options.batches}
    batch = min(probes, key=lambda size: probes[size])
    print("lm-eval by batch:", {size: round(options.probe / s, 2) for size, s in probes.items()}, flush=True)
    seconds: dict[str, list[float]] = {"ours": [], "lm-eval": []}
    answers: dict[str, list[int]] = {}
    for _ in range(options.repeats):
        for name, turn, what in (
            ("ours", our_turn, options.items),
            ("lm-eval", peer_turn, (options.items, batch)),
        ):
            spent, answers[name] = ask(turn, what)
            seconds[name].append(spent)
            print(f"{name}: {spent:.1f} s", flush=True)
    our_turn.send(None)
    peer_turn.send(None)

    rates = {name: [options.items / one for one in spent] for name, spent in seconds.items()}
    same = sum(a == b for a, b in zip(answers["ours"], answers["lm-eval"], strict=True))
    line = {
        "benchmark": "evaluation",
        **compare_sides(rates, options.spread),
        "unit": "items/s",
        "peer_name": f"lm-evaluation-harness, transformers, its best batch ({batch})",
        "items": options.items,
        "agreement": round(same / options.items, 5),
        "work": f"{options.items} of MMLU's medical items by likelihood; {same / options.items:.1%} of the answers the same",
    }
    print_line(line, *["answers differ"] * (same < 0.99 * options.items))


if __name__ == "__main__":
    main()
