"""The report of one run as one HTML file.

files --> online run --> sections ... samples ... sections --> page    (a stage: its figures, in a simpler form)
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ultramed_rl.kinds import KINDS, load
from ultramed_rl.report import health, outcome, setup
from ultramed_rl.report.figures import short
from ultramed_rl.report.online_run import (
    OnlineRun,
    Pair,
    Round,
    ScoredAnswer,
    by_prompt,
    read_online_run,
    rows_of,
)
from ultramed_rl.report.stage import counting_sections
from ultramed_rl.report.timeline import timeline_parts
from ultramed_rl.store.atomic import write_whole
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.tracking.page import PageSection, Parts, Widget, clean_text, page_html, script_json

NAME = "report.html"
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
# What is told of an online run before its samples and after them: a section without parts is left out.
_BEFORE = {
    "Reward": outcome.rewards,
    "Wins over the start": outcome.wins,
    "Reward against KL": outcome.frontier,
    "Length": health.lengths,
    "Refused, empty and cut answers": health.endings,
    "Preference pairs": health.pairs,
    "Evaluation": outcome.evaluation,
}
_AFTER = {"Training": health.training, "Time and utilisation": health.times}


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write a run's report; returns its path, by default RUN_DIR/report.html. The file is under 5 MB.

    Online runs have it in full, stages in a simpler form. Runs that are under way and those of older versions are
    readable too; what they lack is said.

    Raises:
        ValueError: no run in `run_dir`, or files that are not what was written.
        RuntimeError: the disk is full.
    """
    files = RunReader.of(Path(run_dir))
    output = files.path / NAME if output is None else Path(output)
    if files.type == "online":
        return write_page(online_html(files), output)
    sections = load(KINDS[files.type].report) if files.type in KINDS else counting_sections
    subtitle = f"{files.type} · seed {files.setting('run.seed', '?')}"
    return write_page(page_html(files.name, [*sections(files), *_setup(files)], subtitle, FOOTER), output)


def write_page(html: str, output: Path) -> Path:
    """Write a page whole, and the folder that it is in."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, lambda temporary: temporary.write_text(html, encoding="utf-8"))
    return output


def online_html(files: RunReader) -> str:
    """The page of an online run; samples fill the room that the rest leaves."""
    run, setting = read_online_run(files), files.setting
    subtitle = " · ".join(
        [
            "online run",
            f"{len(run.rounds)} of {setting('run.rounds', '?')} rounds",
            str(setting("policy.path", "?")),
            f"objective {setting('objective.type', '?')}",
            f"{len({answer.prompt_id for answer in run.policies[0].answers})} held-out prompts",
            f"seed {setting('run.seed', '?')}",
        ]
    )
    before, after = {"": outcome.summary(run)}, {"Timeline": timeline_parts(files)}
    if run.rounds:
        before |= {heading: parts(run) for heading, parts in _BEFORE.items()}
        after = {heading: parts(run) for heading, parts in _AFTER.items()} | after
        after["Memory"] = health.memory(files)
    first, last = filled_sections(before), [*filled_sections(after), *_setup(files)]
    if run.rounds:
        taken = len(page_html(files.name, [*first, *last], subtitle, FOOTER).encode("utf-8"))
        room = min(_SAMPLE_BYTES, MOST_BYTES - _SLACK - taken)
        first += filled_sections({"Samples": _samples(run, room)})
    return page_html(files.name, [*first, *last], subtitle, FOOTER)


def _setup(files: RunReader) -> list[PageSection]:
    return filled_sections({"Config": setup.config(files), "Environment": setup.environment(files)})


def filled_sections(parts: Mapping[str, Parts]) -> list[PageSection]:
    """Sections by their headings; one without parts is left out."""
    sections = [PageSection(heading, list(of_section)) for heading, of_section in parts.items()]
    return [section for section in sections if section.parts]


def _samples(run: OnlineRun, room: int) -> Parts:
    """A seeded sample of prompts with all of their answers, and the browser that filters, searches and pages through them: as
    many as `room` bytes of JSON hold, at most 400, from all rounds alike; by round, in its order."""
    seed = int(run.files.setting("run.seed", 0))
    each = max(1, MOST_PROMPTS // max(1, len(run.rounds)))
    taken: list[tuple[int, int, Sample]] = []
    for turn in zip_longest(*(_draw(one, each, seed) for one in run.rounds)):
        for sample in filter(None, turn):
            room -= len(script_json(sample[2])) + 1
            if room >= 0:
                taken.append(sample)
    shown = [sample for *_, sample in sorted(taken, key=lambda one: one[:2])]
    prompts = sum(round(one.metrics.get("pairs", 0.0) + sum(one.dropped.values())) for one in run.rounds)
    yield (
        f"All {prompts:,} prompts of all rounds, with every answer."
        if len(shown) == prompts
        else f"{len(shown):,} of {prompts:,} prompts, drawn at random with the run's seed, as many of each "
        "round as the page has room for; every answer of each. All of them are in rounds/*/scored.parquet."
    )
    html = Path(__file__).with_name("html")
    markup, script = ((html / f"samples.{kind}").read_text(encoding="utf-8") for kind in ("html", "js"))
    yield Widget("samples", markup, script, shown)


def _draw(one: Round, most: int, seed: int) -> Iterator[tuple[int, int, Sample]]:
    """(round, place, sample) of a round's prompts in an order of the seed."""
    groups = by_prompt(one.answers)
    places = list(range(len(groups)))
    random.Random(f"{seed} {one.index}").shuffle(places)
    wanted = {groups[place][0].prompt_id for place in places[:most]}
    answers = rows_of(one.path / "scored.parquet", ["prompt_id", "sample", "text"], wanted, some=True)
    texts = {(row["prompt_id"], row["sample"]): row["text"] for row in answers}
    asked = rows_of(one.path / "prompts.parquet", ["prompt_id", "messages", "kind"], wanted)
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
            "c": [_answer(answer, texts.get(answer.key, ""), pair) for answer in ranked],
        }
        yield one.index, place, sample


def _answer(answer: ScoredAnswer, text: str, pair: Pair | None) -> Sample:
    marks = {} if pair is None else {pair.rejected: "rejected", pair.chosen: "chosen"}
    notes = {
        "reference answer of the data": not answer.sampled,
        "cut off": answer.cut,
        "empty": answer.empty,
        "refusal": answer.refusal,
    }
    return {
        "t": _cut(text),
        "v": short(answer.reward),
        "n": answer.tokens,
        "m": marks.get(answer.key, ""),
        "o": [note for note, holds in notes.items() if holds],
    }


def _cut(text: str) -> str:
    shown = clean_text(text)
    if len(shown) <= MOST_CHARACTERS:
        return shown
    return f"{shown[:MOST_CHARACTERS]}… [{len(shown) - MOST_CHARACTERS:,} more characters]"
