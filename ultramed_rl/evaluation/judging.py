"""Free-text answers against a physician's statements, as K-QA measures them (arXiv 2401.14493).

An item has statements that an answer must hold (must-have, `Item.required`) and such as it may (nice-to-have,
`Item.optional`). A judge says of each whether the answer entails it, contradicts it, or neither (neutral).

- Comprehensiveness of an answer: its entailed must-have statements / its must-have statements. Of a model: the
  mean over items; higher is better.
- Hallucination rate of an answer: the number of its statements, of both kinds, that it contradicts. Of a
  model: the mean over items, statements per item and no share; lower is better.

Besides, the share of items with a contradiction, and the coverage of nice-to-have statements. The paper's own
script asks in two requests (entailed? contradicted?), by GPT-4 with worked examples, where one request here
gives one of three verdicts; and it counts a reply that it cannot read as a no. Compare models under one judge
and one template, not with the paper's figures.

A verdict is one of three words, alone or in a short sentence that holds nothing else ("The answer contradicts
the statement."). It may be marked: "Verdict: neutral", {"label": "entailed"}, a box. The last line with a mark
decides. Without a mark, the reply must end in a verdict, or begin with one: "Neutral. It names no dose."
Whatever hedges, denies or names two is none: "not entailed" may mean either of the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Literal

from ultramed_rl.data.templates import read_template, without_tags
from ultramed_rl.evaluation.statistics import Interval, mean_interval, wilson_interval
from ultramed_rl.thoughts import after_thoughts

Verdict = Literal["entailed", "neutral", "contradicted"]

_KINDS: dict[str, Verdict] = {"e": "entailed", "n": "neutral", "c": "contradicted"}
_WORD = r"(?P<verdict>entail(?:s|ed|ment|ing)?|contradict(?:s|ed|ion|ory|ing)?|neutral)"
_NOUN = r"(?:answer|response|text|statement|hypothesis)"
_PLAIN = re.compile(
    r"(?:(?:so|thus|hence|therefore|overall|in\s+conclusion|in\s+short),?\s+)?(?:that\s+)?"
    rf"(?:(?:(?:the|this)\s+{_NOUN}|it|this)\s+)?"
    r"(?:(?:is|a|an|clearly|directly|explicitly|fully|entirely|therefore|thus)\s+)*"
    rf"{_WORD}(?:\s+(?:by|with|to|towards?|of|the|this|it|{_NOUN}))*",
    re.IGNORECASE,
)
_FIRST = re.compile(
    r"[\s\"'(\[]*(?P<verdict>entail(?:s|ed)|contradict(?:s|ed)|neutral)[\"')\]]*[.;!]\s", re.I
)
_WITHIN_EDGES = re.compile(r"[\w?](?:.*[\w?])?", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n")
# A judge speaks of "the answer" all the time: that word marks a verdict only where one follows.
_MARK = re.compile(
    r"(?<![\w/])(?:(?:verdict|label|classification|judge?ment|conclusion)(?:\s*\([^)\n]{0,40}\))?"
    r"[\"']?\s*(?:[:：=>]+|[–—-]+(?=\s)|is\b:?)|(?P<weak>answer|relation(?:ship)?)[\"']?\s*[:：=])"
    r"|\\boxed(?=\{)",
    re.IGNORECASE,
)
_OPENING = re.compile(r"(?:[\s\"'(\[{<]|\\text|\\mathrm)*")
# What may follow a verdict: a reason, but no alternative.
_CLOSING = re.compile(
    r"[.;!\n\"')\]}<>]|\((?!\s*(?:or|and)\b)|\s[–—-]+\s|,?\s+(?:because|since|as\s+(?:the|it))\b|,\s*$", re.I
)
_OURS = Path(__file__).with_name("statement_prompt.txt")
_FIELDS = ("question", "answer", "statement")


@dataclass(frozen=True)
class StatementScores:
    """The verdicts on one answer, in the order of the item's statements; None where none could be read.

    An unread verdict is left out of the shares, above and below the line.
    """

    item_id: str
    required: tuple[Verdict | None, ...]
    optional: tuple[Verdict | None, ...]
    replies: tuple[str, ...] = ()  # the judge's last words on each statement, required ones first

    @property
    def verdicts(self) -> tuple[Verdict | None, ...]:
        """Those on statements of both kinds."""
        return (*self.required, *self.optional)


@dataclass(frozen=True)
class StatementSummary:
    """A model's figures over items, each with its 95 % interval; None where no item gives a number.

    All are of the `items` that have a verdict at all, comprehensiveness and coverage of those among them with a verdict
    on a must-have or nice-to-have statement.
    """

    comprehensiveness: Interval | None
    hallucination: Interval | None  # in statements per item
    contradicting: Interval | None
    coverage: Interval | None
    items: int
    statements: int  # over all items
    unread: int  # without a verdict, over all items

    @property
    def intervals(self) -> dict[str, Interval]:
        """The figures that there are."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Interval)}

    @property
    def metrics(self) -> dict[str, float]:
        """Their means, flat, for a tracker."""
        return {f"kqa_{name}": interval.mean for name, interval in self.intervals.items()}


def statement_template(path: str | None, key: str = "judge.template") -> Template:
    """The template of a file, or our own. Raises ValueError as `read_template`."""
    return read_template(_OURS if path is None else Path(path), _FIELDS, (), key)


def statement_prompt(question: str, answer: str, statement: str, template: Template) -> str:
    """What the judge is asked about one statement. Of an answer with reasoning, only what follows it."""
    texts = zip(_FIELDS, (question, after_thoughts(answer), statement), strict=True)
    return template.substitute({name: without_tags(text, *_FIELDS) for name, text in texts})


def summarize_statements(
    scores: Sequence[StatementScores], resamples: int = 1000, seed: int = 0
) -> StatementSummary:
    """The figures over items: percentile bootstrap over items, for `contradicting` Wilson's interval.

    Raises:
        ValueError: resamples < 1.
    """
    judged = [score for score in scores if any(score.verdicts)]
    contradictions = [score.verdicts.count("contradicted") for score in judged]

    def mean(values: Sequence[float]) -> Interval | None:
        return mean_interval(values, resamples, seed) if values else None

    def entailed(kind: str) -> Interval | None:
        """Of the verdicts of this kind that there are; an item without any is left out."""
        verdicts = ([verdict for verdict in getattr(score, kind) if verdict] for score in judged)
        return mean([read.count("entailed") / len(read) for read in verdicts if read])

    return StatementSummary(
        comprehensiveness=entailed("required"),
        hallucination=mean(contradictions),
        contradicting=wilson_interval(sum(map(bool, contradictions)), len(judged)) if judged else None,
        coverage=entailed("optional"),
        items=len(judged),
        statements=sum(len(score.verdicts) for score in scores),
        unread=sum(score.verdicts.count(None) for score in scores),
    )


def read_verdict(reply: str) -> Verdict | None:
    """The verdict that a judge's reply settles on, or None for none and for several.

    Example: "It names no dose.\\n**Verdict:** Neutral" gives "neutral"; "entailed or neutral" gives None.
    """
    # Without Markdown, curly quotes, repeated spaces and empty lines.
    bare = re.sub(r"[*_`#]+", "", reply).translate(str.maketrans("“”‘’", "\"\"''"))
    text = "\n".join(filter(None, (" ".join(line.split()) for line in bare.splitlines())))
    sentences = [_plain(sentence) for sentence in _SENTENCE_END.split(text)]
    closing, marked, first = sentences[-1], _marked(text), _FIRST.match(text)
    if marked:
        return _only([*marked, closing or marked[-1]])
    if first is None and closing is None:
        return None
    # A first word that is a verdict is a sentence, too.
    return _only(verdict for verdict in sentences if verdict is not None)


def _marked(text: str) -> list[Verdict | None]:
    """What stands after each mark of the last line that has one; None where that is no verdict."""
    by_line: dict[int, list[Verdict | None]] = {}
    marks = list(_MARK.finditer(text))
    for index, mark in enumerate(marks):
        end = marks[index + 1].start() if index + 1 < len(marks) else len(text)
        opening = _OPENING.match(text, mark.end(), end)
        start = opening.end() if opening else mark.end()
        closing = _CLOSING.search(text, start, end)
        verdict = _plain(text[start : closing.start() if closing else end])
        if verdict or not mark["weak"]:
            by_line.setdefault(text.count("\n", 0, mark.start()), []).append(verdict)
    return by_line[max(by_line)] if by_line else []


def _plain(sentence: str) -> Verdict | None:
    """The verdict of a sentence that holds nothing else."""
    words = _WITHIN_EDGES.search(sentence)
    match = _PLAIN.fullmatch(words[0]) if words else None
    return _KINDS[match["verdict"][0].lower()] if match else None


def _only(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    kinds = set(verdicts)
    return kinds.pop() if len(kinds) == 1 else None
