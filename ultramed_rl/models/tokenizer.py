"""Chat text to token ids and back, with the checks that keep generation and padding sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ultramed_rl.models.offline import resolve_model
from ultramed_rl.records import Message


class ChatTokenizer:
    """A tokenizer with a chat template, an end-of-turn token and a pad token.

    Raises:
        ValueError: the tokenizer lacks a chat template or an end-of-turn token.
    """

    def __init__(self, path: str, *, trust_remote_code: bool = False) -> None:
        from transformers import AutoTokenizer

        source = resolve_model(path)
        try:
            self.backend: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"model {path!r}: its tokenizer cannot be loaded ({reason}); "
                "give a checkpoint directory, or a hub id that this machine can reach"
            ) from None
        if not self.backend.chat_template:
            raise ValueError(
                f"model {path!r}: its tokenizer has no chat template; use an instruction-tuned model"
            )
        if self.backend.eos_token_id is None:
            raise ValueError(
                f"model {path!r}: its tokenizer has no eos_token; set it in tokenizer_config.json"
            )
        # Padding is masked wherever we compute, so the end token may serve where nothing else is defined.
        pad = self.backend.pad_token_id
        self.pad_id: int = self.backend.eos_token_id if pad is None else pad
        self.end_id: int = self.end_of_turn()

    def same_as(self, other: ChatTokenizer) -> bool:
        """Whether both turn every chat into the same tokens."""
        return (
            self.backend.chat_template == other.backend.chat_template
            and self.backend.get_vocab() == other.backend.get_vocab()
        )

    def end_of_turn(self) -> int:
        """The token that the chat template puts after an assistant's answer."""
        marker = "ultramed end probe"
        text = self.backend.apply_chat_template(
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": marker}], tokenize=False
        )
        tail = self.backend(text[text.rindex(marker) + len(marker) :], add_special_tokens=False)["input_ids"]
        special = set(self.backend.all_special_ids) | set(self.backend.added_tokens_decoder)
        return next((token for token in tail if token in special), self.backend.eos_token_id)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the chat with the generation prompt."""
        text = self.backend.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return list(self.backend(text, add_special_tokens=False)["input_ids"])

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of an assistant's answer with its end-of-turn token."""
        return [*self.encode_text(text), self.end_id]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens."""
        return list(self.backend(text, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(self.backend.decode(list(token_ids), skip_special_tokens=True))
