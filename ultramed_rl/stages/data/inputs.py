"""A data stage under way: what it reads, and what its results depend on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultramed_rl.config.factory import ApiGeneratorConfig, DataConfig
from ultramed_rl.config.factory_steps import HASHED
from ultramed_rl.config.models import DECIDES
from ultramed_rl.data.factory.hashing import HashedEmbedder
from ultramed_rl.data.likeness import Embed
from ultramed_rl.data.sources import Row, list_sources, read_rows
from ultramed_rl.store.digests import digest_file
from ultramed_rl.tracking import Progress


@dataclass(frozen=True)
class DataWork:
    """A stage under way: `scratch` is kept until it is done and after, `output` appears whole at its end."""

    config: DataConfig
    identity: Sequence[str]
    scratch: Path
    output: Path
    progress: Progress
    retry_failed: bool = False


def read_input(config: DataConfig) -> Iterator[Row]:
    """The input's rows, file by file; a stage before may have left nothing in one."""
    for uri in config.input:
        yield from read_made_rows(uri, config.limit)


def read_made_rows(uri: str, limit: int | None = None) -> Iterator[Row]:
    """As `read_rows`, but a file that a stage wrote may be empty."""
    path = Path(uri)
    if path.suffix == ".jsonl" and path.is_file() and not path.stat().st_size:
        return iter(())
    return read_rows(uri, limit)


def identity_of(config: DataConfig) -> list[str]:
    """What decides on the results: the step, the models it asks, and the contents of the files it reads."""
    models = {
        name: generator.model_dump(include={*DECIDES, "temperature"})
        if isinstance(generator, ApiGeneratorConfig)
        else generator.model_dump()
        for name, generator in config.generators.items()
    }
    step = config.step.model_dump()
    uris = [*config.input, *config.further_inputs.values()]
    return [
        json.dumps({"step": step, "models": models, "limit": config.limit}, sort_keys=True),
        *(f"{source} {_digest(source)}" for uri in uris for source in list_sources(uri)),
    ]


def _digest(source: str) -> str:
    """Of a file its contents; a hub data set or a package's file is known by its name."""
    path = Path(source).expanduser()
    return digest_file(path) if path.is_file() else ""


def open_embedder(name: str) -> Embed:
    """What makes vectors; a model is loaded when it is first used, in whichever process that is."""
    return HashedEmbedder() if name == HASHED else _ModelEmbedder(name)


class _ModelEmbedder:
    """A sentence-embedding model that workers can be sent by its name."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._embedder: Embed | None = None

    def __reduce__(self) -> Any:
        return _ModelEmbedder, (self.path,)

    def __call__(self, texts: Any) -> Any:
        if self._embedder is None:
            from ultramed_rl.models.embedding import Embedder

            self._embedder = Embedder(self.path)
        return self._embedder(texts)
