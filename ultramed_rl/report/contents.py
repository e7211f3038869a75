"""What reports show of a run's files: numbers of artifacts, curves, times, memory; results against each other; the config against
the nearest shipped preset, environment, versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import ultramed_rl
from ultramed_rl.config import ConfigError, load_any
from ultramed_rl.config.base import flatten
from ultramed_rl.config.recipe import load_recipe, stage_config
from ultramed_rl.evaluation.statistics import Interval
from ultramed_rl.kinds import KINDS
from ultramed_rl.report.online_run import phase_words
from ultramed_rl.store.artifacts import read_numbers
from ultramed_rl.store.run_reader import Metrics, RunReader
from ultramed_rl.tracking.tables import DASH, spoken, stars

_NOT_CURVES = {"time", "step", "step_index", "evaluation_index", "samples", "tokens", "flops", "seconds"}
_FIRST = ("loss", "accuracy", "margin", "perplexity", "reward_mean")
_MOST_CURVES = 10
Scores = Mapping[str, Sequence[tuple[Mapping[str, Any], float | None]]]  # by policy, with p-values
Settings = dict[str, Any]
ABSENT = "(not there)"  # of a key that one side lacks
_OWN = ("type", "run.name", "run.directory", "tracking.")  # what makes no difference to what a run is


def numbers_of(files: RunReader, *artifacts: str) -> Metrics | None:
    """The numbers that these artifacts were finished with, by their names; None where there is none of them."""
    made = [manifest for name, manifest in files.manifests().items() if name in artifacts]
    numbers = {name: n for one in made for name, n in read_numbers(one.get("metrics", {})).items()}
    return numbers if made else None


def curve_names(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, str], int]:
    """The metrics of logged rows that are shown as curves, each with its words, the most telling first; and how many are not."""
    names = {name for row in rows for name in row} - _NOT_CURVES
    ordered = [name for name in _FIRST if name in names] + sorted(names - set(_FIRST))
    return {name: spoken(name) for name in ordered[:_MOST_CURVES]}, max(0, len(ordered) - _MOST_CURVES)


def series_of(
    rows: Sequence[Mapping[str, Any]], index: str, name: str
) -> tuple[list[Any], list[float]] | None:
    """A metric by an index, where rows have numbers of it."""
    points = [(row[index], float(row[name])) for row in rows if isinstance(row.get(name), int | float)]
    return ([x for x, _ in points], [y for _, y in points]) if points else None


def artifact_times(files: RunReader) -> tuple[list[tuple[str, float, str]], float]:
    """Each finished artifact, its seconds and when it was finished; and the seconds between the first and the last logged row."""
    rows = []
    for name, manifest in files.manifests().items():
        created = str(manifest.get("created", DASH)).replace("T", " ").removesuffix("+00:00")
        rows.append((phase_words(name), float(manifest["seconds"]), created))
    logged = [float(row["time"]) for row in files.metrics if isinstance(row.get("time"), int | float)]
    return rows, max(logged, default=0.0) - min(logged, default=0.0)


def peak_memory(files: RunReader) -> list[tuple[str, float]]:
    """GiB that each role held at most, the largest first."""
    peaks: dict[str, float] = {}
    for row in files.metrics:
        for name, value in row.items():
            if name.startswith("peak_memory_") and isinstance(value, int | float):
                role = name.removeprefix("peak_memory_")
                peaks[role] = max(peaks.get(role, 0.0), value / 2**30)
    return sorted(peaks.items(), key=lambda item: -item[1])


# -- evaluations -------------------------------------------------------------------------------------------


def clear_differences(results: Mapping[str, Any], name: str) -> Iterator[str]:
    """What a policy's intervals and tests against the first leave no doubt of."""
    rewards = results.get("rewards", {}).get(name)
    if rewards and (sign := _change(rewards).sign):
        yield f"{'higher' if sign > 0 else 'lower'} held-out reward ({rewards['change']:+.2f})"
    for row in results.get("comparisons", {}).get(name, []):
        # By McNemar's test where there is one, else by the interval.
        p_value = row.get("p_value")
        if row["low"] > 0 or row["high"] < 0 if p_value is None else p_value < 0.05:
            way = "better" if row["change"] > 0 else "worse"
            yield f"{way} on {row['task']}, {row['protocol']} ({row['change']:+.1%})"


def reward_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "interval": _change(row), **row} for name, row in results["rewards"].items()]


def _change(row: Mapping[str, Any]) -> Interval:
    return Interval(row["change"], row["change_low"], row["change_high"])


def benchmark_scores(results: Mapping[str, Any]) -> Scores:
    """The benchmarks of each policy, with the p-values of their tests against the first."""
    scores = {}
    for policy, of_policy in results["benchmarks"].items():
        tests = results.get("comparisons", {}).get(policy, [])
        p_values = {(row["task"], row["protocol"]): row.get("p_value") for row in tests}
        scores[policy] = [(one, p_values.get((one["task"], one["protocol"]))) for one in of_policy["results"]]
    return scores


def score_rows(scores: Scores) -> list[list[str]]:
    """For each task and protocol its name, then every policy's accuracy with the mark of its difference and its interval."""
    cells: dict[str, dict[str, str]] = {}
    for policy, results in scores.items():
        for result, p_value in results:
            score = result["score"]
            name = f"{result['task']}, {result['protocol']} ({score['items']})"
            shown = f"{score['accuracy']:.1%}{stars(p_value)} ({score['low']:.0%} to {score['high']:.0%})"
            cells.setdefault(name, {})[policy] = shown
    return [[name, *(row.get(policy, DASH) for policy in scores)] for name, row in cells.items()]


def subset_rows(results: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Interval]]:
    """A reward benchmark's subsets, and the accuracy of those that have one."""
    subsets = results["subsets"]
    counts = {"ties": 0, "non_finite": 0, "too_long": 0}
    known = {n: Interval(s["accuracy"], s["low"], s["high"]) for n, s in subsets.items() if "accuracy" in s}
    return [{**counts, "name": name, **subset} for name, subset in subsets.items()], known


# -- what was run and where --------------------------------------------------------------------------------


def nearest_preset(files: RunReader) -> tuple[list[tuple[str, str, str]], str]:
    """How a run's config differs, as of `compare_settings`, from the nearest shipped preset of its kind, or from the defaults;
    and what that is, or nothing where there is neither."""
    kind, own = str(files.config.get("type", "online")), flatten(files.config)
    folder = Path(ultramed_rl.__file__).parents[1] / "configs"
    differences = [
        (compare_settings(flatten(preset), own), f"configs/{path.relative_to(folder)}{name}")
        for path in sorted(folder.rglob("*.yaml"))
        for name, preset in _read(path)
        if preset.get("type", "online") == kind
    ]
    if not differences and kind in KINDS:
        defaults = flatten(KINDS[kind].config_class.model_construct().model_dump(mode="json"))
        lines = [line for line in compare_settings(defaults, own) if line[0] in defaults]
        differences = [(lines, "the defaults")]
    return min(differences, key=lambda difference: len(difference[0]), default=([], ""))


def compare_settings(before: Settings, after: Settings) -> list[tuple[str, str, str]]:
    """(key, before, after) of every dotted key whose values differ; names, places and tracking aside. A key that one side
    lacks is `ABSENT` there; that is no difference where the other has null."""
    return [
        (key, shown(before.get(key, ABSENT)), shown(after.get(key, ABSENT)))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(_OWN)
    ]


@cache
def _read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """A preset, or a recipe's stages each by its name; nothing where it is no config of this version."""
    try:
        return [("", load_any(path).to_mapping())]
    except (ConfigError, OSError):
        pass
    try:
        recipe = load_recipe(path)
        return [(f", stage {name}", stage_config(recipe, name, {}).to_mapping()) for name in recipe.stages]
    except (ConfigError, OSError):
        return []


def config_text(files: RunReader) -> str:
    return yaml.safe_dump(files.config, sort_keys=False, allow_unicode=True)


def environment_rows(described: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Machine first, then packages."""
    memory, unknown = described.get("memory_gib"), "unknown: not run from a source tree"
    return [
        ("commit of ultramed_rl (+ changed)", str(described.get("commit", unknown))),
        ("python", shown(described.get("python"))),
        ("system", shown(described.get("system"))),
        ("CPUs", shown(described.get("cpus"))),
        ("memory", DASH if memory is None else f"{memory} GiB"),
        ("GPUs", "\n".join(map(str, described.get("gpus", []))) or "none"),
        *((str(name), str(version)) for name, version in described.get("packages", {}).items()),
    ]


def shown(value: Any) -> str:
    """A setting's value in one line, as YAML has it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
