"""The card of the model that an offline stage made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ultramed_rl.config.stages import StageConfig
from ultramed_rl.store import StageDirectory
from ultramed_rl.store.cards import Input, ModelFacts, made_from, model_card, read_versions, write_card


def write_stage_card(
    config: StageConfig, store: StageDirectory, directory: Path, figures: Mapping[str, float]
) -> None:
    """README.md beside the weights, before the directory is digested."""
    data = config.data
    inputs = [made_from("starting model", config.model.path)]
    inputs += [made_from("training data", source.uri) for source in data.sources]
    inputs += [made_from("held-out data", source.uri) for source in data.evaluation_sources]
    inputs.append(Input("samples that were trained on", "data/ of the run", store.artifacts.digest("data")))
    write_card(directory, model_card(config, ModelFacts(figures, inputs, read_versions(store.path))))
