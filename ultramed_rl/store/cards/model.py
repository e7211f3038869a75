"""The card of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ultramed_rl.config import PreferenceConfig, RewardConfig, RunConfig, SftConfig
from ultramed_rl.kinds import KINDS
from ultramed_rl.store.cards.text import Input, hub_id, render

ModelConfig = SftConfig | RewardConfig | PreferenceConfig | RunConfig
Role = Literal["policy", "reward_model", "reference"]
# Sections of a config that decide on the weights; data is told by its inputs.
_SECTIONS = (
    *("model", "policy", "reference", "objective", "training", "trainable_layers"),
    *("sampling", "pairs", "reward"),
)


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
    from huggingface_hub import ModelCardData

    scores = isinstance(config, RewardConfig) or facts.role == "reward_model"
    base = config.policy.path if isinstance(config, RunConfig) else config.model.path
    objective = "" if isinstance(config, SftConfig) else config.objective.type
    uris = [item.where.removeprefix("hf://") for item in facts.inputs if item.where.startswith("hf://")]
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification" if scores else "text-generation",
        base_model=hub_id(base) or None,
        datasets=list(dict.fromkeys(uri.partition(":")[0] for uri in uris)) or None,
        tags=["ultramed_rl", config.type, *([objective] if objective and not scores else []), "research"],
    )
    return render(
        "model.md.jinja",
        front,
        _sections(config, facts.role),
        config=config,
        facts=facts,
        base=base,
        stage=KINDS[config.type].card,
        objective="bradley_terry" if facts.role == "reward_model" else objective,
        scores=scores,
        in_rounds=isinstance(config, RunConfig),
        evaluated=any(row["round"] == facts.round for row in facts.rounds),
    )


def _sections(config: ModelConfig, role: Role) -> dict[str, Any]:
    whole = config.to_mapping()
    if role == "reward_model":
        return {"policy": whole["policy"], "reward": {"train": whole["reward"]["train"]}}
    return {name: whole[name] for name in _SECTIONS if whole.get(name) is not None}
