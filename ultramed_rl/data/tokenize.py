"""What a stage learns from, as token ids: exactly those that a rollout of the same texts would have."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from ultramed_rl.records import (
    Completion,
    Conversation,
    Message,
    PreferenceGroup,
    Prompt,
    RankedAnswers,
    TokenizedChat,
)
from ultramed_rl.token_ids import TokenIds


class Tokenizer(Protocol):
    """What is asked of `models.tokenizer.ChatTokenizer`, which says more."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]: ...

    def encode_conversation(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]: ...

    def encode_answers(
        self, messages: Sequence[Message], answers: Sequence[str], cut: Collection[int] = ()
    ) -> tuple[list[int], list[list[int]]]: ...

    def markers(self, messages: Sequence[Message], answers: Sequence[str] = ()) -> int: ...

    def without_end(self, text: str) -> str: ...


def tokenize_conversation(conversation: Conversation, tokenizer: Tokenizer) -> TokenizedChat:
    """The chat up to its last answer's end-of-turn token, with all of the assistant's turns learned.

    Raises:
        ValueError: a chat that the template refuses or doesn't keep as it is.
    """
    token_ids, learned = tokenizer.encode_conversation(conversation.messages)
    return TokenizedChat(conversation.conversation_id, TokenIds(token_ids), tuple(learned), conversation.kind)


def tokenize_preference(ranked: RankedAnswers, tokenizer: Tokenizer) -> PreferenceGroup:
    """The prompt with the generation prompt, and each answer with its end-of-turn token unless it was cut off;
    scores are rewards.

    The answers are the data's own: `finish_reason` "reference", no sampling logprob, policy version 0.

    Raises:
        ValueError: a chat that the template refuses or doesn't keep as it is.
    """
    token_ids, encoded = tokenizer.encode_answers(ranked.messages, ranked.answers, ranked.cut)
    prompt = Prompt(ranked.prompt_id, ranked.messages, TokenIds(token_ids), kind=ranked.kind)
    completions = tuple(
        Completion(ranked.prompt_id, place, tokenizer.without_end(text), tuple(ids), "reference", 0.0, 0)
        for place, (text, ids) in enumerate(zip(ranked.answers, encoded, strict=True))
    )
    return PreferenceGroup(prompt, completions, ranked.scores, ranked.desirable)
