"""A reward bench out of test pairs: easy, hard, length, and pairs that people have labelled.

test pairs --> kind of each --> Human (labelled) > Length > Hard > Easy, up to each one's size --> rows with a subset

Medical RewardBench has these four and 777 pairs; how its pairs were told apart was not found. Assumed here:

- Easy: overall scores far apart, and ranks too.
- Hard: next ranks, and scores close together or equal.
- Length: the rejected answer is much longer than the chosen one, so that a model that rewards length gets it wrong.
- Human: pairs with a majority of human labels, whoever is right; people's choice is `chosen`, also over the judge's.

People get a sheet that doesn't give the judge's choice away:

pairs --> sheet.csv: pair_id, prompt, first, second --> people --> labels.csv: pair_id, preferred --> majority
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from ultramed_rl.config.factory_steps import Bench
from ultramed_rl.data.factory.step import Row
from ultramed_rl.data.sources import read_placed_rows
from ultramed_rl.learning.seeds import seeded_number

Side = Literal["chosen", "rejected"]
SUBSETS = ("Human", "Length", "Hard", "Easy")  # a pair goes to the first that has room: rare kinds first
_ROUNDING = 1e-9
SHEET_COLUMNS = ("pair_id", "prompt", "first", "second")
LABEL_COLUMNS = ("pair_id", "preferred")
PREFERRED = ("first", "second", "tie", "chosen", "rejected")


def build_bench(
    pairs: Iterable[Row], rules: Bench, counts: Counter[str], labels: Mapping[str, Side] | None = None
) -> list[Row]:
    """The bench's rows, subset by subset, with `subset` and `label_type` naming it and `id` the pair's own id.

    `ultramed-rl reward-bench` reads them as they are. Pairs of a subset are drawn by seed, at most `per_prompt` of
    one prompt over all subsets. Memory holds the test pairs that fit a subset.

    Args:
        pairs: rows of form `pairs` (see `pair_rows`), of the test split alone: nothing here can tell.
        counts: gains pairs, unfit (of no subset), and of each subset NAME_eligible, NAME and NAME_short (rows that
            lack to its size); overruled (pairs where people prefer the judge's rejected answer), unknown_labels (of
            no pair here).
        labels: what people prefer, by pair_id (see `read_labels`).

    Raises:
        ValueError: a row that isn't a pair of the factory, a pair_id given twice, or no pair that fits.
    """
    eligible = _sort_into_subsets(pairs, rules, counts, labels or {})
    used: Counter[str] = Counter()  # by prompt
    bench: dict[str, Row] = {}
    for subset in SUBSETS:
        size, before = getattr(rules.sizes, subset.lower()), len(bench)
        for name in sorted(eligible[subset], key=lambda name: seeded_number(rules.seed, "bench", name)):
            row = eligible[subset][name]
            if name in bench or used[row["prompt"]] >= rules.per_prompt:
                continue
            if len(bench) - before == size:
                break
            used[row["prompt"]] += 1
            counts["overruled"] += row["metadata"]["overruled"]
            bench[name] = {**row, "subset": subset, "label_type": subset}
        counts.update({subset: len(bench) - before, f"{subset}_short": size - len(bench) + before})
    if not bench:
        raise ValueError(
            f"bench: none of {counts['pairs']} pairs fits a subset; lower easy_gap or length_factor, raise hard_gap, "
            "or give the pairs of more test prompts"
        )
    return list(bench.values())


def pair_kinds(pair: Row, rules: Bench) -> list[str]:
    """The subsets that a pair fits by its scores, ranks and lengths: Length, and one of Hard and Easy, or none."""
    metadata = pair["metadata"]
    better, worse = metadata["scores"]
    first, second = metadata["ranks"]
    gap, ranks = better - worse, second - first
    words, other = (len(pair[side][-1]["content"].split()) for side in ("chosen", "rejected"))
    fits = {
        "Length": other >= rules.length_factor * words,
        "Hard": ranks == 1 and gap <= rules.hard_gap + _ROUNDING,
        "Easy": ranks >= rules.easy_ranks and gap >= rules.easy_gap - _ROUNDING,
    }
    return [subset for subset, fit in fits.items() if fit]


def pair_id(pair: Row) -> str:
    """The pair's own id. Raises ValueError: it isn't a pair of the factory."""
    metadata = pair.get("metadata")
    name = metadata.get("pair_id") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str) or not {"chosen", "rejected", "prompt"} <= pair.keys():
        raise ValueError(
            f"row {pair.get('prompt_id')!r:.60}: no pair of the factory (metadata {metadata!r:.60}); write the test "
            "split with pairs.form=pairs"
        )
    return name


def _sort_into_subsets(
    pairs: Iterable[Row], rules: Bench, counts: Counter[str], labels: Mapping[str, Side]
) -> dict[str, dict[str, Row]]:
    """By subset the pairs that fit it, by their ids; the sides exchanged where people prefer the rejected one."""
    eligible: dict[str, dict[str, Row]] = {subset: {} for subset in SUBSETS}
    seen: set[str] = set()
    counts.update(pairs=0, unfit=0, overruled=0)
    for pair in pairs:
        name = pair_id(pair)
        if name in seen:
            raise ValueError(f"pair {name!r:.80}: stands there twice; give each pair once")
        seen.add(name)
        overruled = labels.get(name) == "rejected"
        row = {**pair, "id": name, "metadata": {**pair["metadata"], "overruled": overruled}}
        if overruled:
            row |= {"chosen": pair["rejected"], "rejected": pair["chosen"]}
        subsets = ["Human"] if name in labels else pair_kinds(pair, rules)
        counts.update(pairs=1, unfit=int(not subsets))
        for subset in subsets:
            eligible[subset][name] = row
            counts[f"{subset}_eligible"] += 1
    counts["unknown_labels"] += len(labels.keys() - seen)
    return eligible


def sheet_rows(pairs: Iterable[Row], seed: int) -> Iterator[dict[str, str]]:
    """What a person is shown of each pair: SHEET_COLUMNS. Which side is first is drawn by the pair's id, so that
    `read_labels` with the same seed knows it again."""
    for pair in pairs:
        name = pair_id(pair)
        sides = _shown_sides(name, seed)
        texts = (pair["prompt"], *(pair[side][-1]["content"] for side in sides.values()))
        yield dict(zip(SHEET_COLUMNS, (name, *texts), strict=True))


def _shown_sides(name: str, seed: int) -> dict[str, Side]:
    """The sides of a pair as they stand on the sheet, first and second."""
    if seeded_number(seed, "sheet", name) % 2:
        return {"first": "chosen", "second": "rejected"}
    return {"first": "rejected", "second": "chosen"}


def read_labels(path: str | Path, seed: int, counts: Counter[str]) -> dict[str, Side]:
    """The preferred side of each pair that has a majority, by pair_id, from a CSV file.

    It has the columns pair_id and preferred, any others besides, and a row for each person and pair. `preferred` is
    first or second (of the sheet of this seed), chosen or rejected (of the pair), or tie. A tie is a vote for neither
    side: a side needs more votes than the other.

    Args:
        counts: gains labels (rows), labelled (pairs), conflicts (pairs whose people differ), undecided (pairs left
            out for want of a majority).

    Raises:
        ValueError: an unreadable file, one without these columns, or a row with another value.
    """
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for place, row in read_placed_rows(str(path)):
        if not {*LABEL_COLUMNS} <= {*row}:
            raise ValueError(
                f"{path}: its columns are {', '.join(row)}; labels need {' and '.join(LABEL_COLUMNS)}"
            )
        name, preferred = (str(row[column] or "").strip() for column in LABEL_COLUMNS)
        if not name or preferred.lower() not in PREFERRED:
            raise ValueError(
                f"{path}, {place}: pair_id={name!r:.60}, preferred={preferred!r:.20}; name a pair, and one of "
                f"{', '.join(PREFERRED)}"
            )
        votes[name][_shown_sides(name, seed).get(preferred.lower(), preferred.lower())] += 1
    majorities: dict[str, Side] = {
        name: "chosen" if vote["chosen"] > vote["rejected"] else "rejected"
        for name, vote in votes.items()
        if vote["chosen"] != vote["rejected"]
    }
    counts.update(
        labels=sum(vote.total() for vote in votes.values()),
        labelled=len(votes),
        conflicts=sum(len(vote) > 1 for vote in votes.values()),
        undecided=len(votes) - len(majorities),
    )
    return majorities
