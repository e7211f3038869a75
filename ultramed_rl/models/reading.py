"""What a reward model reads of a chat: ours what they were trained on, others exactly what their template renders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.models.files import read_config
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, Message, Prompt

READ_AT = {"reward_read_at": "end_of_turn"}  # in the config.json of a reward model that was trained here


def is_ours(path: str, *, trust_remote_code: bool = False) -> bool:
    """Whether a reward model was trained to be read at an answer's end of turn, as its config then says.

    So is whatever a server has behind a language model's tokenizer: that one's rewards are nobody's own.
    """
    config = read_config(path, trust_remote_code=trust_remote_code)
    classifies = any("SequenceClassification" in name for name in config.architectures or [])
    return not classifies or all(getattr(config, key, None) == value for key, value in READ_AT.items())


@dataclass(frozen=True)
class RewardReader:
    """Turns a prompt and its answers into what one reward model reads. Its score is that at the last token."""

    tokenizer: ChatTokenizer  # the reward model's, or the policy's where both are the same
    shared: bool = True  # it reads the policy's own tokens
    # It was trained here, on answers up to their end of turn, or up to where they were cut off. Another model reads whole
    # chats, with all that its template puts before and after an answer.
    ours: bool = True
    thoughts: bool = False  # it reads the policy's reasoning, too

    @classmethod
    def of(
        cls,
        path: str,
        policy: ChatTokenizer | None,
        *,
        trust_remote_code: bool = False,
        thoughts: bool = False,
    ) -> RewardReader:
        """The reader for a reward model's path. Raises ValueError: no model, or no tokenizer with a chat template, is
        there."""
        ours = is_ours(path, trust_remote_code=trust_remote_code)
        own = ChatTokenizer(path, trust_remote_code=trust_remote_code, learns=ours)
        if ours and policy is not None and own.same_as(policy):
            return cls(policy, thoughts=thoughts)
        return cls(own, shared=False, ours=ours, thoughts=thoughts)

    def takes_tokens(self, completions: Sequence[Completion]) -> bool:
        """Whether it reads these answers' own tokens, all of them."""
        return self.shared and (self.thoughts or not any(c.thought_tokens for c in completions))

    def read(self, prompt: Prompt, completions: Sequence[Completion]) -> AnswerGroup:
        """Token ids of the prompt and of its answers. What the policy wrote makes no control token of them.
        Raises ValueError: the template refuses the chat."""
        if self.takes_tokens(completions):
            return AnswerGroup(prompt.token_ids, self.tokenizer.spell_out([c.token_ids for c in completions]))
        texts = [c.text if self.thoughts else c.answer for c in completions]
        if self.ours:
            # An answer without any token would have no last one to be read at.
            cut = [i for i, c in enumerate(completions) if c.finish_reason == "length" and texts[i]]
            return AnswerGroup(*self.tokenizer.encode_answers(prompt.messages, texts, cut, checked=False))
        answered = [[*prompt.messages, Message(role="assistant", content=text)] for text in texts]
        rows = self.tokenizer.encode_whole(answered)
        columns = zip(*(row[:-1] for row in rows), strict=False)
        common = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        return AnswerGroup(rows[0][:common], [row[common:] for row in rows])
