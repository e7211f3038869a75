"""The records that cross boundaries between roles. Frozen; token ids are any sequence of ints, `TokenIds` where we make them.

Prompt -> Completion (n per prompt) -> ScoredCompletion -> PreferenceGroup -> Checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypedDict


class Message(TypedDict):
    """One chat turn."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """A chat that awaits an answer."""

    prompt_id: str
    messages: tuple[Message, ...]
    token_ids: Sequence[int] = ()  # the chat template's rendering with the generation prompt
    answer: str | None = None  # the data's own
    kind: str = "question"  # the source's type: question, vignette, messages
    source: int = 0  # the source's place in the config
    extra: str = ""  # columns of its row that scorers read, as a JSON object

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of its row that scorers read."""
        columns: dict[str, Any] = json.loads(self.extra or "{}")
        return columns


@dataclass(frozen=True)
class Conversation:
    """A whole chat to learn from: perhaps a system message, then user and assistant in turn, assistant last."""

    conversation_id: str
    messages: tuple[Message, ...]
    kind: str = "messages"  # the row's own `type`, if it has one (UltraMedical's Exam, Literature, ...)
    unlearnt: frozenset[int] = (
        frozenset()
    )  # places of the assistant's turns that its data keeps from being learnt


@dataclass(frozen=True)
class RankedAnswers:
    """A chat that awaits an answer, and answers to it as text, best first; one alone is unpaired feedback."""

    prompt_id: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    scores: tuple[float, ...]  # what ranked the answers: they descend, equal ones are ties
    kind: str = "preference"  # the category under which held-out figures are reported
    desirable: int = 1  # the first so many answers are wanted, the others are not
    cut: frozenset[int] = frozenset()  # places of answers that were cut off, and so have no end to learn


@dataclass(frozen=True)
class TokenizedChat:
    """A whole chat as token ids."""

    conversation_id: str
    token_ids: Sequence[int]
    learned: tuple[bool, ...]  # which of them the assistant wrote, so that they are learnt
    kind: str = "messages"


@dataclass(frozen=True)
class SamplingRequest:
    """n answers to one prompt. Sample i is drawn with `seed + i`, whatever else the engine computes."""

    prompt: Prompt
    n: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    schema: str = ""  # a JSON schema, to which the engine holds every answer


@dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    prompt_id: str
    sample: int
    text: str
    token_ids: Sequence[int]  # with the end-of-turn token when the policy gave one
    finish_reason: str  # vLLM's: "stop" or "length"; "reference" marks the data's own answer
    logprob: float  # the sum over the sampled tokens under the sampling policy, in nats at temperature 1
    policy_version: int  # rounds that the sampling policy had been trained for
    # The reasoning before the answer, marks included: its tokens, and where in the text the answer begins.
    thought_tokens: int = 0
    answer_start: int = 0

    @property
    def completion_id(self) -> str:
        return f"{self.prompt_id}#{self.sample}"

    @property
    def answer(self) -> str:
        """What it says, without its reasoning: empty where that never ends."""
        return self.text[self.answer_start :].strip() if self.thought_tokens else self.text

    @property
    def answer_tokens(self) -> int:
        """How many tokens its answer has."""
        return len(self.token_ids) - self.thought_tokens

    def without_thought(self) -> Completion:
        """Its answer alone, for those who read nothing else."""
        if not self.thought_tokens:
            return self
        ids = self.token_ids[self.thought_tokens :]
        return replace(self, text=self.answer, token_ids=ids, thought_tokens=0, answer_start=0)


@dataclass(frozen=True)
class TokenChoice:
    """A token of a reply as text, and the likeliest ones in its place: logprobs by text, in nats."""

    text: str
    logprobs: dict[str, float]


@dataclass(frozen=True)
class WeighedRequest(SamplingRequest):
    """A request whose answers are to come with the likeliest tokens of their last `places`."""

    places: int = 16


@dataclass(frozen=True)
class WeighedCompletion(Completion):
    """An answer with the likeliest tokens of its last places, in their order, without its end of turn."""

    choices: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True)
class OptionRequest:
    """Options that may continue a context, all as token ids; neither is empty."""

    question_id: str
    context: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class OptionLogprobs:
    """Summed logprobs of the texts that may continue a question, in the question's order and in nats."""

    question_id: str
    logprobs: tuple[float, ...]
    policy_version: int


@dataclass(frozen=True)
class ScoredCompletion:
    """A completion and its reward."""

    completion: Completion
    reward: float
    terms: dict[str, float] = field(default_factory=dict)  # what it was made of, where it is more than one's
    details: dict[str, float] = field(default_factory=dict)  # by name, what the terms themselves were made of


@dataclass(frozen=True)
class JudgedAnswer:
    """What judges say of a held-out answer, by their names; NaN where one has nothing to say."""

    prompt_id: str
    sample: int
    scores: dict[str, float]


@dataclass(frozen=True)
class PreferenceGroup:
    """Answers of one prompt, the preferred ones first, with the rewards that decided it.

    A pair is the common group: (chosen, rejected). Listwise objectives take n answers, best first; unpaired
    KTO may take one.
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    rewards: tuple[float, ...]
    desirable: int = 1  # the first so many answers are wanted, the others are not

    @cached_property
    def group_id(self) -> str:
        return f"{self.prompt.prompt_id}:{'>'.join([str(c.sample) for c in self.completions])}"

    @property
    def chosen(self) -> Completion:
        return self.completions[0]

    @property
    def rejected(self) -> Completion:
        return self.completions[-1]

    @property
    def margin(self) -> float:
        return self.rewards[0] - self.rewards[-1]

    @property
    def packed_tokens(self) -> int:
        """Tokens of the group when its prompt is computed once."""
        return len(self.prompt.token_ids) + sum(len(c.token_ids) for c in self.completions)


@dataclass(frozen=True)
class SelectionAudit:
    """What pair selection did with its prompts; every prompt is in exactly one count."""

    prompts: int
    pairs: int
    tied: int = 0
    identical: int = 0
    small_margin: int = 0
    length_ratio: int = 0
    non_finite: int = 0
    too_few: int = 0


@dataclass(frozen=True)
class ReferenceLogprobs:
    """Summed logprobs of a group's answers under the reference policy, in nats and in the group's order."""

    group_id: str
    logprobs: tuple[float, ...]
    # Of one more answer, where the objective wants one: KTO's mismatched one, or LD-DPO's longer one, cut as short as the other.
    beside: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A policy on disk in Hugging Face format."""

    path: str
    version: int  # rounds that it has been trained for
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatRequest:
    """A chat that a language model is asked to go on with.

    The same request has the same answer: a cache goes by all fields but `key`.
    """

    key: str  # its name within its stage
    messages: tuple[Message, ...]
    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    schema: str = ""  # a JSON schema; the answer must then be one JSON value that fits it


@dataclass(frozen=True)
class ChatReply:
    """What came of a request."""

    key: str
    text: str  # of a request with a schema, the JSON that fits it
    error: str = ""  # why there is no text
    prompt_tokens: int = 0  # by the model's own count, over all attempts; 0 where the reply was cached
    completion_tokens: int = 0
    attempts: int = 1
    cached: bool = False
