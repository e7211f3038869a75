"""The card of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ultramed_rl.config import PreferenceConfig, RewardConfig, RunConfig, SftConfig
from ultramed_rl.kinds import KINDS
from ultramed_rl.store.cards.text import (
    DISCLAIMER,
    LICENCE,
    Input,
    data_ids,
    figures,
    front_matter,
    hub_id,
    inputs_table,
    place,
    settings,
    table,
    versions_table,
)

ModelConfig = SftConfig | RewardConfig | PreferenceConfig | RunConfig
Role = Literal["policy", "reward_model", "reference"]
# Sections of a config that decide on the weights; data is told by its inputs.
_SECTIONS = (
    "model",
    "policy",
    "reference",
    "objective",
    "training",
    "trainable_layers",
    "sampling",
    "pairs",
    "reward",
)
_ROUND_COLUMNS = ("eval_reward_mean", "eval_change", "eval_change_low", "eval_change_high", "eval_win_rate")


@dataclass(frozen=True)
class ModelFacts:
    """What a checkpoint's card says beside its config.

    Attributes:
        metrics: figures of the training that made it, and of its held-out data.
        inputs: what it was made from.
        versions: packages by version.
        role: of an online run, which of its models it is.
        round: of an online run, the round that made it, from 0.
        rounds: of an online run, the metrics of the rounds that are evaluated already.
    """

    metrics: Mapping[str, float]
    inputs: Sequence[Input] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    role: Role = "policy"
    round: int | None = None
    rounds: Sequence[Mapping[str, float]] = ()


def model_card(config: ModelConfig, facts: ModelFacts) -> str:
    """A checkpoint's README.md: Hugging Face front matter, then what made it, from what, and for what it is."""
    scores = isinstance(config, RewardConfig) or facts.role == "reward_model"
    parts = [
        _front(config, facts, scores),
        f"# {config.run.name}",
        DISCLAIMER,
        _what(config, facts),
        f"## Made from\n\n{inputs_table(facts.inputs)}",
        f"## Settings\n\nThe whole config is `config.yaml` of the run.\n\n{settings(_sections(config, facts.role))}",
        _figures(config, facts),
        f"## Versions\n\n{versions_table(facts.versions)}",
        f"## Licence\n\n{LICENCE}",
        f"## Intended use\n\n{_use(scores)}\n\n{DISCLAIMER}",
    ]
    return "\n\n".join(parts) + "\n"


def _front(config: ModelConfig, facts: ModelFacts, scores: bool) -> str:
    tags = ["ultramed_rl", config.type, *([] if scores else [_objective(config)]), "research"]
    return front_matter(
        {
            "library_name": "transformers",
            "pipeline_tag": "text-classification" if scores else "text-generation",
            "base_model": hub_id(_base(config)),
            "datasets": data_ids(item.where for item in facts.inputs),
            "tags": [tag for tag in tags if tag],
        }
    )


def _what(config: ModelConfig, facts: ModelFacts) -> str:
    rows = [("stage", _stage_words(config, facts)), ("starting model", place(_base(config)))]
    objective = "bradley_terry" if facts.role == "reward_model" else _objective(config)
    rows += [("objective", objective)] if objective else []
    rows += [
        ("seed", str(config.run.seed)),
        ("made by", f"ultramed_rl {facts.versions.get('ultramed_rl', '')}".strip()),
    ]
    return "## What it is\n\n" + table(("", ""), rows)


def _stage_words(config: ModelConfig, facts: ModelFacts) -> str:
    if not isinstance(config, RunConfig):
        return KINDS[config.type].card
    if facts.role == "reward_model":
        return "reward model that an online run trained itself, on contrasts of its policy's own answers"
    what = "policy" if facts.role == "policy" else "moving average of the policies, the reference,"
    return f"{what} after round {facts.round} of {config.run.rounds} (counted from 0) of online preference learning"


def _figures(config: ModelConfig, facts: ModelFacts) -> str:
    text = f"## Figures\n\nOf the training that made these weights:\n\n{figures(facts.metrics)}"
    if not isinstance(config, RunConfig) or facts.role == "reward_model":
        return text
    if not any(row["round"] == facts.round for row in facts.rounds):
        text += (
            "\n\nThese weights are written before they are evaluated. Their own held-out figures are in the run: its "
            f"`README.md`, its report, and `rounds/{facts.round or 0:03d}/commit.json`."
        )
    rows = [[f"{row['round']:.0f}", *(_number(row, name) for name in _ROUND_COLUMNS)] for row in facts.rounds]
    if not rows:
        return text
    heading = ("round", "held-out reward", "change", "95 % from", "to", "wins")
    return f"{text}\n\nHeld out, by round, against the starting policy:\n\n{table(heading, rows)}"


def _number(row: Mapping[str, float], name: str) -> str:
    return f"{row[name]:.3f}" if name in row else "-"


def _use(scores: bool) -> str:
    purpose = (
        "Ranking answers of language models in experiments; its numbers mean nothing outside of such a comparison."
        if scores
        else "Experiments with language models and preference learning."
    )
    return f"{purpose} Whoever builds on it is to test it for that use, with people who know the field."


def _base(config: ModelConfig) -> str:
    return config.policy.path if isinstance(config, RunConfig) else config.model.path


def _objective(config: ModelConfig) -> str:
    return "" if isinstance(config, SftConfig) else config.objective.type


def _sections(config: ModelConfig, role: Role) -> dict[str, Any]:
    whole = config.to_mapping()
    if role == "reward_model":
        return {"policy": whole["policy"], "reward": {"train": whole["reward"]["train"]}}
    return {name: whole[name] for name in _SECTIONS if whole.get(name) is not None}
