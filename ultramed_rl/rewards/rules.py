"""Rewards by rule: a right final answer, a length, a form."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence

from ultramed_rl.config.judges import RuleCheck
from ultramed_rl.config.rewards import AnswerTerm, FormatTerm, LengthTerm
from ultramed_rl.data.vignettes import read_options
from ultramed_rl.evaluation.reading.choice import read_letter
from ultramed_rl.evaluation.reading.text import read_number, read_reference_number
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.rewards.term import with_prompts

logger = logging.getLogger(__name__)
_WORD = re.compile(r"\S*\w\S*")
_SENTENCE_END = re.compile(
    r"(?<!\b[a-z]\.)(?<!\b\d\.)(?<!\bDr\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bvs\.)(?<=[.!?…])[\"'”’)\]*]*\s+(?![a-z])|\n+"
)
_WHOLE = re.compile(r"[.!?…][\"'”’)\]*]*$")


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
        if without := sum(key is None for key in keys.values()):
            wanted = "letter or number" if self.config.kind == "auto" else self.config.kind
            said = "%s: %d of %d prompts have no %s to compare with; their answers get 0"
            logger.warning(said, self.config.name, without, len(keys), wanted)
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


class AnswerLength:
    """A window with linear sides, or a penalty per token over a free allowance."""

    def __init__(self, config: LengthTerm) -> None:
        self.config = config

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """0 to 1 in the window's form; 0 or minus the tokens over `free` in the other."""
        counted = {
            "answer": lambda c: c.answer_tokens,
            "thought": lambda c: c.thought_tokens,
            "all": lambda c: len(c.token_ids),
        }[self.config.of]
        return [self._value(counted(completion)) for completion in completions]

    def _value(self, tokens: int) -> float:
        config = self.config
        if config.free is not None:
            return -float(max(0, tokens - config.free))
        assert config.low is not None and config.high is not None and config.falloff is not None
        return max(0.0, 1.0 - max(config.low - tokens, tokens - config.high, 0) / config.falloff)


class FormatRules:
    """All rules kept, or not."""

    def __init__(self, config: FormatTerm | RuleCheck) -> None:
        self.config = config
        names = ("must_match", "must_not_match", "mentions")
        self.wanted, self.unwanted, self.named = (
            None if (pattern := getattr(config, name)) is None else re.compile(pattern) for name in names
        )

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        """`passed` or `failed` for each completion."""
        config = self.config
        kept = (all(self._rules(*pair)) for pair in with_prompts(prompts, completions))
        return [config.passed if passed else config.failed for passed in kept]

    def _rules(self, prompt: Prompt, completion: Completion) -> Iterator[bool]:
        """Whether each rule that is set is kept."""
        config, text = self.config, completion.text
        yield not config.ended or completion.finish_reason != "length"
        yield self.wanted is None or bool(self.wanted.search(text))
        yield self.unwanted is None or not self.unwanted.search(text)
        if self.named is not None:
            yield mentions_one(text, self.named.findall(prompt.messages[-1]["content"]))
        yield _within(config.min_words, len(_WORD.findall(text)), config.max_words)
        if config.min_sentences is not None or config.max_sentences is not None:
            sentences = split_sentences(text)
            yield all(map(_WHOLE.search, sentences))
            yield _within(config.min_sentences, len(sentences), config.max_sentences)


def mentions_one(text: str, names: Sequence[str | tuple[str, ...]]) -> bool:
    """Whether a text has one of these words, whatever the case; where a pattern has groups, what the first ones found."""
    words = [name if isinstance(name, str) else next(filter(None, name), "") for name in names]
    found = "|".join(re.escape(word) for word in words if word)
    return not found or bool(re.search(rf"(?<!\w)(?:{found})(?!\w)", text, re.IGNORECASE))


def split_sentences(text: str) -> list[str]:
    """A text's sentences and lines, those that hold a word. A sign before a small letter ends none, nor does one after an
    abbreviation or a list's number."""
    return [part for part in map(str.strip, _SENTENCE_END.split(text)) if _WORD.search(part)]


def _within(low: int | None, count: int, high: int | None) -> bool:
    return (low is None or count >= low) and (high is None or count <= high)
