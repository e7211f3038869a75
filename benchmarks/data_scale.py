"""Does cleaning cost the same per record at 410K instructions as at 10K, and how much memory does its driver need?

    python benchmarks/data_scale.py --sizes 10000 100000 410000

Synthetic judged instructions (`synthetic.py`) go through decontaminate, de-duplicate and pairs (8 candidates: 28
pairs) in blocks on Ray; vectors are hashed words, without a model. `ratio` is the time per record at the largest size
over the smallest, without starting Ray and reading the test sets. The paper's way is the peer of the search: a flat
L2 index, the one nearest item of each row, on one core, over the same vectors: how many times longer it takes, and
which part of its removals ours removes too. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from line import print_line
from synthetic import test_items, write_records
from turns import peak_bytes

from ultramed_rl.cluster.blocks import map_blocks, read_part
from ultramed_rl.cluster.connection import connect, disconnect
from ultramed_rl.config.cluster import Cluster
from ultramed_rl.config.factory import Decontaminate, Deduplicate
from ultramed_rl.config.factory_steps import Pairs
from ultramed_rl.data.factory.decontaminate import Decontaminator, NearItems
from ultramed_rl.data.factory.deduplicate import DuplicateKeys, find_duplicates
from ultramed_rl.data.factory.hashing import HashedEmbedder
from ultramed_rl.data.factory.judgements import read_judged
from ultramed_rl.data.factory.pair_rows import preference_rows
from ultramed_rl.data.likeness import NearRule, read_stem

ROWS = 2048  # of a block
RULES = Pairs(form="ranked")


def rank_pairs(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A ranked row for every record, which stands for all its pairs."""
    counts: Counter[str] = Counter()
    found = [row for one in rows for row in preference_rows(read_judged(one), RULES, counts)]
    lines = [json.dumps(row) for row in found]
    return pa.table({"row": lines, "pairs": pa.array([counts["pairs"] / len(rows)] * len(lines))})


def timed(seconds: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = work()
    seconds[name] = time.perf_counter() - started
    return result


def clean(size: int, folder: Path, search: Decontaminator, workers: int) -> dict[str, Any]:
    """All three stages on one size -> figures."""
    data, parts, seconds = folder / f"{size}.jsonl", folder / f"{size}.parts", dict[str, float]()
    mapped = partial(map_blocks, [data], identity=[], rows=ROWS, workers=workers)
    computed = time.process_time()
    removing = timed(seconds, "decontaminate", lambda: mapped(search, parts / "removed"))
    config = Deduplicate()
    keys = timed(seconds, "keys", lambda: mapped(DuplicateKeys(config), parts / "keys"))
    found = timed(seconds, "duplicates", lambda: find_duplicates([read_part(part) for part in keys], config))
    ranked = timed(seconds, "pairs", lambda: mapped(rank_pairs, parts / "pairs"))
    computed = time.process_time() - computed
    tables = [read_part(part) for part in removing]
    ids = {"item": [name for table in tables for name in table["record_id"].to_pylist()]}
    contaminated = Counter(
        f"{row['benchmark']} {row['rule']}" for table in tables for row in table.to_pylist()
    )
    ids["repeated"] = [one.record_id for one in found]
    pairs = sum(read_part(part)["pairs"].to_numpy().sum() for part in ranked)
    return {
        "records": size,
        "ms_per_record": round(1000 * sum(seconds.values()) / size, 4),
        "driver_cpu_ms_per_record": round(1000 * computed / size, 4),
        "seconds": {name: round(spent, 1) for name, spent in seconds.items()},
        "driver_gb": round(peak_bytes() / 1e9, 3),
        "pairs": int(pairs),
        "duplicates": dict(Counter(one.rule for one in found)),
        "contaminated": dict(sorted(contaminated.items())),
        **planted(data, ids),
    }


def planted(data: Path, ids: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Which part of each planted kind was found, and how many new records were removed."""
    total: Counter[str] = Counter()
    with data.open() as lines:
        for line in lines:
            total[json.loads(line)["id"].partition("-")[0]] += 1
    hits = {name: Counter(one.partition("-")[0] for one in found) for name, found in ids.items()}
    share = {kind: round(hits["repeated"][kind] / max(1, total[kind]), 4) for kind in ("exact", "near")}
    share["item"] = round(hits["item"]["item"] / max(1, total["item"]), 4)
    return {"planted_found": share, "new_removed": hits["repeated"]["new"] + hits["item"]["new"]}


# -- the paper's search ------------------------------------------------------------------------------------


def search_once(data: Path, count: int, threads: int, ours: bool, result: Any) -> None:
    """In a process of its own: vectors of rows and items, then only the search is timed -> (seconds, ids)."""
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before faiss is loaded
    import faiss

    with data.open() as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    embed, rule = HashedEmbedder(), NearRule()
    own = [read_stem(row["conversations"][0]["value"]) for row in rows]
    items = [
        stem for stem in (read_stem(item.text) for item in test_items()) if len(stem.words) >= rule.words
    ]
    vectors, targets = embed([stem.text for stem in own]), embed([stem.text for stem in items])
    lengths, theirs = (np.array([len(stem.key) for stem in stems]) for stems in (own, items))
    known = dict(zip((stem.text for stem in [*own, *items]), [*vectors, *targets], strict=True))
    near = NearItems(items, lambda texts: np.stack([known[text] for text in texts]), rule)
    started = time.perf_counter()
    if ours:
        blocks = (slice(first, first + ROWS) for first in range(0, len(rows), ROWS))
        found = {b.start + row for b in blocks for row, _, _ in near.pairs(own[b])}
    else:
        index = faiss.IndexFlatL2(targets.shape[1])
        index.add(targets)
        distances, nearest = (column[:, 0] for column in index.search(vectors, 1))
        gap, longer = np.abs(lengths - theirs[nearest]), np.maximum(lengths, theirs[nearest])
        found = set(np.flatnonzero((distances <= rule.squared_l2) & (gap <= rule.length * longer)).tolist())
    result.send((time.perf_counter() - started, [rows[row]["id"] for row in sorted(found)]))


def compare(data: Path, count: int, removed: set[str]) -> dict[str, Any]:
    """The paper's search on one core against ours on one core and on all."""
    context, cores = multiprocessing.get_context("spawn"), os.cpu_count() or 1
    runs = {"peer": (1, False), "ours_one_core": (1, True), "ours": (cores, True)}
    seconds, ids = dict[str, float](), dict[str, list[str]]()
    for name, (threads, ours) in runs.items():
        here, there = context.Pipe()
        context.Process(target=search_once, args=(data, count, threads, ours, there), daemon=True).start()
        seconds[name], ids[name] = here.recv()
    kept = [one for one in ids["peer"] if one in removed]
    assert ids["ours"] == ids["ours_one_core"], "the search depends on its threads"
    found = set(ids["peer"]) & set(ids["ours"])
    return {
        "search_rows": count,
        "search_seconds": {name: round(spent, 2) for name, spent in seconds.items()},
        "search_ratio": round(seconds["peer"] / seconds["ours"], 2),
        "search_ratio_one_core": round(seconds["peer"] / seconds["ours_one_core"], 2),
        "paper_removes": len(ids["peer"]),
        "search_recall": round(len(found) / max(1, len(ids["peer"])), 5),
        "recall": round(len(kept) / max(1, len(ids["peer"])), 5),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 410_000])
    arguments.add_argument("--workers", type=int, default=os.cpu_count(), help="0: without Ray")
    arguments.add_argument(
        "--peer-rows", type=int, default=40_000, help="rows that the paper's search is given"
    )
    arguments.add_argument(
        "--folder", type=Path, default=None, help="for the data, 5 GB at 410K; default: temporary"
    )
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, items, figures = Path(name), test_items(), []
        if options.workers:
            connect(Cluster(device="cpu", cpus_per_node=options.workers))
        search = Decontaminator(items, Decontaminate(), HashedEmbedder())
        for size in sorted({512, *options.sizes}):  # 512: a warm-up that isn't reported
            write_records(folder / f"{size}.jsonl", size, items, seed=size)
            found = clean(size, folder, search, options.workers)
            if size in options.sizes:
                figures.append(found)
                print(json.dumps(found), flush=True)
        disconnect()
        data = folder / f"{max(options.sizes)}.jsonl"
        removed = [
            read_part(part)["record_id"].to_pylist()
            for part in sorted(data.with_suffix(".parts").glob("removed/*.arrow"))
        ]
        peer = compare(
            data, min(options.peer_rows, max(options.sizes)), {one for part in removed for one in part}
        )
    small, large = figures[0], figures[-1]
    minutes = sum(large["seconds"].values()) / 60
    print_line(
        {
            "benchmark": "data_scale",
            "ours": large["ms_per_record"],
            "peer": small["ms_per_record"],
            "ratio": round(large["ms_per_record"] / small["ms_per_record"], 3),
            "unit": "ms/record",
            "peer_name": f"the same at {small['records']:,} records",
            "embedder": "hashed words, 512 numbers",
            "minutes": round(minutes, 2),
            "driver_gb": large["driver_gb"],
            "sizes": [one["records"] for one in figures],
            "search_peer": "faiss flat L2, k=1, one core",
            **peer,
            "work": f"{large['records']:,} records: decontaminate, de-duplicate and pairs in {minutes:.0f} minutes, driver {large['driver_gb']} GB",
        }
    )


if __name__ == "__main__":
    main()
