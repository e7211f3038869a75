"""Who reads the answers of benchmarks that need a judge: K-QA's statements, AlpacaEval 2's duels, MT-Bench's chats.

What a judge said stays beside the answers, in NAME/verdicts.jsonl; a resumed run doesn't ask for it again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from ultramed_rl.config.benchmarks import Benchmarks
from ultramed_rl.config.rewards import JudgeTerm
from ultramed_rl.data.sources import read_rows
from ultramed_rl.data.templates import without_tags
from ultramed_rl.evaluation.chat_scores import ChatGrades, Duel, WinRates, summarize_duels, summarize_grades
from ultramed_rl.evaluation.items import JUDGED, Item
from ultramed_rl.evaluation.judging import StatementSummary
from ultramed_rl.evaluation.length_control import Regularizer
from ultramed_rl.evaluation.runner import AnswerPlace, AskedPolicy, BenchmarkRunner
from ultramed_rl.evaluation.suite import AskedTask
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.rewards.judge import Judge
from ultramed_rl.rewards.judge_client import JudgeClient
from ultramed_rl.rewards.statements import StatementGrader, judge_statements
from ultramed_rl.store.atomic import read_lines, write_lines
from ultramed_rl.thoughts import after_thoughts
from ultramed_rl.tracking import Progress

Judged = StatementSummary | WinRates | ChatGrades
_PREFERENCE = Template(Path(__file__).with_name("preference_prompt.txt").read_text(encoding="utf-8"))
_TAGS = ("instruction", "answer_a", "answer_b")
_BETTER = re.compile(r"\b(?:better|verdict|winner)\b\W*(?:is\W+)?(?:answer\W+)?(a|b|tie)\b", re.IGNORECASE)
_ALONE = re.compile(r"\W*(?:answer\W+)?(a|b|tie)\W*", re.IGNORECASE)
_WINS = {"a": 1.0, "b": 0.0, "tie": 0.5}


class BenchmarkJudges:
    """The judge of a suite, where its tasks need one."""

    def __init__(self, suite: Sequence[AskedTask], config: Benchmarks) -> None:
        """Raises ValueError: the key's variable isn't set, a template cannot be used, or difficulties cannot be read."""
        forms, judge = {asked.task.form for asked in suite} & JUDGED, config.judge
        assert judge is not None or not forms, "a suite without its judge"
        self.statements = StatementGrader(judge) if judge and "statements" in forms else None
        self.referee = JudgeClient(judge) if judge and "preference" in forms else None
        self.grader = None
        if judge and "chat" in forms:
            self.grader = Judge(JudgeTerm(**judge.model_dump(exclude={"template"}), name="mt_bench"))
        source = {choice.name: choice.difficulties for choice in config.tasks}.get("alpaca_eval")
        self.difficulties: dict[str, float] | None = None
        self.gamed: Regularizer | None = None
        if source is not None:
            self.difficulties, self.gamed = read_difficulties(source)

    def read(
        self, runner: BenchmarkRunner, policy: AskedPolicy, place: AnswerPlace, progress: Progress, seed: int
    ) -> dict[str, Judged]:
        """What the judge makes of a policy's answers, by the kind of verdict. Raises RuntimeError: the API cannot be reached or
        refuses. Raises ValueError: too little can be read."""
        found: dict[str, Judged] = {}
        if self.statements is not None:
            answered = runner.judged(policy, "statements")
            found["statements"] = judge_statements(self.statements, answered, place, progress, seed)
        if self.referee is not None:
            duels = judge_duels(self.referee, runner.judged(policy, "preference"), place, progress)
            found["alpaca_eval"] = summarize_duels(duels, self.difficulties, self.gamed, seed)
        if self.grader is not None:
            grades = judge_chats(self.grader, *runner.chats(policy), place, progress)
            categories = [item.subject for item, _ in runner.judged(policy, "chat")]
            found["mt_bench"] = summarize_grades(grades, categories, seed)
        return found


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
    judge: JudgeClient, answered: Sequence[tuple[Item, Completion]], place: AnswerPlace, progress: Progress
) -> list[Duel]:
    """The judge's verdicts on a policy's answers beside the baseline's, each pair shown in both orders."""
    texts = [(item.question, after_thoughts(answer.text), item.beside[0]) for item, answer in answered]
    prompts = [prompt for text in texts for prompt in (_duel(*text), _duel(text[0], text[2], text[1]))]

    def compute() -> Iterable[dict[str, Any]]:
        with progress.phase("alpaca_eval's judge", len(prompts), "verdicts") as bar:
            replies = judge.ask_for(prompts, lambda reply: read_preference(reply.text), bar.advance)
        for (item, _), (question, own, other), first, second in zip(
            answered, texts, replies[::2], replies[1::2], strict=True
        ):
            row = {"item_id": item.item_id, "instruction": question, "answer": own, "baseline": other}
            yield row | {"verdicts": [first.value, second.value], "replies": [first.text, second.text]}

    rows = _kept("alpaca_eval", place, compute, prompts, judge.config.model)
    return [
        Duel(row["item_id"], first, second, len(row["answer"]), len(row["baseline"]))
        for row in rows
        for first, second in [row["verdicts"]]
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
    grades = [row["grade"] for row in _kept("mt_bench", place, compute, asked, judge.config.model)]
    chats = len(grades) // 2
    return list(zip(grades[:chats], grades[chats:], strict=True))


def read_preference(reply: str) -> float | None:
    """Whether answer A is better (1), B (0) or neither (1/2), by the last verdict of a reply; None without one."""
    text = re.sub(r"[*_`\"]", "", after_thoughts(reply)).strip()
    alone = _ALONE.fullmatch((text.splitlines() or [""])[-1])
    verdicts = [alone[1]] if alone else _BETTER.findall(text)
    return _WINS[verdicts[-1].lower()] if verdicts else None


def _duel(instruction: str, first: str, second: str) -> str:
    texts = zip(_TAGS, (instruction, first, second), strict=True)
    return _PREFERENCE.substitute({name: without_tags(text, *_TAGS) for name, text in texts})


def _kept(
    name: str, place: AnswerPlace, compute: Callable[[], Iterable[dict[str, Any]]], *inputs: Any
) -> list[dict[str, Any]]:
    """Rows that `compute` gives, or gave before of the same inputs."""

    def write(directory: Path) -> dict[str, float]:
        write_lines(directory / "verdicts.jsonl", list(compute()))
        return {}

    folder, _ = place.folder.phase_directory(f"{name}{place.suffix}", write, *inputs)
    return read_lines(folder / "verdicts.jsonl")
