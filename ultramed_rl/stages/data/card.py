"""The card of a data stage's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ultramed_rl.config.factory_stage import DataConfig
from ultramed_rl.store.cards import (
    DataFacts,
    count_sets,
    data_card,
    earlier_steps,
    made_from,
    read_versions,
    split_files,
    write_card,
)

_PARTS = {"exemplars_from": "solved examples", "judged": "judged rows", "labels": "labels"}


def write_data_card(config: DataConfig, run: Path, folder: Path, counts: Mapping[str, float]) -> None:
    """README.md beside the rows, before the folder is digested."""
    inputs = [made_from("input", uri) for uri in config.input]
    inputs += [made_from(_PARTS[key], uri) for key, uri in config.further_inputs.items()]
    files = split_files(folder, "test" if config.step.type == "bench" else "train")
    facts = DataFacts(
        counts=counts,
        inputs=inputs,
        versions=read_versions(run),
        earlier=earlier_steps(config.input),
        sets=count_sets(folder, files.values()),
        files=files,
    )
    write_card(folder, data_card(config, facts))
