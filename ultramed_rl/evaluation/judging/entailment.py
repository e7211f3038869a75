"""Free-text answers against a physician's statements, as K-QA measures them (arXiv 2401.14493).

An item has statements that an answer must hold (must-have, `Item.required`) and such as it may (nice-to-have,
`Item.optional`). A judge says of each whether the answer entails it, contradicts it, or neither (neutral).

- Comprehensiveness of an answer: its entailed must-have statements / its must-have statements. Of a model: the
  mean over items; higher is better.
- Hallucination rate of an answer: the number of its statements, of both kinds, that it contradicts. Of a
  model: the mean over items, statements per item and no share; lower is better.

Besides, what the paper doesn't report: the share of items with a contradiction, and the coverage of
nice-to-have statements. Two differences from the paper's own script: it asks in two requests whether a
statement is entailed and whether it is contradicted, by GPT-4 with worked examples, where one request here
gives one of three verdicts; and it counts a reply that it cannot read as a no. Compare models under one judge
and one template, not with the paper's figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from ultramed_rl.data.templates import read_template, without_tags
from ultramed_rl.evaluation.judging.verdicts import Verdict
from ultramed_rl.evaluation.statistics import Interval, paired_bootstrap, wilson_interval

_OURS = Path(__file__).with_name("statement_prompt.txt")
_FIELDS = ("question", "answer", "statement")


@dataclass(frozen=True)
class StatementScores:
    """The verdicts on one answer, in the order of the item's statements; None where none could be read.

    An unread verdict is left out of the shares, above and below the line. `replies` are the judge's last
    words on each statement, required ones first.
    """

    item_id: str
    required: tuple[Verdict | None, ...]
    optional: tuple[Verdict | None, ...]
    replies: tuple[str, ...] = ()

    @property
    def comprehensiveness(self) -> float:
        """Share of must-have statements that are entailed; NaN where no verdict on one was read."""
        return _entailed(self.required)

    @property
    def coverage(self) -> float:
        """Share of nice-to-have statements that are entailed; NaN where no verdict on one was read."""
        return _entailed(self.optional)

    @property
    def contradictions(self) -> int:
        """Statements of both kinds that are contradicted, at least: an unread verdict may be another."""
        return (*self.required, *self.optional).count("contradicted")

    @property
    def statements(self) -> int:
        """Statements of both kinds."""
        return len(self.required) + len(self.optional)

    @property
    def unread(self) -> int:
        """Statements without a verdict."""
        return (*self.required, *self.optional).count(None)


@dataclass(frozen=True)
class StatementSummary:
    """A model's figures over items, each with its 95 % interval; None where no item gives a number.

    `hallucination` is in statements per item. `items` have at least one verdict; all figures are of these,
    comprehensiveness and coverage of those among them with a verdict on a must-have or nice-to-have statement.
    `statements` and `unread` (without a verdict) count over all items.
    """

    comprehensiveness: Interval | None
    hallucination: Interval | None
    contradicting: Interval | None
    coverage: Interval | None
    items: int
    statements: int
    unread: int

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that there are, flat, for a tracker."""
        names = ("comprehensiveness", "hallucination", "contradicting", "coverage")
        found = {name: getattr(self, name) for name in names}
        return {f"kqa_{name}": interval.mean for name, interval in found.items() if interval is not None}


def statement_template(path: str | None, key: str = "judge.template") -> Template:
    """The template of a file, or our own. Raises ValueError as `read_template`."""
    file = _OURS if path is None else Path(path)
    return read_template(file, _FIELDS, (), key)


def statement_prompt(question: str, answer: str, statement: str, template: Template) -> str:
    """What the judge is asked about one statement. Of an answer with reasoning, only what follows `</think>`."""
    texts = (question, answer.rpartition("</think>")[2].strip(), statement)
    harmless = [without_tags(text, *_FIELDS) for text in texts]
    return template.substitute(dict(zip(_FIELDS, harmless, strict=True)))


def summarize_statements(
    scores: Sequence[StatementScores], resamples: int = 1000, seed: int = 0
) -> StatementSummary:
    """The figures over items: percentile bootstrap over items, for `contradicting` Wilson's interval.

    Raises:
        ValueError: resamples < 1.
    """
    judged = [score for score in scores if score.unread < score.statements]
    contradicting = sum(score.contradictions > 0 for score in judged)

    def mean(number: Callable[[StatementScores], float]) -> Interval | None:
        values = [value for value in map(number, judged) if not math.isnan(value)]
        # A mean is its difference from zero.
        return paired_bootstrap([0.0] * len(values), values, resamples, seed) if values else None

    return StatementSummary(
        comprehensiveness=mean(lambda score: score.comprehensiveness),
        hallucination=mean(lambda score: score.contradictions),
        contradicting=wilson_interval(contradicting, len(judged)) if judged else None,
        coverage=mean(lambda score: score.coverage),
        items=len(judged),
        statements=sum(score.statements for score in scores),
        unread=sum(score.unread for score in scores),
    )


def _entailed(verdicts: Sequence[Verdict | None]) -> float:
    read = [verdict for verdict in verdicts if verdict is not None]
    return read.count("entailed") / len(read) if read else math.nan
