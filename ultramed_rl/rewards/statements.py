"""A judge's verdicts on the statements of many answers (`evaluation/entailment.py` says what they measure)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice

from ultramed_rl.config.rewards import StatementJudge
from ultramed_rl.evaluation.items import Item
from ultramed_rl.evaluation.judging.entailment import StatementScores, statement_prompt, statement_template
from ultramed_rl.evaluation.judging.verdicts import Verdict, read_verdict
from ultramed_rl.rewards.api import ApiClient, Reply

logger = logging.getLogger(__name__)


def count_statements(items: Sequence[Item]) -> int:
    """The statements of these items: what `StatementGrader.grade` tells its `advance` of, in total."""
    return sum(len(item.required) + len(item.optional) for item in items)


class StatementGrader:
    """Asks for the verdict on each statement singly, those of all answers at once.

    A reply without a readable verdict is asked for again, `retries` times; then the statement has none.
    """

    def __init__(self, config: StatementJudge) -> None:
        """Raises ValueError: the key's variable isn't set, or the template cannot be used. Connects to nothing."""
        self.config = config
        self.api = ApiClient(config)
        self.template = statement_template(config.template)

    def grade(
        self, items: Sequence[Item], answers: Sequence[str], advance: Callable[[int], None] | None = None
    ) -> list[StatementScores]:
        """The verdicts on each answer, in their order; an item may occur with several answers.

        Args:
            items: the answers' own, one for each.
            advance: told of each statement that is done, from the calling thread.

        Raises:
            RuntimeError: the API cannot be reached or refuses.
            ValueError: more than half of the statements have no readable verdict.
        """
        pairs = list(zip(items, answers, strict=True))
        prompts = [text for pair in pairs for text in self.requests(*pair)]
        replies: list[Reply[Verdict]] = self.api.ask_for(prompts, read_verdict, advance)
        self._check(replies)
        rest = iter(replies)
        return [_scores(item, list(islice(rest, count_statements([item])))) for item in items]

    def requests(self, item: Item, answer: str) -> list[str]:
        """What the judge is asked about one answer: a text for each statement, required ones first."""
        return [
            statement_prompt(item.question, answer, statement, self.template)
            for statement in (*item.required, *item.optional)
        ]

    def _check(self, replies: Sequence[Reply[Verdict]]) -> None:
        unread = [reply.text for reply in replies if reply.value is None]
        if 2 * len(unread) > len(replies):
            raise ValueError(
                f"judge {self.config.model!r}: {len(unread)} of {len(replies)} statements have no readable "
                f"verdict, as in {unread[0][-200:]!r}; raise judge.max_tokens, or ask in the template for a "
                "last line 'Verdict: <entailed, neutral or contradicted>'"
            )
        if unread:
            logger.warning(
                "judge: %d of %d statements have no readable verdict, as in %r",
                len(unread),
                len(replies),
                unread[0][-200:],
            )


def _scores(item: Item, replies: Sequence[Reply[Verdict]]) -> StatementScores:
    verdicts = tuple(reply.value for reply in replies)
    count = len(item.required)
    texts = tuple(reply.text for reply in replies)
    return StatementScores(item.item_id, verdicts[:count], verdicts[count:], texts)
