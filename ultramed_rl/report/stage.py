"""Reports of stages: a verdict, the curves of metrics.jsonl, evaluation tables, counts, time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.report.figures import interval_figure
from ultramed_rl.report.health import curve_parts, memory, phase_words
from ultramed_rl.report.words import DASH, MARKS, duration, marked, number, percent, spoken, stars
from ultramed_rl.store.artifacts import read_numbers
from ultramed_rl.store.run_reader import Metrics, RunReader
from ultramed_rl.tracking.page import Callout, Facts, Note, PageSection, PageTable, Part, Parts

_NOT_CURVES = {"time", "step", "step_index", "evaluation_index", "samples", "tokens", "flops", "seconds"}
_FIRST = ("loss", "accuracy", "margin", "perplexity", "reward_mean")
_MOST_CURVES = 10
_UNFINISHED = Callout("plain", "This evaluation is not finished.")


def training_sections(files: RunReader) -> Iterator[PageSection]:
    """Of a stage that trains a model."""
    model = files.manifests().get("model")
    figures = read_numbers(model["metrics"]) if model else None
    top: list[Part] = [training_verdict(files, figures)]
    if figures is not None:
        words = {"samples": "Samples", "steps": "Steps", "tokens_per_second": "Tokens a second"}
        known = {
            words[name]: value for name, value in figures.items() if name in words and math.isfinite(value)
        }
        top.append(Facts([(what, number(value, ",.0f"), "") for what, value in known.items()]))
    yield PageSection("", top)
    for kind, heading, axis in (("evaluation", "Held-out data", "steps taken"), ("step", "Training", "step")):
        rows = files.rows(kind)
        names = {name for row in rows for name in row} - _NOT_CURVES
        ordered = [name for name in _FIRST if name in names] + sorted(names - set(_FIRST))
        curves = {name: spoken(name) for name in ordered[:_MOST_CURVES]}
        parts = list(curve_parts(rows, curves, f"{kind}_index", axis))
        left = len(ordered) - len(curves)
        if parts and left:
            parts.append(Note(f"{left} more metrics are in metrics.jsonl."))
        if parts:
            yield PageSection(heading, parts)
    if figures is not None:
        note = Note("start_held_out: before the first step. held_out: of the weights that were kept.")
        yield PageSection("Figures", [_table("Figure", figures), note])
    yield from _counts(files, "data")
    yield time_section(files)
    yield PageSection("Memory", list(memory(files)))


def training_verdict(files: RunReader, figures: Metrics | None) -> Callout:
    """Whether the held-out loss fell. It is one number on one set: no interval is known."""
    if figures is None:
        steps = len(files.rows("step"))
        return Callout("plain", f"This stage has no model yet; {steps} steps are logged.")
    first, last = figures.get("start_held_out_loss", math.nan), figures.get("held_out_loss", math.nan)
    if math.isnan(first) or math.isnan(last):
        taken = f"{figures.get('steps', 0):.0f} steps"
        return Callout("plain", f"The model is trained: {taken}, no held-out data to judge it by.")
    moved = "fell" if last < first else "did not fall"
    change = f"The held-out loss {moved}: {first:.3f} before, {last:.3f} for the weights that were kept."
    lines = []
    if (accuracy := figures.get("held_out_accuracy")) is not None:
        before = figures.get("start_held_out_accuracy", math.nan)
        lines.append(f"Held-out accuracy: {before:.1%} before, {accuracy:.1%} now.")
    count = len(files.rows("evaluation"))
    lines.append(f"{count} evaluations; samples' losses are not kept, so that no interval can be given.")
    return Callout("good" if last < first else "bad", change, lines)


def counting_sections(files: RunReader) -> Iterator[PageSection]:
    """Of a data stage, or of contrasts: what was counted."""
    made = {name: manifest for name, manifest in files.manifests().items() if name in ("records", "pairs")}
    if not made:
        lines = ["Its counts appear when it is."]
        yield PageSection("", [Callout("plain", "This stage is not finished.", lines)])
        return
    manifest = next(iter(made.values()))
    counts = read_numbers(manifest.get("metrics", {}))
    words = ", ".join(f"{count:g} {spoken(name)}" for name, count in counts.items() if count) or "nothing"
    rows = f": {manifest['rows']:,} rows." if manifest.get("rows") is not None else "."
    heading = f"Finished in {duration(manifest['seconds'])}{rows}"
    yield PageSection("", [Callout("plain", heading, [words] if counts else [])])
    if (files.path / "records" / "report.html").is_file():
        yield PageSection(
            "Data report", ["The step's own report is records/report.html in the run's folder."]
        )
    yield from _counts(files, *made)
    yield time_section(files)


def evaluate_sections(files: RunReader) -> Iterator[PageSection]:
    """Of a comparison of policies: the verdict in words, then the tables."""
    results = files.json("results.json")
    yield PageSection("", [_UNFINISHED if results is None else evaluation_verdict(results)])
    results = results or {}
    if results.get("rewards"):
        rows = [
            (
                name,
                number(row.get("reward_mean"), ".2f"),
                marked(Interval(row["change"], row["change_low"], row["change_high"])),
                percent(row.get("win_rate")),
                number(row.get("length_mean"), ".1f"),
                percent(row.get("empty_share"), 1),
                percent(row.get("finished_share"), 1),
            )
            for name, row in results["rewards"].items()
        ]
        columns = ("Policy", "reward", "change from the first (95%)", "wins", "tokens", "empty", "ended")
        note = Note("* the 95% interval of the paired bootstrap does not hold 0.")
        yield PageSection("Held-out prompts", [PageTable(columns, rows), note])
    if results.get("benchmarks"):
        scores = {}
        for policy, of_policy in results["benchmarks"].items():
            tests = results.get("comparisons", {}).get(policy, [])
            p_values = {(row["task"], row["protocol"]): row.get("p_value") for row in tests}
            scores[policy] = [
                (one, p_values.get((one["task"], one["protocol"]))) for one in of_policy["results"]
            ]
        note = Note(f"Accuracy with Wilson's 95% interval, marks against {next(iter(scores))}. {MARKS}")
        yield PageSection("Benchmarks", [score_table(scores), note])
    yield time_section(files)


def evaluation_verdict(results: Mapping[str, Any]) -> Callout:
    """How each policy compares with the first: what its intervals and tests leave no doubt of, and no more."""
    first, *others = results["policies"]
    if not others:
        heading = f"One policy was evaluated: {first}."
        return Callout("plain", heading, ["There is nothing to compare it with."])
    lines = []
    for name in others:
        clear = []
        rewards = results.get("rewards", {}).get(name)
        if rewards and (rewards["change_low"] > 0 or rewards["change_high"] < 0):
            way = "higher" if rewards["change"] > 0 else "lower"
            clear.append(f"{way} held-out reward ({rewards['change']:+.2f})")
        for row in results.get("comparisons", {}).get(name, []):
            # By McNemar's test where there is one, else by the interval.
            p_value = row.get("p_value")
            if row["low"] > 0 or row["high"] < 0 if p_value is None else p_value < 0.05:
                way = "better" if row["change"] > 0 else "worse"
                clear.append(f"{way} on {row['task']}, {row['protocol']} ({row['change']:+.1%})")
        lines.append(f"{name}: {'; '.join(clear) or 'no measurable difference on anything asked'}.")
    return Callout("plain", f"Compared with {first}", lines)


def reward_bench_sections(files: RunReader) -> Iterator[PageSection]:
    """Of a reward model on known pairs: accuracy by subset, and the averages."""
    results = files.json("reward_bench.json")
    if results is None:
        yield PageSection("", [_UNFINISHED])
    else:
        said = []
        for name, average in results["averages"].items():
            missing = len(average.get("missing") or [])
            without = f", without {missing} of its parts" if missing else ""
            said.append(f"{name}: {percent(average['accuracy'], 1)}{without}.")
        heading = f"{results['pairs']:,} pairs were judged by {results['model']}."
        yield PageSection("", [Callout("plain", heading, said)])
        yield PageSection("Accuracy", list(_subsets(results["subsets"])))
    yield time_section(files)


def _subsets(subsets: Mapping[str, Mapping[str, Any]]) -> Parts:
    known = {name: row for name, row in subsets.items() if "accuracy" in row}
    if known:
        points = {name: Interval(row["accuracy"], row["low"], row["high"]) for name, row in known.items()}
        figure = interval_figure({"accuracy": points}, "accuracy", 300, shares=True)
        figure.update_traces(mode="markers")
        yield figure
    rows = [
        (
            name,
            str(row["pairs"]),
            _score_words(row, None) if name in known else DASH,
            *(str(row.get(count, 0)) for count in ("ties", "non_finite", "too_long")),
        )
        for name, row in subsets.items()
    ]
    yield PageTable(("Subset", "pairs", "accuracy (95%)", "ties", "not finite", "too long"), rows)
    yield Note(
        "Wilson's 95% intervals; a tie counts a half, and a score that is no number is wrong. Chance is 50%."
    )


def score_table(scores: Mapping[str, Sequence[tuple[Mapping[str, Any], float | None]]]) -> PageTable:
    """A row for each task and protocol, a column for each policy with its results and their p-values."""
    cells: dict[str, dict[str, str]] = {}
    for policy, results in scores.items():
        for result, p_value in results:
            name = f"{result['task']}, {result['protocol']} ({result['score']['items']})"
            cells.setdefault(name, {})[policy] = _score_words(result["score"], p_value)
    rows = [(name, *(row.get(policy, DASH) for policy in scores)) for name, row in cells.items()]
    return PageTable(("Task", *scores), rows)


def _score_words(score: Mapping[str, Any], p_value: float | None) -> str:
    """An accuracy, its interval and the mark of its difference."""
    low, high = percent(score["low"]), percent(score["high"])
    return f"{percent(score['accuracy'], 1)}{stars(p_value)} ({low} to {high})"


def time_section(files: RunReader) -> PageSection:
    """Seconds of each artifact."""
    rows = []
    for name, manifest in files.manifests().items():
        created = str(manifest.get("created", DASH)).replace("T", " ").removesuffix("+00:00")
        rows.append((phase_words(name), duration(float(manifest["seconds"])), created))
    table = PageTable(("Artifact", "took", "finished"), rows) if rows else "Nothing is finished yet."
    logged = [float(row["time"]) for row in files.metrics if isinstance(row.get("time"), int | float)]
    took = max(logged, default=0.0) - min(logged, default=0.0)
    span = [f"From the first logged line to the last: {duration(took)}."] if took >= 1 else []
    return PageSection("Time", [table, *span])


def _counts(files: RunReader, *names: str) -> list[PageSection]:
    """The counts of artifacts that have some."""
    made = files.manifests()
    counts: Metrics = {}
    for name in names:
        counts |= read_numbers(made.get(name, {}).get("metrics", {}))
    return [PageSection("Counts", [_table("What", counts)])] if counts else []


def _table(what: str, values: Metrics) -> PageTable:
    return PageTable(
        (what, "value"), [(spoken(name), number(value, ",.5g")) for name, value in values.items()]
    )
