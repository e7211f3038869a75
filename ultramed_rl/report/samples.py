"""A seeded sample of a run's prompts with all of their answers, small enough for a page, and the browser that shows it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ultramed_rl.report.answers import Answer, Key, PairAnswers, by_prompt, read_prompts, read_texts
from ultramed_rl.report.online_run import OnlineRun, Round
from ultramed_rl.tracking.page import Widget, clean_text, script_json

MOST_PROMPTS = 400
MOST_CHARACTERS = 6000  # of one text
Sample = dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """Prompts with their answers in the browser's own form, and of how many they are."""

    shown: tuple[Sample, ...]
    prompts: int

    @property
    def words(self) -> str:
        """How they were chosen."""
        if len(self.shown) == self.prompts:
            return f"All {self.prompts:,} prompts of all rounds, with every answer."
        return (
            f"{len(self.shown):,} of {self.prompts:,} prompts, drawn at random with the run's seed, as many of each "
            "round as the page has room for; every answer of each. All of them are in rounds/*/scored.parquet."
        )

    @property
    def browser(self) -> Widget:
        """Filters, searches and pages through them; a page holds one."""
        html = Path(__file__).with_name("html")
        markup, script = ((html / f"samples.{kind}").read_text(encoding="utf-8") for kind in ("html", "js"))
        return Widget("samples", markup, script, list(self.shown))


def choose_samples(run: OnlineRun, room: int) -> Samples:
    """As many prompts as `room` bytes of JSON hold, at most 400, from all rounds alike; by round, in its order."""
    seed = int(run.files.setting("run.seed", 0))
    each = max(1, MOST_PROMPTS // max(1, len(run.rounds)))
    drawn = [_draw(one, each, seed) for one in run.rounds]
    taken: list[tuple[int, int, Sample]] = []
    for sample in (sample for turn in zip_longest(*drawn) for sample in turn if sample is not None):
        room -= len(script_json(sample[2])) + 1
        if room < 0:
            break
        taken.append(sample)
    shown = tuple(sample for *_, sample in sorted(taken, key=lambda one: one[:2]))
    return Samples(shown, sum(one.asked for one in run.rounds))


def _draw(one: Round, most: int, seed: int) -> list[tuple[int, int, Sample]]:
    """(round, place, sample) of a round's prompts in an order of the seed."""
    groups = by_prompt(one.answers)
    places = list(range(len(groups)))
    random.Random(f"{seed} {one.index}").shuffle(places)
    wanted = {groups[place][0].prompt_id for place in places[:most]}
    texts, prompts = (
        read_texts(one.path / "scored.parquet", wanted),
        read_prompts(one.path / "prompts.parquet", wanted),
    )
    pairs = {pair.prompt_id: pair for pair in one.pairs}
    samples = []
    for place in places[:most]:
        group = groups[place]
        prompt_id = group[0].prompt_id
        prompt = prompts.get(prompt_id, {"messages": [], "kind": ""})
        samples.append((one.index, place, _sample(one.index, prompt, group, texts, pairs.get(prompt_id))))
    return samples


def _sample(
    index: int,
    prompt: dict[str, Any],
    group: Sequence[Answer],
    texts: dict[Key, str],
    pair: PairAnswers | None,
) -> Sample:
    """Short keys, since every sample repeats them; see html/samples.js."""
    messages = [[_cut(str(m["role"])), _cut(str(m["content"]))] for m in prompt["messages"]]
    ranked = sorted(group, key=lambda a: (-a.reward if a.scored else float("inf"), a.sample))
    return {
        "r": index,
        "k": _cut(str(prompt["kind"])),
        "p": messages,
        "g": _rounded(pair.margin) if pair else None,
        "c": [_answer(answer, texts.get(answer.key, ""), pair) for answer in ranked],
    }


def _answer(answer: Answer, text: str, pair: PairAnswers | None) -> Sample:
    mark = ""
    if pair is not None and answer.key == pair.chosen:
        mark = "chosen"
    elif pair is not None and answer.key == pair.rejected:
        mark = "rejected"
    notes = [
        *(["reference answer of the data"] if not answer.sampled else []),
        *(["cut off"] if answer.cut else []),
        *(["empty"] if answer.empty else []),
        *(["refusal"] if answer.refusal else []),
    ]
    reward = _rounded(answer.reward) if answer.scored else None
    return {"t": _cut(text), "v": reward, "n": answer.tokens, "m": mark, "o": notes}


def _cut(text: str) -> str:
    shown = clean_text(text)
    if len(shown) <= MOST_CHARACTERS:
        return shown
    return f"{shown[:MOST_CHARACTERS]}… [{len(shown) - MOST_CHARACTERS:,} more characters]"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
