"""The card of a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ultramed_rl.config import ContrastsConfig, DataConfig, RunConfig
from ultramed_rl.config.factory import ApiGeneratorConfig, Decontaminate
from ultramed_rl.kinds import KINDS
from ultramed_rl.store.cards.text import EarlierStep, Input, model_name, render

DataSetConfig = DataConfig | ContrastsConfig | RunConfig
_API_TERMS = (
    "The terms of whoever runs the API bind what its replies may be used for: some forbid training models on them, or "
    "models that compete with theirs. Read them before you train on this or pass it on"
)
_MODEL_TERMS = (
    "The model's own licence binds its output as far as it says so. Read it before you pass this on"
)
_SAMPLED = ("policy", "prompts", "contrasts", "sampling", "pairs", "reward")
_FAILED = ("failed_", "dead_", "unfit", "misfit", "wrong_key", "too_few", "missing_")
_REMOVED = ("dropped_", "removed_", "identical", "near", "tie", "without", "figure", "note", "table")


@dataclass(frozen=True)
class DataFacts:
    """What a data set's card says beside its config.

    Attributes:
        counts: what became of the rows.
        inputs: what it was made from.
        versions: packages by version.
        earlier: the steps that its inputs went through here, first to last.
        sets: records by the set that their ids name.
        files: rows by split, a file's name for each.
    """

    counts: Mapping[str, float]
    inputs: Sequence[Input] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    earlier: Sequence[EarlierStep] = ()
    sets: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def data_card(config: DataSetConfig, facts: DataFacts) -> str:
    """A data set's README.md: Hugging Face front matter, then what made it, of what, by which models."""
    from huggingface_hub import DatasetCardData

    models, whole = _models(config), config.to_mapping()
    synthetic = models or any(step.models for step in facts.earlier)
    splits = [{"split": split, "path": file} for split, file in facts.files.items()]
    front = DatasetCardData(
        pretty_name=config.run.name,
        configs=[{"config_name": "default", "data_files": splits}] if splits else None,
        tags=["ultramed_rl", *(["synthetic"] if synthetic else []), "research"],
    )
    wanted = ("step", "limit") if isinstance(config, DataConfig) else _SAMPLED
    step = config.step if isinstance(config, DataConfig) else None
    return render(
        "data.md.jinja",
        front,
        {name: whole[name] for name in wanted if whole.get(name) is not None},
        config=config,
        facts=facts,
        what=re.sub(r" \[[A-Z]\]", "", " ".join((type(step).__doc__ or "").split())),
        step=step,
        decontaminates=isinstance(step, Decontaminate),
        stage=KINDS[config.type].card,
        in_rounds=isinstance(config, RunConfig),
        models=models,
        kept={name: count for name, count in facts.counts.items() if not _fell_out(name)},
        gone={name: count for name, count in facts.counts.items() if _fell_out(name) and count},
    )


def _models(config: DataSetConfig) -> list[tuple[str, str, str, str]]:
    """(name, model, where it ran, terms) of every model whose words or judgements are in the data."""
    if not isinstance(config, DataConfig):
        return [("policy", model_name(config.policy.path), "own engines", _MODEL_TERMS)]
    return [
        (name, generator.model, urlsplit(generator.base_url).hostname or "", _API_TERMS)
        if isinstance(generator, ApiGeneratorConfig)
        else (name, model_name(generator.path), "own engines", _MODEL_TERMS)
        for name, generator in config.generators.items()
    ]


def _fell_out(name: str) -> bool:
    if name.startswith("pairs_"):  # an online round's audit: why a prompt has no pair
        return name != "pairs_prompts"
    return name.startswith((*_FAILED, *_REMOVED)) or any(
        f"_{part}" in name for part in ("failed_", "dropped_")
    )
