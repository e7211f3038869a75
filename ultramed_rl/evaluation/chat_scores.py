"""What judges' verdicts on chats come to: AlpacaEval 2's win rates and MT-Bench's grades.

Both were published with GPT-4 as judge and prompts of their own; here a judge of yours reads our prompts. Compare models under one
judge, not with published figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ultramed_rl.evaluation.length_control import Regularizer, controlled_wins
from ultramed_rl.evaluation.statistics import Interval, mean_interval

FOLDS = 5  # of AlpacaEval's cross-validation


@dataclass(frozen=True)
class Duel:
    """An answer beside another, shown to a judge in both orders: its points where it stands first, and where it stands second. 1 is
    better, 0 worse, 1/2 neither; None for a verdict that cannot be read."""

    first: float | None
    second: float | None

    @property
    def points(self) -> float | None:
        """1 or 0 where both orders agree, else a tie, since a judge may like what stands first, whatever it says (arXiv
        2306.05685, section 3.4); None where one of them cannot be read."""
        if self.first is None or self.second is None:
            return None
        return self.first if self.first == self.second else 0.5

    @property
    def contradictory(self) -> bool:
        """Whether each order has another winner."""
        return {self.first, self.second} == {0.0, 1.0}

    @property
    def first_wins(self) -> list[float]:
        """Of each order that has a winner, whether it is the answer shown first."""
        second = None if self.second is None else 1.0 - self.second
        return [points for points in (self.first, second) if points in (0.0, 1.0)]


@dataclass(frozen=True)
class AnsweredDuel(Duel):
    """A policy's answer to an item beside the baseline's, with the characters of both."""

    item_id: str
    characters: int
    others: int


@dataclass(frozen=True)
class WinRates:
    """A policy against the baseline: `win_rate` with its bootstrap interval over items, and `controlled`, the same at equal length.
    `first`: of the verdicts with a winner those that went to the answer shown first; 1/2 of a judge without position bias."""

    win_rate: Interval
    controlled: float
    first: float
    characters: float  # of the policy's answers, the mean
    items: int
    unread: int  # items without a verdict in both orders; left out

    @property
    def metrics(self) -> dict[str, float]:
        """Flat, for a tracker."""
        names = {"win_rate": self.win_rate.mean, "win_rate_lc": self.controlled, "first": self.first}
        return {f"alpaca_eval_{name}": value for name, value in (names | {"length": self.characters}).items()}


@dataclass(frozen=True)
class ChatGrades:
    """MT-Bench's grades, 1 to 10: the mean over both turns of all chats with its bootstrap interval over chats, of each turn, and
    by category."""

    grade: Interval
    turns: tuple[float, float]
    categories: dict[str, float]
    items: int
    unread: int  # answers without a grade, of two an item; left out

    @property
    def metrics(self) -> dict[str, float]:
        """Flat, for a tracker."""
        turns = {f"mt_bench_turn_{turn}": mean for turn, mean in enumerate(self.turns, start=1)}
        return {"mt_bench": self.grade.mean, **turns}


def summarize_duels(
    duels: Sequence[AnsweredDuel], difficulties: dict[str, float] | None, gamed: Regularizer | None, seed: int
) -> WinRates:
    """The win rate, and AlpacaEval 2's length-controlled one: its published model where difficulties and `gamed` verdicts are
    given, without these terms otherwise.

    Raises:
        ValueError: no verdict at all, or an item without a difficulty.
    """
    known = [(duel, points) for duel in duels if (points := duel.points) is not None]
    if not known:
        raise ValueError(
            f"alpaca_eval: no verdict can be read of {len(duels)} duels; raise benchmarks.judge.max_tokens, or name another judge"
        )
    read, wins = [duel for duel, _ in known], [points for _, points in known]
    strange = [duel.item_id for duel in read if difficulties is not None and duel.item_id not in difficulties]
    if strange:
        raise ValueError(
            f"alpaca_eval: difficulties have no row of index {strange[0]}, and of {len(strange) - 1} more; the questions must "
            "be those of alpaca_eval_gpt4_baseline.json, in its order"
        )
    hard = None if difficulties is None else [difficulties[duel.item_id] for duel in read]
    gaps = [duel.characters - duel.others for duel in read]
    folds = FOLDS if len(read) >= FOLDS else 0
    first_wins = [win for duel in duels for win in duel.first_wins]
    return WinRates(
        win_rate=mean_interval(wins, 1000, seed),
        controlled=float(controlled_wins(wins, gaps, hard, gamed, folds).mean()),
        first=fmean(first_wins) if first_wins else 0.5,
        characters=fmean(duel.characters for duel in read),
        items=len(read),
        unread=len(duels) - len(read),
    )


def summarize_grades(
    grades: Sequence[tuple[float | None, float | None]], categories: Sequence[str], seed: int
) -> ChatGrades:
    """Of each chat the grades of both turns, None where there is none. Raises ValueError: a turn has no grade in any chat."""
    turns = [[pair[turn] for pair in grades if pair[turn] is not None] for turn in (0, 1)]
    if not all(turns):
        raise ValueError(
            "mt_bench: no grade can be read of one of the turns; raise benchmarks.judge.max_tokens, or name another judge"
        )
    means = [fmean(g for g in pair if g is not None) for pair in grades if any(g is not None for g in pair)]
    by_category = defaultdict[str, list[float]](list)
    for pair, category in zip(grades, categories, strict=True):
        by_category[category] += [grade for grade in pair if grade is not None]
    first, second = (fmean(grade for grade in turn if grade is not None) for turn in turns)
    return ChatGrades(
        grade=mean_interval(means, 1000, seed),
        turns=(first, second),
        categories={name: fmean(own) for name, own in sorted(by_category.items()) if own},
        items=len(grades),
        unread=2 * len(grades) - sum(map(len, turns)),
    )
