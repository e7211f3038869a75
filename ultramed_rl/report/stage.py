"""Reports of stages: a verdict, the curves of metrics.jsonl, evaluation tables, counts, time."""

from __future__ import annotations

import math

from ultramed_rl.kinds import KINDS, load
from ultramed_rl.report.cost import curve_parts, memory_section, phase_words
from ultramed_rl.report.evaluations import bench_sections, evaluation_sections, table_of
from ultramed_rl.report.words import DASH, duration, number, spoken
from ultramed_rl.store.artifacts import read_numbers
from ultramed_rl.store.run_reader import Metrics, RunReader
from ultramed_rl.tracking.page import Callout, Fact, Facts, Note, PageTable, Part, Section

_NOT_CURVES = {"time", "step", "step_index", "evaluation_index", "samples", "tokens", "flops", "seconds"}
_FIRST = ("loss", "accuracy", "margin", "perplexity", "reward_mean")
_MOST_CURVES = 10


def stage_sections(files: RunReader) -> list[Section]:
    """All but config and environment."""
    report = load(KINDS[files.type].report) if files.type in KINDS else counting_sections
    sections: list[Section] = report(files)
    return sections


def evaluate_sections(files: RunReader) -> list[Section]:
    """Of a comparison of policies."""
    return [*evaluation_sections(files), time_section(files)]


def reward_bench_sections(files: RunReader) -> list[Section]:
    """Of a reward model on known pairs."""
    return [*bench_sections(files), time_section(files)]


def training_sections(files: RunReader) -> list[Section]:
    """Of a stage that trains a model."""
    model = files.manifests().get("model")
    figures = read_numbers(model["metrics"]) if model else None
    top: list[Part] = [training_verdict(files, figures)]
    if figures is not None:
        names = {"samples": "Samples", "steps": "Steps", "tokens_per_second": "Tokens a second"}
        known = {names[name]: figures[name] for name in names if math.isfinite(figures.get(name, math.nan))}
        top.append(Facts(tuple(Fact(name, number(value, ",.0f")) for name, value in known.items())))
    sections = [Section("", tuple(top)), *_curve_sections(files)]
    if figures is not None:
        table = table_of("Figure", {spoken(name): value for name, value in figures.items()})
        note = Note("start_held_out: before the first step. held_out: of the weights that were kept.")
        sections.append(Section("Figures", (table, note)))
    return [*sections, *count_section(files, "data"), time_section(files), memory_section(files)]


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
    return Callout("good" if last < first else "bad", change, tuple(lines))


def counting_sections(files: RunReader) -> list[Section]:
    """Of a data stage, or of contrasts: what was counted."""
    made = {name: manifest for name, manifest in files.manifests().items() if name in ("records", "pairs")}
    if not made:
        lines = ("Its counts appear when it is.",)
        return [Section("", (Callout("plain", "This stage is not finished.", lines),))]
    manifest = next(iter(made.values()))
    counts = read_numbers(manifest.get("metrics", {}))
    words = ", ".join(f"{count:g} {spoken(name)}" for name, count in counts.items() if count) or "nothing"
    rows = f": {manifest['rows']:,} rows." if manifest.get("rows") is not None else "."
    heading = f"Finished in {duration(manifest['seconds'])}{rows}"
    sections = [Section("", (Callout("plain", heading, (words,) if counts else ()),))]
    if (files.path / "records" / "report.html").is_file():
        text = "The step's own report is records/report.html in the run's folder."
        sections.append(Section("Data report", (text,)))
    return [*sections, *count_section(files, *made), time_section(files)]


def count_section(files: RunReader, *names: str) -> list[Section]:
    """The counts of artifacts that have some."""
    made = files.manifests()
    counts: Metrics = {}
    for name in names:
        counts |= read_numbers(made.get(name, {}).get("metrics", {}))
    table = table_of("What", {spoken(name): value for name, value in counts.items()})
    return [Section("Counts", (table,))] if counts else []


def time_section(files: RunReader) -> Section:
    """Seconds of each artifact."""
    rows = []
    for name, manifest in files.manifests().items():
        created = str(manifest.get("created", DASH)).replace("T", " ").removesuffix("+00:00")
        rows.append((phase_words(name), duration(float(manifest["seconds"])), created))
    table = PageTable(("Artifact", "took", "finished"), tuple(rows)) if rows else "Nothing is finished yet."
    logged = [float(row["time"]) for row in files.metrics if isinstance(row.get("time"), int | float)]
    took = max(logged, default=0.0) - min(logged, default=0.0)
    span = [f"From the first logged line to the last: {duration(took)}."] if took >= 1 else []
    return Section("Time", (table, *span))


def _curve_sections(files: RunReader) -> list[Section]:
    sections = []
    for kind, heading, axis in (("evaluation", "Held-out data", "steps taken"), ("step", "Training", "step")):
        rows = files.rows(kind)
        names = {name for row in rows for name in row} - _NOT_CURVES
        ordered = [name for name in _FIRST if name in names] + sorted(names - set(_FIRST))
        curves = {name: spoken(name) for name in ordered[:_MOST_CURVES]}
        parts = curve_parts(rows, curves, f"{kind}_index", axis)
        if parts:
            left = len(ordered) - len(curves)
            note = [Note(f"{left} more metrics are in metrics.jsonl.")] if left > 0 else []
            sections.append(Section(heading, (*parts, *note)))
    return sections
