"""A seeded sample of a run's prompts with all of their answers, small enough for a page, and the browser that shows it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ultramed_rl.report.online_run import Answer, OnlineRun, Pair, Round, by_prompt, read_prompts, read_texts
from ultramed_rl.tracking.page import Parts, Widget, clean_text, script_json

MOST_PROMPTS = 400
MOST_CHARACTERS = 6000  # of one text
Sample = dict[str, Any]  # with short keys, since every sample repeats them: see html/samples.js


def samples(run: OnlineRun, room: int) -> Parts:
    """As many prompts as `room` bytes of JSON hold, at most 400, from all rounds alike; by round, in its order. Filters,
    searches and pages through them; a page holds one."""
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
    texts = read_texts(one.path / "scored.parquet", wanted)
    prompts = read_prompts(one.path / "prompts.parquet", wanted)
    pairs = {pair.chosen[0]: pair for pair in one.pairs}
    for place in places[:most]:
        prompt_id = groups[place][0].prompt_id
        prompt, pair = prompts.get(prompt_id, {"messages": [], "kind": ""}), pairs.get(prompt_id)
        ranked = sorted(groups[place], key=lambda a: (-a.reward if a.scored else math.inf, a.sample))
        sample = {
            "r": one.index,
            "k": _cut(str(prompt["kind"])),
            "p": [[_cut(str(m["role"])), _cut(str(m["content"]))] for m in prompt["messages"]],
            "g": _rounded(pair.margin) if pair else None,
            "c": [_answer(answer, texts.get(answer.key, ""), pair) for answer in ranked],
        }
        yield one.index, place, sample


def _answer(answer: Answer, text: str, pair: Pair | None) -> Sample:
    marks = {} if pair is None else {pair.rejected: "rejected", pair.chosen: "chosen"}
    notes = {
        "reference answer of the data": not answer.sampled,
        "cut off": answer.cut,
        "empty": answer.empty,
        "refusal": answer.refusal,
    }
    return {
        "t": _cut(text),
        "v": _rounded(answer.reward) if answer.scored else None,
        "n": answer.tokens,
        "m": marks.get(answer.key, ""),
        "o": [note for note, holds in notes.items() if holds],
    }


def _cut(text: str) -> str:
    shown = clean_text(text)
    if len(shown) <= MOST_CHARACTERS:
        return shown
    return f"{shown[:MOST_CHARACTERS]}… [{len(shown) - MOST_CHARACTERS:,} more characters]"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
