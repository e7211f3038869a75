"""A stage handed over to OpenRLHF, with its data and its model in the same places as a native stage's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ultramed_rl.config.stages import StageConfig
from ultramed_rl.data.stage_data import Prepared
from ultramed_rl.stages.loop import write_stage_card
from ultramed_rl.stages.openrlhf.command import openrlhf_command, openrlhf_environment, states_directory
from ultramed_rl.stages.openrlhf.files import adopt_openrlhf, write_openrlhf_data
from ultramed_rl.store import StageDirectory
from ultramed_rl.store.atomic import remove
from ultramed_rl.tracking import Progress


def train_by_openrlhf(
    config: StageConfig, prepared: Prepared[Any], store: StageDirectory, progress: Progress
) -> tuple[Path, dict[str, float]]:
    """Write the rows that fit, train in a Ray job, keep the model. A killed job goes on from its own states."""

    def write(directory: Path) -> dict[str, float]:
        with progress.phase("prepare data", 1, "data sets") as bar:
            training = write_openrlhf_data(directory / "training.jsonl", prepared.training_rows(), config)
            held_out = 0
            if config.data.held_out or config.data.evaluation_sources:
                held_out = write_openrlhf_data(directory / "held_out.jsonl", prepared.held_out_rows(), config)
            bar.advance(1)
        return {"rows_training": training, "rows_held_out": held_out}

    what = json.dumps(config.data.model_dump(mode="json"), sort_keys=True)
    inputs = (what, config.model.path, config.model.max_length, config.run.seed)
    data, counts = store.artifacts.phase_directory("data", write, *inputs)
    held_out = data / "held_out.jsonl" if counts["rows_held_out"] else None
    output = store.path / "openrlhf"

    def train(directory: Path) -> dict[str, float]:
        submit_openrlhf(config, data / "training.jsonl", held_out, output)
        shutil.copytree(output, directory, dirs_exist_ok=True)
        write_stage_card(config, store, directory, counts)
        return counts

    path, metrics = store.artifacts.phase_directory("model", train)
    remove(output)
    remove(states_directory(output))
    return path, metrics


def submit_openrlhf(config: StageConfig, train_path: Path, held_out_path: Path | None, output: Path) -> None:
    """Train by OpenRLHF as a Ray job, its log on stdout, and make its checkpoint one that the rest reads.

    Raises:
        ValueError: a value that OpenRLHF cannot honour, or less data than one batch.
        RuntimeError: the job failed (with its id, its last lines and the fix), or its weights aren't finite.
    """
    from ultramed_rl.cluster.jobs import run_job

    train_path, output = train_path.resolve(), output.resolve()
    command = openrlhf_command(config, train_path, held_out_path and held_out_path.resolve(), output)
    with train_path.open("rb") as lines:
        rows = sum(1 for _ in lines)
    if rows < config.training.batch_size:
        raise ValueError(
            f"training.batch_size={config.training.batch_size}: OpenRLHF takes whole batches and there are {rows} "
            "samples; lower it or give more data"
        )
    ranks = config.cluster.trainer.ranks
    variables = openrlhf_environment(config, output)
    run_job(command, config.cluster, gpus=ranks, variables=variables)
    adopt_openrlhf(output, config)
