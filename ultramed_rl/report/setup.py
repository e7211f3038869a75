"""Sections on what was run and where: config, environment, versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from ultramed_rl.report.presets import nearest_difference
from ultramed_rl.report.words import DASH
from ultramed_rl.store.run_reader import RunReader
from ultramed_rl.tracking.page import Note, PageTable, Part, Section, Text


def config_section(files: RunReader) -> Section:
    """The config's difference from the nearest preset, and the whole of it folded away."""
    whole = Text(
        "The whole config, defaults included",
        yaml.safe_dump(dict(files.config), sort_keys=False, allow_unicode=True),
    )
    difference = nearest_difference(files.config)
    if difference is None:
        return Section("Config", ("No preset of this type is at hand to compare with.", whole))
    parts: list[Part] = []
    if difference.lines:
        count = len(difference.lines)
        parts += [
            f"{count} setting{'s' if count > 1 else ''} differ{'' if count > 1 else 's'} from {difference.against}.",
            PageTable(
                ("Setting", "there", "this run"),
                tuple((key, shown(before), shown(after)) for key, before, after in difference.lines),
                words=True,
            ),
        ]
    else:
        parts.append(f"No setting differs from {difference.against}.")
    note = Note(
        "The nearest shipped preset of the same type; run.name, run.directory and tracking aside. (not there): a key of another "
        "choice, or of another version of ultramed_rl."
    )
    return Section("Config", (*parts, note, whole))


def environment_section(files: RunReader) -> Section:
    """Versions and devices, as the run recorded them; else those of now, and the page says so."""
    found, recorded = files.environment()
    when = found.get("time", "an unknown time")
    said = (
        f"Recorded by the run at its first start ({when}), on the machine that started it."
        if recorded
        else "The run recorded no environment. This is the machine that made this report, which may be another."
    )
    table = PageTable(("What", "value"), tuple(environment_rows(found)), words=True)
    return Section("Environment", (said, table))


def environment_rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Machine first, then packages."""
    memory = found.get("memory_gib")
    rows = [
        (
            "commit of ultramed_rl (+ changed)",
            str(found.get("commit", "unknown: not run from a source tree")),
        ),
        ("python", shown(found.get("python"))),
        ("system", shown(found.get("system"))),
        ("CPUs", shown(found.get("cpus"))),
        ("memory", DASH if memory is None else f"{memory} GiB"),
        ("GPUs", "\n".join(map(str, found.get("gpus", []))) or "none"),
    ]
    packages = found.get("packages", {})
    return rows + [(str(name), str(version)) for name, version in packages.items()]


def shown(value: Any) -> str:
    """A setting's value in one line, as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
