"""The reports of runs, each as one HTML file: a template of html/ for each kind, filled with what a run's files hold.

files --> their reader, of an online run also its rounds and policies --> template, which calls the modules of `TOOLS` --> page
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ultramed_rl.kinds import KINDS
from ultramed_rl.report import contents, figures, timeline
from ultramed_rl.report.answers import Pair, ScoredAnswer, by_prompt, some_files
from ultramed_rl.report.figures import short
from ultramed_rl.report.online_run import OnlineRun, Round, read_online_run
from ultramed_rl.store.atomic import write_text
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.store.shards import rows_of, shard_files
from ultramed_rl.tracking.page import clean_text, page_html, script_json

NAME = "report.html"
HTML = Path(__file__).with_name("html")
MOST_BYTES = 5_000_000
FOOTER = (
    "Made by ultramed_rl from the files of the run's folder. For research only: no model output on this page is medical advice, "
    "and a reward is no measure of medical correctness."
)
MOST_PROMPTS = 400
MOST_CHARACTERS = 6000  # of one text
_SAMPLE_BYTES = 2_000_000
_SLACK = 50_000
Sample = dict[str, Any]  # with short keys, since every sample repeats them: see html/samples.js
# The modules that templates call.
TOOLS: dict[str, Any] = {"contents": contents, "figures": figures, "timeline": timeline}


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write a run's report; returns its path, by default RUN_DIR/report.html. The file is under 5 MB.

    Runs that are under way and those of older versions are readable too; what they lack is said.

    Raises:
        ValueError: no run in `run_dir`, or files that are not what was written.
        RuntimeError: the disk is full.
    """
    files = RunReader.of(Path(run_dir))
    template = KINDS[files.type].report if files.type in KINDS else "counts.html.jinja"
    page = partial(page_html, HTML / template, files.name, footer=FOOTER, files=files, **TOOLS)
    if files.type == "online":
        run = read_online_run(files)
        page = partial(page, subtitle=_subtitle(run), run=run)
        html = page(samples=None)
        if run.rounds:  # samples fill the room that is left
            room = min(_SAMPLE_BYTES, MOST_BYTES - _SLACK - len(html.encode("utf-8")))
            html = page(samples=draw_samples(run, room))
    else:
        html = page(subtitle=f"{files.type} · seed {files.setting('run.seed', '?')}")
    output = files.path / NAME if output is None else Path(output)
    write_text(output, html)
    return output


def _subtitle(run: OnlineRun) -> str:
    setting = run.files.setting
    return " · ".join(
        [
            "online run",
            f"{len(run.rounds)} of {setting('run.rounds', '?')} rounds",
            str(setting("policy.path", "?")),
            f"objective {setting('objective.type', '?')}",
            f"{len({answer.prompt_id for answer in run.policies[0].answers})} held-out prompts",
            f"seed {setting('run.seed', '?')}",
        ]
    )


def draw_samples(run: OnlineRun, room: int) -> list[Sample]:
    """A seeded sample of prompts with all of their answers: as many as `room` bytes of JSON hold, at most 400, from all rounds
    alike; by round, in its order."""
    seed = int(run.files.setting("run.seed", 0))
    each = max(1, MOST_PROMPTS // max(1, len(run.rounds)))
    taken: list[tuple[int, int, Sample]] = []
    for turn in zip_longest(*(_draw(one, each, seed) for one in run.rounds)):
        for sample in filter(None, turn):
            room -= len(script_json(sample[2])) + 1
            if room >= 0:
                taken.append(sample)
    return [sample for *_, sample in sorted(taken, key=lambda one: one[:2])]


def _draw(one: Round, most: int, seed: int) -> Iterator[tuple[int, int, Sample]]:
    """(round, place, sample) of a round's prompts in an order of the seed."""
    groups = by_prompt(one.ranked)
    places = list(range(len(groups)))
    random.Random(f"{seed} {one.index}").shuffle(places)
    wanted = {groups[place][0].prompt_id for place in places[:most]}
    kept = ["prompt_id", "sample", "text", "details"]
    answers = rows_of(some_files(one.path / "scored.parquet"), wanted, kept)
    rows = {(row["prompt_id"], row["sample"]): row for row in answers}
    asked = rows_of(shard_files(one.path / "prompts.parquet"), wanted, ["prompt_id", "messages", "kind"])
    prompts = {row["prompt_id"]: row for row in asked}
    pairs = {pair.chosen[0]: pair for pair in one.pairs}
    for place in places[:most]:
        prompt_id = groups[place][0].prompt_id
        prompt, pair = prompts.get(prompt_id, {"messages": [], "kind": ""}), pairs.get(prompt_id)
        ranked = sorted(groups[place], key=lambda a: (-a.reward if a.scored else math.inf, a.sample))
        sample = {
            "r": one.index,
            "k": _cut(str(prompt["kind"])),
            "p": [[_cut(str(m["role"])), _cut(str(m["content"]))] for m in prompt["messages"]],
            "g": short(pair.margin) if pair else None,
            "c": [_answer(answer, rows.get(answer.key, {}), pair) for answer in ranked],
        }
        yield one.index, place, sample


def _answer(answer: ScoredAnswer, row: dict[str, Any], pair: Pair | None) -> Sample:
    marks = {} if pair is None else {pair.rejected: "rejected", pair.chosen: "chosen"}
    notes = {
        "reference answer of the data": not answer.sampled,
        "cut off": answer.cut,
        "all thought": answer.all_thought,
        "empty": answer.empty and not answer.all_thought,
        "refusal": answer.refusal,
    }
    return {
        "t": _cut(row.get("text", "")),
        "v": short(answer.reward),
        "n": answer.tokens,
        "m": marks.get(answer.key, ""),
        "o": [note for note, holds in notes.items() if holds],
        "d": [[_cut(name), short(value)] for name, value in row.get("details") or ()],
    }


def _cut(text: str) -> str:
    shown = clean_text(text)
    if len(shown) <= MOST_CHARACTERS:
        return shown
    return f"{shown[:MOST_CHARACTERS]}… [{len(shown) - MOST_CHARACTERS:,} more characters]"
