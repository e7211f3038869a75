"""What a run came to: its reward and its judges against the starting policy, from the metrics of its rounds.

A reward that is optimised rises whether or not answers get better (Gao et al., arXiv 2210.10760). So it alone says little:
judges that never made a pair have to rise with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any, Literal, Self

from ultramed_rl.kinds import VERDICT
from ultramed_rl.store.atomic import write_json
from ultramed_rl.store.run_reader import RunReader

Metrics = Mapping[str, float]
Outcome = Literal["rose", "rose by its reward alone", "over-optimised", "nothing moved", "fell"]
REWARD = "reward"
RULES = ("rule", "answer", "length")  # types of judges that say by exact rules what they say
LENGTH_CHANGE = 0.2  # from which share on answers have grown or shrunk much
TOKEN_KL = 0.5  # nats a token from which on a policy has left its reference: its tokens are 1.6 times as likely to it


@dataclass(frozen=True)
class MeasuredChange:
    """A measure's mean, and its change from the starting policy's with the paired 95 % interval, over `n` prompts or items."""

    mean: float
    change: float
    low: float
    high: float
    n: int
    wins: float  # the share of these that are higher than at the start, ties by halves

    @classmethod
    def of(cls, row: Metrics, name: str) -> Self | None:
        """The reward's, or a judge's, in a round's metrics; None where it was not compared there."""
        prefix, mean = ("eval_", "reward_mean") if name == REWARD else (f"judge_{name}_", "mean")
        figure = lambda key: row.get(prefix + key, math.nan)
        change, low, high = map(figure, ("change", "change_low", "change_high"))
        if not all(map(math.isfinite, (change, low, high))):
            return None
        return cls(figure(mean), change, low, high, int(row.get(f"{prefix}prompts", 0)), figure("win_rate"))

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves no doubt of the change's sign; 0 where it holds 0, or touches it."""
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        return f"{self.change:+.3f} (95 % interval {self.low:+.3f} to {self.high:+.3f}, wins {self.wins:.0%})"


def decide(reward: MeasuredChange, judges: Iterable[MeasuredChange]) -> Outcome:
    """The verdict, by intervals alone.

    over-optimised            the reward rose, a judge fell
    rose                      the reward and all judges rose; there are judges
    rose by its reward alone  the reward rose, and not all judges with it, but none fell
    fell                      the reward fell, or a judge fell and the reward did not rise
    nothing moved             else
    """
    signs = [judge.sign for judge in judges]
    if reward.sign < 0 or (reward.sign == 0 and -1 in signs):
        return "fell"
    if reward.sign == 0:
        return "nothing moved"
    if -1 in signs:
        return "over-optimised"
    return "rose" if signs and min(signs) > 0 else "rose by its reward alone"


@dataclass(frozen=True)
class RunVerdict:
    """A run's verdict after its last evaluated round, or after the one whose policy is kept."""

    outcome: Outcome
    round: int  # counted from 0: the policy is the one that it trained
    reward: MeasuredChange
    judges: Mapping[str, MeasuredChange]
    since: Mapping[str, int]  # of judges that have fallen: the first of the evaluations in a row that say so
    kinds: Mapping[str, str]  # the judges' types
    agreement: Mapping[str, float]  # of judges with the reward within prompts, where it is known
    length: tuple[float, float]  # mean tokens of the starting policy's held-out answers, and of this one's
    kl: float  # nats an answer of the round's samples from the reference; NaN without one
    token_kl: float  # nats a token

    @property
    def flags(self) -> dict[str, str]:
        """What speaks against a reward that rose, beside judges: `length` and `kl`, in words."""
        flags, (before, now) = {}, self.length
        if self.reward.sign > 0 and before > 0 and abs(now / before - 1) >= LENGTH_CHANGE:
            flags["length"] = (
                f"held-out answers went from {before:.1f} to {now:.1f} tokens ({now / before - 1:+.0%})"
            )
        if self.reward.sign > 0 and self.token_kl >= TOKEN_KL:
            flags["kl"] = (
                f"the policy is {self.token_kl:.2f} nats a token ({self.kl:.1f} an answer) from its reference"
            )
        return flags

    @property
    def headline(self) -> str:
        """The verdict in a sentence or two, with the reward's change."""
        detail = f"{self.reward.change:+.3f} against the starting policy {str(self.reward).partition(' ')[2]}"
        if self.outcome == "over-optimised":
            words = f"Over-optimised: rose by its own reward, fell by {self._fallen}."
            return f"{words} The held-out reward changed by {detail}."
        moved = ("did not move measurably", "rose", "fell")[self.reward.sign]
        fell = f" and answers fell by {self._fallen}" if self.outcome == "fell" and self.since else ""
        alone = " by itself" if self.outcome == "rose by its reward alone" and not self._with(1) else ""
        return f"The held-out reward {moved}{alone}{fell}: {detail}."

    @property
    def notes(self) -> list[str]:
        """What the judges say, a sentence each."""
        if not self.judges:
            return ["No judge was asked (evaluation.judges=[])."]
        moves = ((1, "rose"), (0, "did not move measurably"), (-1, "fell"))
        return [f"{name} {words}: {self.judges[name]}." for sign, words in moves for name in self._with(sign)]

    @property
    def sentences(self) -> list[str]:
        """All of it, a sentence each."""
        return [
            self.headline,
            *self.notes,
            *(f"{words[0].upper()}{words[1:]}." for words in self.flags.values()),
        ]

    def __str__(self) -> str:
        return " ".join(self.sentences)

    def _with(self, sign: int) -> list[str]:
        return [name for name, judge in self.judges.items() if judge.sign == sign]

    @property
    def _fallen(self) -> str:
        return ", ".join(f"{name} since round {index}" for name, index in self.since.items())

    def to_json(self) -> dict[str, Any]:
        """For programs. Judges that are exact rules stand under `rules`."""
        judged: dict[str, dict[str, Any]] = {"judges": {}, "rules": {}}
        for name, judge in self.judges.items():
            more = {
                "since": self.since.get(name),
                "agreement": self.agreement.get(name),
                "type": self.kinds[name],
            }
            judged["rules" if self.kinds[name] in RULES else "judges"][name] = {**asdict(judge), **more}
        before, now = self.length
        return {
            "verdict": self.outcome,
            "words": str(self),
            "round": self.round,
            REWARD: asdict(self.reward),
            **judged,
            "length": {"start": before, "last": now, "change": now / before - 1 if before > 0 else math.nan},
            "kl": self.kl,
            "kl_per_token": self.token_kl,
            "flags": self.flags,
        }


def give_verdict(
    rounds: Sequence[Metrics], judges: Mapping[str, str], at: int | None = None
) -> RunVerdict | None:
    """The verdict of committed rounds' metrics.

    Args:
        judges: their types by their names.
        at: the round whose policy is the run's; None: the last that was evaluated.

    Returns None where no such round was compared with the start.
    """
    rows = [row for row in rounds if at is None or row["round"] <= at]
    compared = [row for row in rows if MeasuredChange.of(row, REWARD) is not None]
    if not compared or (at is not None and compared[-1]["round"] != at):
        return None
    last = compared[-1]
    reward = MeasuredChange.of(last, REWARD)
    assert reward is not None
    changes = {name: change for name in judges if (change := MeasuredChange.of(last, name)) is not None}
    since = {name: index for name in changes if (index := _fallen_since(compared, name)) is not None}
    now = last.get("eval_length_mean", math.nan)
    kl = last.get("kl_to_reference", math.nan)
    return RunVerdict(
        decide(reward, changes.values()),
        int(last["round"]),
        reward,
        changes,
        since,
        {name: judges[name] for name in changes},
        {n: last[key] for n in changes if math.isfinite(last.get(key := f"judge_{n}_agreement", math.nan))},
        (now / (1 + last.get("eval_length_change", math.nan)), now),
        max(0.0, kl) if math.isfinite(kl) else math.nan,
        max(0.0, kl) / max(1.0, last.get("length_mean", math.nan)),
    )


def _fallen_since(rows: Sequence[Metrics], name: str) -> int | None:
    """The first of the last rounds in a row in which a judge had fallen; None where it has not in the last."""
    fell = lambda row: (change := MeasuredChange.of(row, name)) is not None and change.sign < 0
    return min((int(row["round"]) for row in takewhile(fell, reversed(rows))), default=None)


def run_verdict(run: RunReader) -> RunVerdict | None:
    """The verdict on the policy that is a run's, by its files: of an unfinished run on the one that is so far."""
    rounds = [row for row in run.rounds if "round" in row]
    at = kept_round(run) if run.setting("run.keep") == "best" else None
    return give_verdict(rounds, judges_of(run), at)


def judges_of(run: RunReader) -> dict[str, str]:
    """The judges of a run's config, and their types."""
    return {judge["name"]: judge["type"] for judge in run.setting("evaluation.judges", ())}


def kept_round(run: RunReader) -> int:
    """The round whose policy is the run's, so far."""
    best = best_round(run.rounds, run.setting("run.keep_by")) if run.setting("run.keep") == "best" else None
    return len(run.rounds) - 1 if best is None else best


def write_verdict(run: RunReader) -> RunVerdict | None:
    """verdict.json in the run's folder, where there is a verdict; returns it."""
    verdict = run_verdict(run)
    if verdict is not None:
        checkpoint = run.round_path(kept_round(run)).relative_to(run.path) / "checkpoint"
        content = {**verdict.to_json(), "checkpoint": checkpoint.as_posix(), "finished": run.finished}
        write_json(run.path / VERDICT, content)
    return verdict


def fallen_for(rounds: Sequence[Metrics], judges: Iterable[str], count: int) -> str | None:
    """A judge that has fallen in the last `count` evaluated rounds; None where there is none."""
    for name in judges:
        changes = [change for row in rounds if (change := MeasuredChange.of(row, name)) is not None]
        if len(changes) >= count and all(change.sign < 0 for change in changes[-count:]):
            return name
    return None


def best_round(rounds: Sequence[Metrics], by: str) -> int | None:
    """The evaluated round whose policy the reward, or this judge, rates highest; of equal ones the first."""
    rated = [
        (change.mean, -int(row["round"]))
        for row in rounds
        if (change := MeasuredChange.of(row, by)) is not None
    ]
    return -max(rated)[1] if rated else None
