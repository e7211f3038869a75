"""A reward model that is saved here is read in batches by transformers, with the rewards that it was saved with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import make_model, make_tokenizer
from ultramed_rl.learning.packing import AnswerGroup, pack_groups
from ultramed_rl.models.load import load_reward, save_model, set_padding


def tokenizer_with(**tokens: str | None) -> Any:
    """<|pad|> is token 0, <|im_start|> 1, <|im_end|> 2."""
    tokenizer = make_tokenizer()
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    return tokenizer


@pytest.mark.parametrize(
    ("tokens", "end", "expected"),
    [
        ({}, None, 0),  # its own
        ({"pad_token": None, "bos_token": "<|im_start|>"}, None, 1),  # Llama 3 has none
        (
            {"pad_token": "<|im_end|>", "bos_token": "<|im_start|>"},
            None,
            1,
        ),  # the end of an answer, as in SmolLM2
        ({"pad_token": "<|im_end|>", "eos_token": "<|pad|>", "bos_token": "<|im_start|>"}, 2, 1),
        ({"pad_token": None, "unk_token": "<|pad|>"}, None, 0),
        ({"pad_token": "<|im_end|>"}, None, 1),  # any other special one
    ],
)
def test_padding_is_no_token_that_ends_an_answer(
    tokens: dict[str, str | None], end: int | None, expected: int
) -> None:
    tokenizer = tokenizer_with(**tokens)
    assert set_padding(tokenizer, 259, end) == expected == tokenizer.pad_token_id


def test_padding_has_an_embedding() -> None:
    tokenizer = tokenizer_with(bos_token="<|im_start|>")
    tokenizer.add_tokens(["[PAD]"], special_tokens=True)  # behind a vocabulary of 259
    tokenizer.pad_token = "[PAD]"
    assert tokenizer.pad_token_id == 259
    assert set_padding(tokenizer, 259) == 1 == tokenizer.pad_token_id


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_transformers_reads_batches_alike(tmp_path: Path, kind: str, side: str, pad: str | None) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reward = load_reward(str(make_model(tmp_path / "start", kind, classifier=True)), "float32").eval()
    reward.lm.config.get_text_config().pad_token_id = None
    tokenizer = tokenizer_with(pad_token=pad, bos_token="<|im_start|>")
    save_model(reward, tokenizer, str(tmp_path / "saved"), reward.lm.state_dict(), tokenizer.eos_token_id)
    content = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert content.get("text_config", content)["pad_token_id"] == 1

    texts = [
        "<|im_start|>user Is it?<|im_end|>Yes.<|im_end|>",
        "<|im_start|>No, never<|im_end|>",
        "ab<|im_end|>",
    ]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved", padding_side=side)
    batch = theirs(texts, padding=True, return_tensors="pt", return_token_type_ids=kind == "gemma3")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    ids = [theirs(text)["input_ids"] for text in texts]
    with torch.no_grad():
        found = model(**batch).logits.flatten()
        expected = reward(pack_groups([AnswerGroup(row[:-1], [row[-1:]]) for row in ids]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0.0)
    assert float(expected.std()) > 0.01
