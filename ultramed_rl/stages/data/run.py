"""A data stage from its config to its files; what is finished is read back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ultramed_rl.cluster.inputs import describe_inputs
from ultramed_rl.config.factory_stage import DataConfig
from ultramed_rl.stages.data.inputs import DataWork, identity_of
from ultramed_rl.stages.data.steps import carry_out
from ultramed_rl.store import ArtifactFolder, WorkDirectory
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
from ultramed_rl.tracking import Progress, Tracker, watched

OUTPUT = "records"
_PARTS = {"exemplars_from": "solved examples", "judged": "judged rows", "labels": "labels"}


def make_data(config: DataConfig, *, resume: bool = False, retry_failed: bool = False) -> Path:
    """Carry the step over all rows; returns the folder of its files, RUN/records.

    A killed stage goes on with `resume` where it stopped: no record is lost, doubled or paid for twice.

    Args:
        retry_failed: of a finished stage too, do the dead letters again.

    Raises:
        ValueError: bad input, with value, rule and fix.
        RuntimeError: a budget is used up, or more records failed than `max_failed_share` allows; what is done
            is kept.
    """
    progress = Progress()
    resume = resume or retry_failed
    with WorkDirectory.open(config, resume, lambda: describe_inputs(config)) as store, watched(store.path):
        artifacts = ArtifactFolder(store.path)
        if retry_failed:
            artifacts.discard(OUTPUT)
        finished = artifacts.finished(OUTPUT)

        identity = identity_of(config)  # reads all of the input: once

        def compute(folder: Path) -> dict[str, float]:
            work = DataWork(config, identity, store.path / "work", folder, progress, retry_failed)
            counts = {name: float(count) for name, count in carry_out(work).items()}
            write_data_card(config, store.path, folder, counts)
            return counts

        folder, counts = artifacts.phase_directory(OUTPUT, compute, *identity)
        if not finished:
            with Tracker(store, config) as tracker:
                tracker.log(counts, step=0, kind="data")
        progress.say(f"{config.run.name} ({config.step.type}): {render_counts(counts)}: {folder}")
        return folder


def render_counts(counts: Mapping[str, float]) -> str:
    """What a stage counted, in a line; what didn't happen is left out."""
    return ", ".join(f"{count:g} {name}" for name, count in counts.items() if count) or "nothing"


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
