"""The card of a data set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ultramed_rl.config import ContrastsConfig, DataConfig, RunConfig
from ultramed_rl.config.factory_cleaning import Decontaminate
from ultramed_rl.config.factory_stage import ApiGeneratorConfig
from ultramed_rl.kinds import KINDS
from ultramed_rl.store.cards.text import (
    DISCLAIMER,
    LICENCE,
    EarlierStep,
    Input,
    figures,
    front_matter,
    inputs_table,
    model_name,
    settings,
    table,
    versions_table,
)

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
    parts = [
        _front(config, facts),
        f"# {config.run.name}",
        DISCLAIMER,
        f"## What it is\n\n{_what(config)}",
        f"## Counts\n\n{_counts(facts)}",
        f"## Made from\n\n{inputs_table(facts.inputs)}\n\n{_earlier(facts)}",
        f"## Models that wrote or judged it\n\n{_models(config, facts)}",
        f"## Decontamination\n\n{_decontamination(config, facts)}",
        f"## What failed or fell out\n\n{_failures(facts)}",
        f"## Settings\n\nThe whole config is `config.yaml` of the run.\n\n{settings(_sections(config))}",
        f"## Versions\n\n{versions_table(facts.versions)}",
        f"## Licence\n\n{LICENCE}",
        f"## Intended use\n\nExperiments with training and evaluating language models.\n\n{DISCLAIMER}",
    ]
    return "\n\n".join(parts) + "\n"


def _front(config: DataSetConfig, facts: DataFacts) -> str:
    splits = [{"split": split, "path": file} for split, file in facts.files.items()]
    tags = [
        "ultramed_rl",
        *(["synthetic"] if _generators(config) or any(step.models for step in facts.earlier) else []),
        "research",
    ]
    return front_matter(
        {
            "pretty_name": config.run.name,
            "configs": [{"config_name": "default", "data_files": splits}] if splits else [],
            "tags": tags,
        }
    )


def _what(config: DataSetConfig) -> str:
    if isinstance(config, DataConfig):
        summary = re.sub(r" \[[A-Z]\]", "", " ".join((type(config.step).__doc__ or "").split()))
        return f"Made by the data factory's step `{config.step.type}`: {summary}"
    if not isinstance(config, RunConfig):
        return KINDS[config.type].card
    return (
        "Preference pairs of one round of online preference learning: the policy's own answers to each prompt, ranked by "
        "the run's reward. The reward's faults are in the pairs."
    )


def _counts(facts: DataFacts) -> str:
    kept = {name: count for name, count in facts.counts.items() if not _fell_out(name)}
    if not facts.sets:
        return figures(kept)
    return f"{figures(kept)}\n\nBy set:\n\n{table(('set', 'rows'), facts.sets.items())}"


def _earlier(facts: DataFacts) -> str:
    if not facts.earlier:
        return "No step of this tool came before, as far as the files tell."
    rows = [(step.stage, step.step, ", ".join(step.models) or "-") for step in facts.earlier]
    return f"Steps before, first to last:\n\n{table(('stage', 'step', 'models asked'), rows)}"


def _models(config: DataSetConfig, facts: DataFacts) -> str:
    rows = _generators(config)
    if rows:
        return table(("name", "model", "at", "terms"), rows)
    if any(step.models for step in facts.earlier):
        return "None in this step; those of the steps before, whose licences and terms bind this data too, are named above."
    return "None, as far as the files tell."


def _generators(config: DataSetConfig) -> list[tuple[str, str, str, str]]:
    """(name, model, where it ran, terms) of every model whose words or judgements are in the data."""
    if not isinstance(config, DataConfig):
        path = config.policy.path
        return [("policy", model_name(path), "own engines", _MODEL_TERMS)]
    return [
        (name, generator.model, urlsplit(generator.base_url).hostname or "", _API_TERMS)
        if isinstance(generator, ApiGeneratorConfig)
        else (name, model_name(generator.path), "own engines", _MODEL_TERMS)
        for name, generator in config.generators.items()
    ]


def _decontamination(config: DataSetConfig, facts: DataFacts) -> str:
    if isinstance(config, DataConfig) and isinstance(config.step, Decontaminate):
        names = ", ".join(task.name for task in config.step.tasks)
        return (
            f"Here: rows that stand in {names} were removed: by the same words, by {config.step.ngram}-grams, or as near "
            "ones. What was asked of other benchmarks may still be in it."
        )
    before = [step.stage for step in facts.earlier if step.step == "decontaminate"]
    if before:
        return (
            f"Not in this step; earlier, in {', '.join(before)}. What was added after that was not looked at."
        )
    return (
        "None, as far as the files tell: do not evaluate on benchmarks before you have looked for them in it."
    )


def _failures(facts: DataFacts) -> str:
    gone = {name: count for name, count in facts.counts.items() if _fell_out(name) and count}
    return f"Rows by reason:\n\n{figures(gone)}" if gone else "Nothing."


def _fell_out(name: str) -> bool:
    if name.startswith("pairs_"):  # an online round's audit: why a prompt has no pair
        return name != "pairs_prompts"
    return name.startswith((*_FAILED, *_REMOVED)) or any(
        f"_{part}" in name for part in ("failed_", "dropped_")
    )


def _sections(config: DataSetConfig) -> dict[str, Any]:
    wanted = ("step", "limit") if isinstance(config, DataConfig) else _SAMPLED
    whole = config.to_mapping()
    return {name: whole[name] for name in wanted if whole.get(name) is not None}
