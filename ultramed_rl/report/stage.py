"""Reports of stages: a verdict, the curves of metrics.jsonl, evaluation tables, counts, time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ultramed_rl.kinds import KINDS, load
from ultramed_rl.report.cost import curve_parts, memory_section, phase_words
from ultramed_rl.report.run_files import Metrics, RunFiles, manifests
from ultramed_rl.report.stage_tables import bench_sections, evaluation_sections, table_of
from ultramed_rl.report.words import DASH, duration, number, spoken
from ultramed_rl.store.artifacts import read_numbers
from ultramed_rl.tracking.page_parts import Callout, Fact, Facts, Note, PageTable, Part, Section

_NOT_CURVES = {"time", "step", "step_index", "evaluation_index", "samples", "tokens", "flops", "seconds"}
_FIRST = ("loss", "accuracy", "margin", "perplexity", "reward_mean")
_MOST_CURVES = 10


def stage_sections(files: RunFiles) -> list[Section]:
    """All but config and environment."""
    report = load(KINDS[files.type].report) if files.type in KINDS else counting_sections
    sections: list[Section] = report(files)
    return sections


def evaluate_sections(files: RunFiles) -> list[Section]:
    """Of a comparison of policies."""
    return [*evaluation_sections(files), time_section(files)]


def reward_bench_sections(files: RunFiles) -> list[Section]:
    """Of a reward model on known pairs."""
    return [*bench_sections(files), time_section(files)]


def training_sections(files: RunFiles) -> list[Section]:
    """Of a stage that trains a model."""
    model = manifests(files.path).get("model")
    figures = read_numbers(model["metrics"]) if model else None
    parts: list[Part] = [training_verdict(files, figures)]
    if figures is not None:
        parts.append(_training_facts(figures))
    sections = [Section("", tuple(parts)), *_curve_sections(files)]
    if figures is not None:
        note = Note("start_held_out: before the first step. held_out: of the weights that were kept.")
        sections.append(
            Section("Figures", (table_of("Figure", {spoken(k): v for k, v in figures.items()}), note))
        )
    return [*sections, *count_section(files, "data"), time_section(files), memory_section(files)]


def training_verdict(files: RunFiles, figures: Metrics | None) -> Callout:
    """Whether the held-out loss fell. It is one number on one set: no interval is known."""
    rows = files.rows("evaluation")
    if figures is None:
        steps = len(files.rows("step"))
        return Callout("plain", f"This stage has no model yet; {steps} steps are logged.")
    first, last = figures.get("start_held_out_loss", math.nan), figures.get("held_out_loss", math.nan)
    if math.isnan(first) or math.isnan(last):
        heading = (
            f"The model is trained: {figures.get('steps', 0):.0f} steps, no held-out data to judge it by."
        )
        return Callout("plain", heading)
    moved = "fell" if last < first else "did not fall"
    change = f"The held-out loss {moved}: {first:.3f} before, {last:.3f} for the weights that were kept."
    accuracy = figures.get("held_out_accuracy")
    extra = (
        ()
        if accuracy is None
        else (
            f"Held-out accuracy: {figures.get('start_held_out_accuracy', math.nan):.1%} before, {accuracy:.1%} now.",
        )
    )
    how = f"{len(rows)} evaluations; samples' losses are not kept, so that no interval can be given."
    return Callout("good" if last < first else "bad", change, (*extra, how))


def counting_sections(files: RunFiles) -> list[Section]:
    """Of a data stage, or of contrasts: what was counted."""
    made = {name: found for name, found in manifests(files.path).items() if name in ("records", "pairs")}
    if not made:
        return [
            Section(
                "", (Callout("plain", "This stage is not finished.", ("Its counts appear when it is.",)),)
            )
        ]
    manifest = next(iter(made.values()))
    counts = read_numbers(manifest.get("metrics", {}))
    rows = manifest.get("rows")
    heading = f"Finished in {duration(manifest['seconds'])}" + (
        f": {rows:,} rows." if rows is not None else "."
    )
    sections = [Section("", (Callout("plain", heading, (count_words(counts),) if counts else ()),))]
    page = files.path / "records" / "report.html"
    if page.is_file():
        sections.append(
            Section("Data report", ("The step's own report is records/report.html in the run's folder.",))
        )
    return [*sections, *count_section(files, *made), time_section(files)]


def count_section(files: RunFiles, *names: str) -> list[Section]:
    """The counts of artifacts that have some."""
    found = manifests(files.path)
    counts = {
        k: v
        for name in names
        if name in found
        for k, v in read_numbers(found[name].get("metrics", {})).items()
    }
    if not counts:
        return []
    return [Section("Counts", (table_of("What", {spoken(name): value for name, value in counts.items()}),))]


def count_words(counts: Mapping[str, float]) -> str:
    """Counts in a line; what didn't happen is left out."""
    return ", ".join(f"{count:g} {spoken(name)}" for name, count in counts.items() if count) or "nothing"


def time_section(files: RunFiles) -> Section:
    """Seconds of each artifact."""
    rows = tuple(
        (phase_words(name), duration(float(found["seconds"])), _created(found))
        for name, found in manifests(files.path).items()
    )
    logged = [float(row["time"]) for row in files.metrics if isinstance(row.get("time"), int | float)]
    span = (
        f"From the first logged line to the last: {duration(max(logged) - min(logged))}."
        if max(logged, default=0.0) - min(logged, default=0.0) >= 1
        else ""
    )
    parts: list[Part] = (
        [PageTable(("Artifact", "took", "finished"), rows)] if rows else ["Nothing is finished yet."]
    )
    return Section("Time", (*parts, *([span] if span else [])))


def _curve_sections(files: RunFiles) -> list[Section]:
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


def _training_facts(figures: Metrics) -> Facts:
    facts = [
        Fact("Samples", number(figures.get("samples"), ",.0f")),
        Fact("Steps", number(figures.get("steps"), ",.0f")),
        Fact("Tokens a second", number(figures.get("tokens_per_second"), ",.0f")),
    ]
    return Facts(tuple(fact for fact in facts if fact.value != DASH))


def _created(manifest: Mapping[str, Any]) -> str:
    return str(manifest.get("created", DASH)).replace("T", " ").removesuffix("+00:00")
