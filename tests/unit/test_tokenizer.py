"""Chats to tokens: the end of a turn is found in the template, not believed from the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_tokenizer, tiny_config
from ultramed_rl.models.tokenizer import ChatTokenizer


def save(backend: Any, directory: Path) -> Path:
    """A folder that is a model's as far as a tokenizer is concerned."""
    backend.save_pretrained(directory)
    tiny_config().save_pretrained(directory)
    return directory


def test_end_of_turn_comes_from_the_template(tmp_path: Path) -> None:
    backend = make_tokenizer()
    backend.eos_token = "<|pad|>"  # as Llama-3's base config says <|end_of_text|> while chats end <|eot_id|>
    save(backend, tmp_path)
    tokenizer = ChatTokenizer(str(tmp_path))
    assert tokenizer.backend.convert_ids_to_tokens(tokenizer.end_id) == "<|im_end|>"


def test_answers_continue_the_chat_exactly(tmp_path: Path) -> None:
    save(make_tokenizer(), tmp_path)
    tokenizer = ChatTokenizer(str(tmp_path))
    chat = [{"role": "user", "content": "Hä?"}]
    whole = tokenizer.backend.apply_chat_template(
        [*chat, {"role": "assistant", "content": "Yes."}], tokenize=False
    )
    ids = tokenizer.encode_chat(chat) + tokenizer.encode_answer("Yes.")  # type: ignore[arg-type]
    assert tokenizer.backend.decode(ids) + "\n" == whole


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path) -> None:
    backend = make_tokenizer()
    backend.chat_template = None
    save(backend, tmp_path)
    with pytest.raises(ValueError, match="no chat template; use an instruction-tuned model"):
        ChatTokenizer(str(tmp_path))
    with pytest.raises(ValueError, match=r"no config.json there; give a checkpoint directory or a hub id"):
        ChatTokenizer("/no/such/model")


def test_the_same_tokenizer_is_recognised(tmp_path: Path) -> None:
    save(make_tokenizer(), tmp_path / "a")
    other = make_tokenizer()
    other.chat_template = other.chat_template.replace("user", "human") + " "
    save(other, tmp_path / "b")
    first, second = ChatTokenizer(str(tmp_path / "a")), ChatTokenizer(str(tmp_path / "b"))
    assert first.same_as(ChatTokenizer(str(tmp_path / "a"))) and not first.same_as(second)
