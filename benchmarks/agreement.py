"""Do we find what lm-evaluation-harness finds? Item by item on whole benchmarks, by likelihood, in float32.

    python benchmarks/agreement.py --tasks mmlu_medical,pubmedqa,medqa,medmcqa

Ours is `ultramed-rl evaluate` as a user runs it; the peer is lm-eval with its own task definitions and its own
transformers backend on the same rows (`harness.py`). What either side found is kept in --folder and read back.
The last line is JSON: the smallest agreement, and each task's agreement, accuracies and largest gap between two
logprobs. `ratio` is the smallest agreement over the 0.995 that is wanted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness import load_peer, run_peer, write_docs
from line import print_line

MODEL = "offline://smollm2-135m-instruct"
WANTED = 0.995
PEERS = {
    "medqa": "medqa_4options",
    "medmcqa": "medmcqa",
    "pubmedqa": "pubmedqa",
    "mmlu_medical": "mmlu_anatomy",
}


def items_of(task: str, limit: int | None) -> list[Any]:
    """The items that our evaluation asks."""
    from ultramed_rl.evaluation.suite import load_items
    from ultramed_rl.evaluation.tasks import find_task

    found = find_task(task)
    return list(load_items(found, found.offline, limit=limit, seed=42).items)


def peer_side(task: str, limit: int | None, batch: int, folder: Path) -> dict[str, Any]:
    """lm-eval's predictions; computed once."""
    kept = folder / f"peer-{task}-{limit}.json"
    if not kept.is_file():
        from ultramed_rl.models.files import resolve_model

        docs = write_docs(PEERS[task], items_of(task, limit), folder / f"{task}-{limit}.jsonl")
        found = run_peer(PEERS[task], docs, load_peer(resolve_model(MODEL), "float32"), batch)
        kept.write_text(json.dumps(asdict(found)))
        print(f"lm-eval, {task}: {found.seconds:.0f} s, accuracy {found.accuracy:.4f}", flush=True)
    result: dict[str, Any] = json.loads(kept.read_text())
    return result


def our_side(tasks: list[str], limit: int | None, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Our logprobs by task and item, out of the artifacts that the command leaves."""
    from ultramed_rl.records import OptionLogprobs
    from ultramed_rl.store.tables import read_records

    name = f"ours-{'-'.join(tasks)}-{limit}"
    command = [sys.executable, "-m", "ultramed_rl.cli", "evaluate", "--model", f"smollm={MODEL}", "--offline"]
    command += ["--tasks", ",".join(tasks), "--protocol", "likelihood", "--name", name, "--device", "cpu"]
    command += ["--limit", str(limit)] if limit else []
    command += [f"run.directory={folder}", "tracking.wandb=disabled", "policy.precision=float32"]
    if (folder / name / "config.yaml").is_file():
        command.append("--resume")
    started = time.perf_counter()
    subprocess.run(command, check=True)
    print(f"ours: {time.perf_counter() - started:.0f} s", flush=True)
    found: dict[str, dict[str, list[float]]] = {task: {} for task in tasks}
    for scored in read_records(OptionLogprobs, folder / name / "benchmark-likelihood-smollm.parquet"):
        task, item, _ = scored.question_id.rsplit("/", 2)
        found[task][item] = list(scored.logprobs)
    return found


def compare(
    task: str, limit: int | None, ours: dict[str, list[float]], peer: dict[str, Any]
) -> dict[str, Any]:
    """One task's row."""
    items = items_of(task, limit)
    keys = [ord(item.answer) - ord("A") for item in items]
    logprobs = [ours[item.item_id] for item in items]
    chosen = [values.index(max(values)) for values in logprobs]
    same = sum(a == b for a, b in zip(chosen, peer["predictions"], strict=True))
    pairs = zip(logprobs, peer["loglikelihoods"], strict=True)
    gap = max(abs(a - b) for mine, theirs in pairs for a, b in zip(mine, theirs, strict=True))
    accuracy = sum(a == b for a, b in zip(chosen, keys, strict=True)) / len(items)
    return {
        "items": len(items),
        "agreement": round(same / len(items), 5),
        "ours": round(accuracy, 5),
        "lm_eval": round(peer["accuracy"], 5),
        "largest_logprob_gap": round(gap, 6),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--tasks", default=",".join(PEERS))
    arguments.add_argument("--limit", type=int, default=None, help="a seeded sample of each task")
    arguments.add_argument("--batch", type=int, default=16, help="lm-eval's")
    arguments.add_argument("--folder", type=Path, default=Path("runs/agreement"))
    arguments.add_argument("--peer-only", action="store_true", help="compute and keep lm-eval's side")
    options = arguments.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    tasks = options.tasks.split(",")
    peers = {task: peer_side(task, options.limit, options.batch, options.folder) for task in tasks}
    if options.peer_only:
        return
    ours = our_side(tasks, options.limit, options.folder)
    rows = {task: compare(task, options.limit, ours[task], peers[task]) for task in tasks}
    worst = min(row["agreement"] for row in rows.values())
    print_line(
        {
            "benchmark": "agreement",
            "ours": worst,
            "peer": 1.0,
            "ratio": round(worst / WANTED, 4),
            "unit": "of the answers",
            "peer_name": "lm-evaluation-harness",
            "accuracy_gap": max(abs(row["ours"] - row["lm_eval"]) for row in rows.values()),
            "tasks": rows,
            "work": f"every item of {len(rows)} benchmarks, the worst task's share of equal answers",
        }
    )


if __name__ == "__main__":
    main()
