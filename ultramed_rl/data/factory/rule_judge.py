"""A judge without a model: scores that rules can justify, for a setting where no model at hand can judge.

What it can tell: whether a multiple-choice answer gives the right letter, whether an answer ends, has a sensible
length, repeats or contradicts itself, and speaks of what was asked. What it cannot: whether an open-ended answer is true, safe or
well reasoned. There `correctness` is only the share of the question's words that the answer takes up, which an answer
that echoes the question gets in full. Preferences made by it teach a model to finish, to keep to the subject and
not to babble; they are no medical judgement, and no figure of theirs says anything about a model's knowledge.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ultramed_rl.config.factory_steps import RuleJudge
from ultramed_rl.data.factory.answer import ReadLetter
from ultramed_rl.data.factory.instructions import Instruction, read_instruction
from ultramed_rl.data.factory.judgements import Candidate, Verdict, judged_row, read_candidates
from ultramed_rl.data.factory.step import Ask, End, Fail, Keep, Row, name_of
from ultramed_rl.data.likeness import read_words
from ultramed_rl.learning.seeds import seeded_number

LOW, HIGH = 1.0, 5.0
NAME = "rules"
_LETTERS = 4  # words of so many letters and more carry what a question is about
_SENTENCE_END = re.compile(
    r"(?<=\w\w[.!?])\s+|(?<=[.!?])\s+(?=(?:The|It|I|So|Option)\b)|\n+"
    r"|(?<=\w [A-Z][.!?])\s+(?=[A-Z])|(?<=\b[A-Z][.!?])\s+(?=[A-Z][.!?](?:\s|$))"
)
_LABEL = re.compile(r"\W*(?:option )?[A-Z][*)]*[.):]", re.IGNORECASE)  # opens a line that echoes an option
# What two sentences may differ by and still be about the same: whether it holds, and of which option.
_POLARITY = re.compile(
    r"\w|no|not|never|cannot|don|does|doesn|did|didn|isn|aren|wasn|true|false|correct|incorrect|yes|always|often|sometimes"
    r"|rarely|maybe|perhaps|probably|surely|rather|or|may|might|can|could|will|would|should|must"
)
_SAME = 0.8  # of two sentences' different words, those in both


@dataclass(frozen=True)
class Signs:
    """What the rules see of an answer; shares are 0 to 1."""

    right: bool | None  # None for an open-ended question
    letter: str | None  # the option that the answer settles on
    ended: bool
    overlap: float  # of the question's different longer words, those that the answer has
    fit: float  # 1 for a length within the window, less in proportion outside; unclear sentences don't count
    repeated: float  # of its runs of n words those that repeat, or of its sentences the unclear ones


@dataclass(frozen=True)
class RuleJudgeStep:
    """A record with candidates to its judged row, as `FeedbackStep` writes it, without asking anyone.

    Scores run from 1 to 5 and are linear in a share s, 1 + 4 s:
    correctness   s = 1 for the right letter, 0 for a wrong one, 1/4 for none; open-ended: s = overlap
    completeness  s = fit, halved if the answer stops within a sentence
    clarity       s = 1 - repeated

    A sentence is unclear that repeats or reverses one before it, or states another option than the answer's.
    `overall` is their weighted mean. The ranking goes by it; of equal answers the less repetitive goes first,
    then one drawn by seed: such a rank means nothing, and `pairs.min_gap` > 0 leaves it out. `orders` is empty, as
    rules see no order.

    Fails by: too_few_candidates.
    """

    config: RuleJudge
    read_letter: ReadLetter

    async def __call__(self, row: Row, ask: Ask) -> End:
        instruction, candidates = read_instruction(row), read_candidates(row)
        if len(candidates) < 2:
            return Fail("too_few_candidates", f"{len(candidates)} of at least 2")
        signs = [self._signs(instruction, candidate) for candidate in candidates]
        scores, weights = [score_aspects(one) for one in signs], self.config.weights
        overall = [
            round(sum(weights[name] * score for name, score in one.items()) / sum(weights.values()), 3)
            for one in scores
        ]
        draw = lambda place: seeded_number(self.config.seed, "tie", name_of(row), place)
        places = range(len(candidates))
        order = sorted(places, key=lambda place: (-overall[place], signs[place].repeated, draw(place)))
        ranks = [order.index(place) + 1 for place in places]
        columns = zip(map(describe, signs), scores, overall, ranks, strict=True)
        return Keep((judged_row(row, NAME, [Verdict(*column) for column in columns], ()),))

    def _signs(self, instruction: Instruction, candidate: Candidate) -> Signs:
        words = read_words(candidate.text)
        read = lambda text: self.read_letter(text, instruction.options) if instruction.key else None
        letter = read(candidate.text)
        sentences = [one for one in _SENTENCE_END.split(candidate.text) if one.strip()] or [""]
        stated = [None if _LABEL.match(sentence) else read(sentence) for sentence in sentences]
        own = letter or next(filter(None, stated), None)
        # What is said again, for or against, and what states another option than the answer settles on, is unclear.
        fresh = find_fresh(sentences)
        clear = [
            s for s, new, one in zip(sentences, fresh, stated, strict=True) if new and one in (None, own)
        ]
        counts = (len(words), sum(len(read_words(sentence)) for sentence in clear))
        return Signs(
            right=None if instruction.key is None else letter == instruction.key,
            letter=letter,
            ended=not candidate.unfinished,
            overlap=overlap(instruction.stem, words),
            fit=min(length_fit(count, self.config.min_words, self.config.max_words) for count in counts),
            repeated=max(repeated_share(words, self.config.ngram), 1.0 - len(clear) / len(sentences)),
        )


def score_aspects(signs: Signs) -> dict[str, float]:
    """The three aspects' scores, 1 to 5."""
    known = signs.right is not None
    letter = 1.0 if signs.right else 0.25 if signs.letter is None else 0.0
    shares = {
        "correctness": letter if known else signs.overlap,
        "completeness": signs.fit if signs.ended else signs.fit / 2,
        "clarity": 1.0 - signs.repeated,
    }
    return {name: round(LOW + (HIGH - LOW) * share, 3) for name, share in shares.items()}


def describe(signs: Signs) -> str:
    """What the rules saw, as the evaluation's text."""
    key = {True: "right letter", False: "wrong letter" if signs.letter else "no letter", None: "open-ended"}
    end = "ends by itself" if signs.ended else "stops within a sentence"
    return (
        f"By rules, not by knowledge: {key[signs.right]}, {end}, question's words {signs.overlap:.0%}, "
        f"length {signs.fit:.0%}, repeated {signs.repeated:.0%}."
    )


def overlap(question: str, words: Sequence[str]) -> float:
    """The share of the question's different words of four letters and more that are among `words`; 0 of none."""
    asked = {word for word in read_words(question) if len(word) >= _LETTERS}
    return len(asked & set(words)) / len(asked) if asked else 0.0


def length_fit(count: int, low: int, high: int) -> float:
    """1 for low..high words, count/low below, high/count above."""
    return min(1.0, count / low, high / count) if count else 0.0


def repeated_share(words: Sequence[str], size: int) -> float:
    """Of the runs of `size` words, the share that stood before in the same text; 0 for a text that has none."""
    runs = Counter(tuple(words[first : first + size]) for first in range(len(words) - size + 1))
    return 1.0 - len(runs) / runs.total() if runs else 0.0


def find_fresh(sentences: Sequence[str]) -> list[bool]:
    """Whether each says something that none before it says, for or against: "rest helps" and then "rest doesn't help"
    is said twice, and so is "the answer is A", "the answer is B".
    """
    before: list[frozenset[str]] = []
    fresh = []
    for sentence in sentences:
        words = [word for word in read_words(sentence) if not _POLARITY.fullmatch(word)]
        about = frozenset(word.removesuffix("s") for word in words)
        # Two of nothing else ("Yes.", then "No.") say the same too.
        fresh.append(not any(len(about & one) >= _SAME * len(about | one) for one in before))
        before.append(about)
    return fresh
