"""Reward of a final answer that can be checked: an option's letter or a number."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from ultramed_rl.config.rewards import AnswerTerm
from ultramed_rl.data.vignettes import read_options
from ultramed_rl.evaluation.reading.choice import read_letter
from ultramed_rl.evaluation.reading.text import read_number, read_reference_number
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.rewards.term import with_prompts

logger = logging.getLogger(__name__)


class AnswerMatch:
    """Compares each completion's answer with that of its prompt's reference.

    Where there is no reference, or it holds neither letter nor number, all completions of the prompt get 0:
    NaN would set them aside, and 0 for all leaves their order to the other terms.
    """

    def __init__(self, config: AnswerTerm) -> None:
        self.config = config

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """`right`, `wrong`, `missing`, or 0 where the prompt gives nothing to compare with."""
        keys = {prompt.prompt_id: self._key(prompt) for prompt in prompts}
        options = {prompt.prompt_id: _options(prompt) for prompt in prompts}
        without = sum(key is None for key in keys.values())
        if without:
            logger.warning(
                "%s: %d of %d prompts have no %s to compare with; their answers get 0",
                self.config.name,
                without,
                len(keys),
                "letter or number" if self.config.kind == "auto" else self.config.kind,
            )
        return [
            self._value(keys[prompt.prompt_id], completion.text, options[prompt.prompt_id])
            for prompt, completion in with_prompts(prompts, completions)
        ]

    def _key(self, prompt: Prompt) -> str | float | None:
        """The reference's letter or number."""
        if prompt.answer is None:
            return None
        kind = self.config.kind
        letter = None if kind == "number" else read_letter(prompt.answer, _options(prompt))
        if letter is not None or kind == "letter":
            return letter
        return (read_number if kind == "number" else read_reference_number)(prompt.answer)

    def _value(self, key: str | float | None, answer: str, options: dict[str, str]) -> float:
        if key is None:
            return 0.0
        given = read_letter(answer, options) if isinstance(key, str) else read_number(answer)
        if given is None:
            return self.config.missing
        return self.config.right if self._same(key, given) else self.config.wrong

    def _same(self, key: str | float, given: str | float) -> bool:
        if isinstance(key, str) or isinstance(given, str):
            return key == given
        # The reference's size counts, not the larger of the two: a huge answer would widen its own window.
        tolerance = max(self.config.relative_tolerance * abs(key), self.config.absolute_tolerance)
        return math.isclose(key, given, rel_tol=1e-12, abs_tol=tolerance)


def _options(prompt: Prompt) -> dict[str, str]:
    """The options that the last message lists, by letter."""
    return read_options(prompt.messages[-1]["content"]) if prompt.messages else {}
