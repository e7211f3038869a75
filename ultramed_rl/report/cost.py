"""Sections on training itself and what it took: losses, seconds by phase, rates, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from ultramed_rl.report.figures import Axes, line_figure, stacked_figure
from ultramed_rl.report.online_run import OnlineRun
from ultramed_rl.report.words import duration, number, percent
from ultramed_rl.store.run_reader import Metrics, RunReader
from ultramed_rl.tracking.page import Heading, Note, PageTable, Part, Section

_PHASES = {
    "completions": "generate",
    "scored": "score",
    "pairs": "pair",
    "reference": "reference logprobs",
    "checkpoint": "train and save",
    "reference_model": "average the reference",
    "evaluation": "evaluate",
    "reward_model": "train the reward model",
    "prompts": "choose prompts",
}
_CURVES = {
    "loss": "Loss",
    "accuracy": "Implicit accuracy: the share of pairs whose chosen side the policy prefers",
    "implicit_margin": "Implicit margin",
    "grad_norm": "Gradient norm before clipping",
    "learning_rate": "Learning rate",
}
_RATES = {"completions": "generate", "scored": "score", "reference": "reference", "training": "train"}


def training_section(run: OnlineRun) -> Section | None:
    """What every optimizer step logged; None where none did."""
    rows = run.files.rows("step")
    parts = curve_parts(rows, _CURVES, "step_index", "optimizer step of the run")
    note = Note("Every point is one step on its own batch of pairs, so that curves are rough.")
    return Section("Training", (*parts, note)) if parts else None


def curve_parts(
    rows: Sequence[Mapping[str, Any]], curves: Mapping[str, str], index: str, axis: str
) -> list[Part]:
    """A heading and a line for each curve that has numbers."""
    parts: list[Part] = []
    for name, words in curves.items():
        points = [(row[index], row[name]) for row in rows if isinstance(row.get(name), int | float)]
        if points:
            xs, ys = [x for x, _ in points], [float(y) for _, y in points]
            parts += [Heading(words), line_figure({name: (xs, ys)}, Axes(axis, "", 240))]
    return parts


def time_section(run: OnlineRun) -> Section:
    """Seconds by phase and round, and rates."""
    phases = {"before round 0": run.files.seconds("initial")}
    for one in run.rounds:
        sync = one.number("sync_seconds")  # the transfer of weights, which is no phase
        phases[one.label] = one.seconds | ({"send weights": sync} if math.isfinite(sync) else {})
    phases = {label: seconds for label, seconds in phases.items() if seconds}
    figure, parts = phase_figure(phases)
    note = Note(
        "Seconds that each phase took when it was computed; what a resumed run read back counts as it took at first. Starting "
        "Ray, engines and ranks is not in it."
    )
    columns = ("Tokens a second", *_RATES.values(), "training MFU", "time")
    rates = [
        (
            one.label,
            *(number(one.number(f"tokens_per_second_{name}"), ",.0f") for name in _RATES),
            percent(one.number("mfu"), 1),
            duration(one.number("seconds")),
        )
        for one in run.rounds
    ]
    explained = Note(
        "MFU: the model's FLOPs a second as a share of a matrix multiplication's rate, measured on this device before "
        "training; on shared CPU cores it may pass 100%."
    )
    totals = {name: sum(values) for name, values in parts.items()}
    shares = tuple(
        (name, duration(total), percent(total / sum(totals.values())))
        for name, total in sorted(totals.items(), key=lambda item: -item[1])
        if total >= 0.05
    )
    tables = PageTable(("Phase", "seconds in all", "share"), shares), PageTable(columns, tuple(rates))
    return Section("Time and utilisation", (figure, note, *tables, explained))


def phase_figure(phases: Mapping[str, Metrics]) -> tuple[go.Figure, dict[str, list[float]]]:
    """Bars of seconds by phase, one for each label, and the same by the phase's words."""
    names = list(dict.fromkeys(name for seconds in phases.values() for name in seconds))
    parts = {phase_words(name): [seconds.get(name, 0.0) for seconds in phases.values()] for name in names}
    return stacked_figure(list(phases), parts, Axes("seconds", "")), parts


def phase_words(name: str) -> str:
    """A phase's name as people say it."""
    return _PHASES.get(name, name.replace("_", " ").replace("-", " "))


def memory_section(files: RunReader) -> Section:
    """Peak memory of each role; of the attempt that used most, where a run was resumed."""
    peaks: dict[str, float] = {}
    for row in files.metrics:
        for name, value in row.items():
            if name.startswith("peak_memory_") and isinstance(value, int | float):
                role = name.removeprefix("peak_memory_")
                peaks[role] = max(peaks.get(role, 0.0), float(value))
    if not peaks:
        return Section("Memory", ("This run has logged no peak memory; online runs do at their end.",))
    rows = tuple(
        (role, f"{value / 2**30:.2f}") for role, value in sorted(peaks.items(), key=lambda item: -item[1])
    )
    device = files.setting("cluster.device", "cuda")
    room = files.setting("cluster.device_memory_gib")
    held = "resident memory of its process" if device == "cpu" else "memory of its GPU"
    has = f" A device has {room:g} GiB by the config (cluster.device_memory_gib)." if room else ""
    note = Note(f"The most that any worker of a role held ({held}).{has}")
    return Section("Memory", (PageTable(("Role", "peak GiB"), rows), note))
