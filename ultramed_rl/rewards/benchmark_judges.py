"""Who reads the answers of benchmarks that need a judge: K-QA's statements, AlpacaEval 2's duels, MT-Bench's chats, HealthBench's
rubrics.

What a judge said stays beside the answers, in NAME/verdicts.jsonl; a resumed run doesn't ask for it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from ultramed_rl.config.benchmarks import Benchmarks
from ultramed_rl.config.rewards import JudgeTerm, PairwiseTerm
from ultramed_rl.data.sources import read_rows
from ultramed_rl.evaluation.chat_scores import AnsweredDuel, summarize_duels, summarize_grades
from ultramed_rl.evaluation.healthbench import GraderAgreement
from ultramed_rl.evaluation.items import JUDGED, Item
from ultramed_rl.evaluation.length_control import Regularizer
from ultramed_rl.evaluation.report import Judged
from ultramed_rl.evaluation.runner import AnswerPlace, AskedPolicy, BenchmarkRunner
from ultramed_rl.evaluation.suite import AskedTask
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards.healthbench import judge_rubrics, measure_grader
from ultramed_rl.rewards.judge import Judge
from ultramed_rl.rewards.judge_client import JudgeClient, Turn
from ultramed_rl.rewards.pairwise import PairwiseJudge
from ultramed_rl.rewards.rubric import RubricGrader
from ultramed_rl.rewards.statements import StatementGrader, judge_statements
from ultramed_rl.store.atomic import read_lines, write_lines
from ultramed_rl.tracking import Progress

Served = Callable[[JudgeClient], AbstractContextManager[Turn]]


class BenchmarkJudges:
    """The judge and the grader of a suite, where its tasks need them."""

    def __init__(self, suite: Sequence[AskedTask], config: Benchmarks) -> None:
        """Raises ValueError: the key's variable isn't set, a template cannot be used, or difficulties cannot be read.
        RuntimeError: the grader's cache cannot be opened."""
        self.config, judge = config, config.judge
        forms = {asked.task.form for asked in suite} & JUDGED
        plain = judge.model_dump(exclude={"template"}) if judge else {}
        self.statements = StatementGrader(judge) if judge and "statements" in forms else None
        self.referee = PairwiseJudge(PairwiseTerm(**plain)) if "preference" in forms else None
        self.chats = Judge(JudgeTerm(**plain, name="mt_bench")) if "chat" in forms else None
        self.grader = RubricGrader(config.grader) if config.grader and "rubric" in forms else None
        self._agreement: GraderAgreement | None = None
        source = {choice.name: choice.difficulties for choice in config.tasks}.get("alpaca_eval")
        self.difficulties: dict[str, float] | None = None
        self.gamed: Regularizer | None = None
        if source is not None:
            self.difficulties, self.gamed = read_difficulties(source)

    def read(
        self,
        runner: BenchmarkRunner,
        policy: AskedPolicy,
        place: AnswerPlace,
        progress: Progress,
        seed: int,
        served: Served,
    ) -> Iterator[tuple[str, Judged]]:
        """What the judges make of a policy's answers, one after the other: by the kind of verdict, of rubrics by task and protocol.
        With the starting policy also `grader`: HealthBench's grader against physicians, where it is measured.

        Args:
            served: gives turns of the engines that a judge is on.

        Raises:
            RuntimeError: the API cannot be reached or refuses; too few engines are left.
            ValueError: too little can be read.
        """
        judges: list[StatementGrader | PairwiseJudge | Judge | RubricGrader | None]
        judges = [self.statements, self.referee, self.chats, self.grader]
        for one in judges:
            if one is not None and one.judge.engine is not None:
                one.judge.served = partial(served, one.judge)
        if self.statements is not None:
            answered = runner.judged(policy, "statements")
            yield "statements", judge_statements(self.statements, answered, place, progress, seed)
        if self.referee is not None:
            duels = judge_duels(self.referee, runner.judged(policy, "preference"), place, progress)
            yield "alpaca_eval", summarize_duels(duels, self.difficulties, self.gamed, seed)
        if self.chats is not None:
            grades = judge_chats(self.chats, *runner.chats(policy), place, progress)
            categories = [item.subject for item, _ in runner.judged(policy, "chat")]
            yield "mt_bench", summarize_grades(grades, categories, seed)
        if self.grader is not None and self.config.grader is not None:
            for summary in judge_rubrics(self.grader, runner.rubrics(policy), place, progress, seed):
                yield f"{summary.task}_{summary.protocol}", summary
            if self._agreement is None and not place.version:
                self._agreement = measure_grader(self.grader, self.config.grader, place.folder, progress)
            if self._agreement is not None and not place.version:
                yield "grader", self._agreement


def read_difficulties(uri: str) -> tuple[dict[str, float], Regularizer]:
    """AlpacaEval's `df_gamed.csv`: by item how difficult it is, and the verdicts on the gamed baselines.

    Raises:
        ValueError: it cannot be read, or a row lacks one of its columns.
    """
    columns = ("index", "instruction_difficulty", "preference", "std_delta_len")
    try:
        rows = [[float(row[name]) for name in columns] for row in read_rows(uri)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"difficulties={uri!r}: no number in a row's {error}; name df_gamed.csv") from None
    known = [row for row in rows if not any(map(math.isnan, row))]
    index, difficulty, wins, gaps = zip(*known, strict=True)
    names = [f"{place:.0f}" for place in index]
    return dict(zip(names, difficulty, strict=True)), Regularizer(wins, gaps, difficulty)


def judge_duels(
    judge: PairwiseJudge, answered: Sequence[tuple[Item, Completion]], place: AnswerPlace, progress: Progress
) -> list[AnsweredDuel]:
    """The judge's verdicts on a policy's answers beside the baseline's, each pair shown in both orders."""
    shown = [
        (Prompt(item.item_id, (Message(role="user", content=item.question),)), answer.text, item.beside[0])
        for item, answer in answered
    ]

    def compute() -> Iterable[dict[str, Any]]:
        with progress.phase("alpaca_eval's judge", len(shown), "duels") as bar:
            found = judge.judge.run([partial(judge.compare, *one) for one in shown], bar.advance)
        for (item, _), (_, own, other), (duel, replies) in zip(answered, shown, found, strict=True):
            row = {"item_id": item.item_id, "instruction": item.question, "answer": own, "baseline": other}
            yield row | {"points": [duel.first, duel.second], "replies": replies}

    asked = [judge.request(*one) for one in shown]
    return [
        AnsweredDuel(first, second, row["item_id"], len(row["answer"]), len(row["baseline"]))
        for row in _kept("alpaca_eval", place, compute, asked, judge.config.shown)
        for first, second in [row["points"]]
    ]


def judge_chats(
    judge: Judge,
    prompts: Sequence[Prompt],
    answers: Sequence[Completion],
    place: AnswerPlace,
    progress: Progress,
) -> list[tuple[float | None, float | None]]:
    """The judge's grades of both turns of each chat, 1 to 10. The first turns stand before the second ones, which are shown after the
    first, with its answer."""
    low, high = judge.config.scale.low, judge.config.scale.high

    def compute() -> Iterable[dict[str, Any]]:
        with progress.phase("mt_bench's judge", len(prompts), "grades") as bar:
            shares = judge.score(prompts, answers)
            bar.advance(len(prompts))
        for prompt, answer, share in zip(prompts, answers, shares, strict=True):
            grade = None if math.isnan(share) else low + (high - low) * share
            yield {"messages": prompt.messages, "answer": answer.text, "grade": grade}

    asked = [judge.request(*pair) for pair in zip(prompts, answers, strict=True)]
    grades = [row["grade"] for row in _kept("mt_bench", place, compute, asked, judge.config.shown)]
    chats = len(grades) // 2
    return list(zip(grades[:chats], grades[chats:], strict=True))


def _kept(
    name: str, place: AnswerPlace, compute: Callable[[], Iterable[dict[str, Any]]], *inputs: Any
) -> list[dict[str, Any]]:
    """Rows that `compute` gives, or gave before of the same inputs."""

    def write(directory: Path) -> dict[str, float]:
        write_lines(directory / "verdicts.jsonl", list(compute()))
        return {}

    folder, _ = place.folder.phase_directory(f"{name}{place.suffix}", write, *inputs)
    return read_lines(folder / "verdicts.jsonl")
