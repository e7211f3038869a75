"""A judge's verdicts on the statements of many answers (`evaluation/judging.py` says what they measure), kept beside the answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from ultramed_rl.config.judge_models import StatementJudge
from ultramed_rl.evaluation.items import Item
from ultramed_rl.evaluation.judging import (
    StatementScores,
    StatementSummary,
    Verdict,
    read_verdict,
    statement_prompt,
    statement_template,
    summarize_statements,
)
from ultramed_rl.evaluation.runner import AnswerPlace
from ultramed_rl.records import Completion
from ultramed_rl.rewards.judge_client import JudgeClient, Reply
from ultramed_rl.store.atomic import read_lines, write_lines
from ultramed_rl.tracking import Progress

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
        self.judge = JudgeClient(config)
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
        replies: list[Reply[Verdict]] = self.judge.ask_for(
            prompts, lambda reply: read_verdict(reply.text), advance
        )
        unread = [reply.text[-200:] for reply in replies if reply.value is None]
        share = f"{len(unread)} of {len(replies)} statements have no readable verdict"
        if 2 * len(unread) > len(replies):
            raise ValueError(
                f"judge {self.config.shown!r}: {share}, as in {unread[0]!r}; raise judge.max_tokens, or ask in the "
                "template for a last line 'Verdict: <entailed, neutral or contradicted>'"
            )
        if unread:
            logger.warning("judge: %s, as in %r", share, unread[0])
        left, scores = iter(replies), []
        for item in items:
            own, count = list(islice(left, count_statements([item]))), len(item.required)
            verdicts, texts = tuple(reply.value for reply in own), tuple(reply.text for reply in own)
            scores.append(StatementScores(item.item_id, verdicts[:count], verdicts[count:], texts))
        return scores

    def requests(self, item: Item, answer: str) -> list[str]:
        """What the judge is asked about one answer: a text for each statement, required ones first."""
        return [
            statement_prompt(item.question, answer, statement, self.template)
            for statement in (*item.required, *item.optional)
        ]


def judge_statements(
    judge: StatementGrader,
    answered: Sequence[tuple[Item, Completion]],
    place: AnswerPlace,
    progress: Progress,
    seed: int,
) -> StatementSummary:
    """What a judge makes of answers, in figures.

    Its verdicts stay in the folder for reading, in `statements*/verdicts.jsonl`; a resumed run doesn't ask for them
    again. Raises RuntimeError, ValueError: as `StatementGrader.grade`.
    """
    name = f"statements{place.suffix}"
    items, texts = [item for item, _ in answered], [answer.answer for _, answer in answered]

    def compute(directory: Path) -> dict[str, float]:
        with progress.phase(name.replace("-", ", ", 1), count_statements(items), "statements") as bar:
            scores = judge.grade(items, texts, bar.advance)
        rows = [
            {
                "item_id": item.item_id,
                "question": item.question,
                "answer": answer.text,
                "cut": answer.finish_reason == "length",
                "must_have": list(item.required),
                "must_have_verdicts": list(score.required),
                "nice_to_have": list(item.optional),
                "nice_to_have_verdicts": list(score.optional),
                "replies": list(score.replies),
            }
            for (item, answer), score in zip(answered, scores, strict=True)
        ]
        write_lines(directory / "verdicts.jsonl", rows)
        return {"cut": sum(answer.finish_reason == "length" for _, answer in answered)}

    asked = [request for pair in zip(items, texts, strict=True) for request in judge.requests(*pair)]
    folder, counts = place.folder.phase_directory(name, compute, asked, judge.config.shown)
    if counts["cut"]:
        progress.say(
            f"{name}: {counts['cut']:.0f} of {len(items)} answers met max_new_tokens; judged as they are"
        )
    rows = read_lines(folder / "verdicts.jsonl")
    keys = ("must_have_verdicts", "nice_to_have_verdicts", "replies")
    scores = [StatementScores(row["item_id"], *(tuple(row[key]) for key in keys)) for row in rows]
    return summarize_statements(scores, seed=seed)
