"""How near answers are to their questions, or to the data's own answers, by a sentence encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ultramed_rl.config.judges import Likeness
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.rewards.term import with_prompts


class AnswerLikeness:
    """The cosine of two texts' embeddings. It is no reward: whoever is rewarded for it learns to echo the question."""

    def __init__(self, config: Likeness, embed: Callable[[Sequence[str]], Any] | None = None) -> None:
        """`embed` gives unit vectors. Raises ValueError: the encoder cannot be loaded."""
        if embed is None:
            from ultramed_rl.models.embedding import Embedder

            embed = Embedder(config.embedder)
        self.config, self.embed = config, embed

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """-1 to 1, 0 for an empty answer; NaN where the prompt has nothing to compare with."""
        pairs = []
        for prompt, answer in with_prompts(prompts, completions):
            target = prompt.messages[-1]["content"] if self.config.to == "question" else prompt.answer or ""
            pairs.append((target.strip(), answer.text.strip()))
        texts = list(dict.fromkeys(text for pair in pairs for text in pair if text))
        vectors = dict(zip(texts, self.embed(texts), strict=True))
        return [
            math.nan if not target else float(np.dot(vectors[target], vectors[answer])) if answer else 0.0
            for target, answer in pairs
        ]
