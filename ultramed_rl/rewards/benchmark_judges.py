"""Who reads the answers of benchmarks that need a judge: K-QA's statements, AlpacaEval 2's duels, MT-Bench's chats, HealthBench's
rubrics.

What a judge said stays beside the answers, in NAME/verdicts.jsonl; a resumed run doesn't ask for it again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ultramed_rl.config.benchmarks import Benchmarks, Grader
from ultramed_rl.config.judge_models import StatementJudge
from ultramed_rl.config.rewards import JudgeTerm, PairwiseTerm
from ultramed_rl.data.sources import read_rows
from ultramed_rl.evaluation.chat_scores import AnsweredDuel, summarize_duels, summarize_grades
from ultramed_rl.evaluation.healthbench import (
    GradedExample,
    GraderAgreement,
    RubricSummary,
    grader_agreement,
    summarize_rubrics,
)
from ultramed_rl.evaluation.items import JUDGED, Item
from ultramed_rl.evaluation.judging import (
    StatementScores,
    StatementSummary,
    Verdict,
    read_verdict,
    statement_prompt,
    statement_template,
    summarize_statements,
)
from ultramed_rl.evaluation.length_control import Regularizer
from ultramed_rl.evaluation.report import Judged
from ultramed_rl.evaluation.rubrics import Criterion
from ultramed_rl.evaluation.runner import AnswerPlace, AskedPolicy, BenchmarkRunner
from ultramed_rl.evaluation.suite import AskedTask
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards.judge import Judge
from ultramed_rl.rewards.judge_client import JudgeClient, Reply, Turn
from ultramed_rl.rewards.pairwise import PairwiseJudge
from ultramed_rl.rewards.rubric import AskedRubric, RubricGrader
from ultramed_rl.store import ArtifactFolder
from ultramed_rl.store.atomic import read_lines, write_lines
from ultramed_rl.tracking import Progress

logger = logging.getLogger(__name__)

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
            for (task, protocol), graded in runner.rubrics(policy).items():
                summary = judge_rubrics(self.grader, task, protocol, graded, place, progress, seed)
                if summary is not None:
                    yield f"{task}_{protocol}", summary
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
        for row in _kept(f"alpaca_eval{place.suffix}", place.folder, compute, asked, judge.config.shown)
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
    name = f"mt_bench{place.suffix}"
    grades = [row["grade"] for row in _kept(name, place.folder, compute, asked, judge.config.shown)]
    chats = len(grades) // 2
    return list(zip(grades[:chats], grades[chats:], strict=True))


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
    """What a judge makes of answers, in figures. Raises RuntimeError, ValueError: as `StatementGrader.grade`."""
    name = f"statements{place.suffix}"
    items, texts = [item for item, _ in answered], [answer.answer for _, answer in answered]

    def compute() -> Iterable[dict[str, Any]]:
        with progress.phase(name.replace("-", ", ", 1), count_statements(items), "statements") as bar:
            scores = judge.grade(items, texts, bar.advance)
        for (item, answer), score in zip(answered, scores, strict=True):
            yield {
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

    asked = [request for pair in zip(items, texts, strict=True) for request in judge.requests(*pair)]
    rows = _kept(name, place.folder, compute, asked, judge.config.shown)
    if cut := sum(row["cut"] for row in rows):
        progress.say(f"{name}: {cut} of {len(items)} answers met max_new_tokens; judged as they are")
    keys = ("must_have_verdicts", "nice_to_have_verdicts", "replies")
    scores = [StatementScores(row["item_id"], *(tuple(row[key]) for key in keys)) for row in rows]
    return summarize_statements(scores, seed=seed)


def judge_rubrics(
    grader: RubricGrader,
    task: str,
    protocol: str,
    answered: Sequence[tuple[Item, Sequence[Completion]]],
    place: AnswerPlace,
    progress: Progress,
    seed: int,
) -> RubricSummary | None:
    """What a grader makes of a task's answers; None where no answer has all its verdicts. Raises RuntimeError, ValueError: as
    `RubricGrader.grade`."""
    name = f"rubrics-{task}-{protocol}{place.suffix}"
    flat = [(item, answer) for item, answers in answered for answer in answers]
    asked = [
        AskedRubric(
            item.turns or (Message(role="user", content=item.question),), answer.answer, item.criteria
        )
        for item, answer in flat
    ]

    def compute() -> Iterable[dict[str, Any]]:
        with progress.phase(name, sum(len(one.criteria) for one in asked), "criteria") as bar:
            verdicts = grader.grade(asked, lambda _: bar.advance(1))
        for (item, answer), one, met in zip(flat, asked, verdicts, strict=True):
            yield {
                "item_id": item.item_id,
                "sample": answer.sample,
                "question": item.question,
                "answer": one.answer,
                "cut": answer.finish_reason == "length",
                "tags": item.tags,
                "criteria": [asdict(c) | {"met": v} for c, v in zip(item.criteria, met, strict=True)],
            }

    inputs = [(one.answer, [asdict(c) for c in one.criteria]) for one in asked]
    by_item: dict[str, list[dict[str, Any]]] = {}
    for row in _kept(name, place.folder, compute, inputs, grader.name, grader.template.template):
        by_item.setdefault(row["item_id"], []).append(row)
    examples = []
    for item_id, rows in by_item.items():
        criteria = tuple(Criterion(c["text"], c["points"], tuple(c["tags"])) for c in rows[0]["criteria"])
        met = [(len(row["answer"]), tuple(c["met"] for c in row["criteria"])) for row in rows]
        unread = sum(verdict is None for _, own in met for verdict in own)
        whole = tuple((length, own) for length, own in met if None not in own)
        examples.append(GradedExample(item_id, tuple(rows[0]["tags"]), criteria, whole, unread))
    return summarize_rubrics(task, protocol, examples, seed=seed)


def measure_grader(
    grader: RubricGrader, config: Grader, folder: ArtifactFolder, progress: Progress
) -> GraderAgreement | None:
    """The grader against the physicians of HealthBench's meta-evaluation, where its file is given: rows of `prompt`, `completion`,
    `rubric` and `binary_labels`. Raises as `RubricGrader.grade`; ValueError: a row of another form."""
    if config.meta is None:
        return None
    asked, labels = [], []
    for number, row in enumerate(read_rows(config.meta, config.meta_limit), 1):
        try:
            turns = [Message(role=str(t["role"]), content=str(t["content"])) for t in row["prompt"]]
            asked.append(AskedRubric(turns, str(row["completion"]), [Criterion(str(row["rubric"]))]))
            labels.append([bool(label) for label in row["binary_labels"]])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"benchmarks.grader.meta={config.meta!r}: row {number} has no {error}; give the file of HealthBench's "
                "meta-evaluation (prompt, completion, rubric, binary_labels)"
            ) from None

    def compute() -> Iterable[dict[str, Any]]:
        with progress.phase("grader against physicians", len(asked), "criteria") as bar:
            verdicts = [met for (met,) in grader.grade(asked, lambda _: bar.advance(1))]
        return ({"met": met, "labels": own} for met, own in zip(verdicts, labels, strict=True))

    inputs = [[one.answer for one in asked], labels, grader.name, grader.template.template]
    rows = _kept("grader", folder, compute, inputs)
    found = grader_agreement([row["met"] for row in rows], [row["labels"] for row in rows])
    progress.say(
        f"grader {grader.name}: F1 {found.f1:.3f} against physicians' labels (agreement {found.agreement:.1%} on "
        f"{found.criteria} criteria)"
    )
    return found


def _kept(
    name: str, folder: ArtifactFolder, compute: Callable[[], Iterable[dict[str, Any]]], *inputs: Any
) -> list[dict[str, Any]]:
    """Rows that `compute` gives, or gave before of the same inputs."""

    def write(directory: Path) -> dict[str, float]:
        write_lines(directory / "verdicts.jsonl", list(compute()))
        return {}

    path, _ = folder.phase_directory(name, write, *inputs)
    return read_lines(path / "verdicts.jsonl")
