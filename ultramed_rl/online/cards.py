"""The cards of an online run: of each round's policy and pairs, and of the models made beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ultramed_rl.config import RunConfig
from ultramed_rl.store import RoundRecord, RunDirectory, RunReader
from ultramed_rl.store.cards import (
    DataFacts,
    Input,
    ModelFacts,
    Role,
    data_card,
    made_from,
    model_card,
    read_versions,
    write_card,
)

Metrics = Mapping[str, float]


def write_policy_card(
    config: RunConfig,
    store: RunDirectory,
    record: RoundRecord,
    directory: Path,
    metrics: Metrics,
    role: Role = "policy",
) -> None:
    """README.md beside a round's weights, before the directory is digested."""
    earlier = RunReader(store.path).rounds[: record.index]
    facts = _policy_facts(config, store, record, metrics, role)
    write_card(directory, model_card(config, replace(facts, rounds=earlier)))


def write_run_card(config: RunConfig, store: RunDirectory, rounds: Sequence[Metrics]) -> None:
    """README.md of the run: the last policy's card with the evaluation that its own was written before."""
    record = store.round(len(rounds) - 1)
    facts = _policy_facts(config, store, record, record.metrics("checkpoint"), "policy")
    write_card(store.path, model_card(config, replace(facts, rounds=rounds)))


def _policy_facts(
    config: RunConfig, store: RunDirectory, record: RoundRecord, metrics: Metrics, role: Role
) -> ModelFacts:
    inputs = [
        *_models(config),
        *_before(store, record.index),
        Input("pairs of the round", "pairs.parquet", record.digest("pairs")),
        *_prompts(config),
    ]
    return ModelFacts(metrics, inputs, read_versions(store.path), role, record.index)


def write_reward_card(config: RunConfig, store: RunDirectory, directory: Path, metrics: Metrics) -> None:
    """README.md beside the reward model that a run trained itself."""
    inputs = [
        made_from("starting model, whose answers are contrasted", config.policy.path),
        *_prompts(config),
    ]
    facts = ModelFacts(metrics, inputs, read_versions(store.path), role="reward_model")
    write_card(directory, model_card(config, facts))


def write_pairs_card(config: RunConfig, store: RunDirectory, record: RoundRecord, metrics: Metrics) -> None:
    """README.md beside a round's pairs.parquet."""
    inputs = [
        *_models(config),
        *_before(store, record.index),
        Input("scored completions", "scored.parquet", record.digest("scored")),
        *_prompts(config),
    ]
    counts = {name: value for name, value in metrics.items() if name.startswith(("pairs", "margin_mean"))}
    facts = DataFacts(counts, inputs, read_versions(store.path), files={"train": "pairs.parquet"})
    write_card(record.path, data_card(config, facts))


def _models(config: RunConfig) -> list[Input]:
    rewards = [path for path in config.reward.paths if path is not None]
    return [
        made_from("starting policy", config.policy.path),
        *(made_from("reward model", path) for path in rewards),
        *(
            [Input("reward model", "initial/reward_model of the run")]
            if config.reward.train is not None
            else []
        ),
    ]


def _before(store: RunDirectory, index: int) -> list[Input]:
    """The policy that the round began with, where it isn't the starting one."""
    last = store.last_checkpoint(index)
    if last is None:
        return []
    name = (
        "policy of the round before"
        if last == index - 1
        else f"policy, trained on since by {index - 1 - last} rounds"
    )
    return [Input(name, f"rounds/{last:03d}/checkpoint", store.round(last).digest("checkpoint"))]


def _prompts(config: RunConfig) -> list[Input]:
    return [made_from("prompts", source.uri) for source in config.prompts.sources]
