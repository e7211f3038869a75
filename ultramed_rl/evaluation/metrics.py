"""What a round's records say, as flat metrics. They are added up as records pass: a round may have millions."""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, zip_longest
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.compute as pc

from ultramed_rl.config.rewards import BIASES
from ultramed_rl.evaluation.length_control import controlled_wins
from ultramed_rl.evaluation.statistics import paired_bootstrap, summarize, win_rate
from ultramed_rl.learning.length import LengthFit
from ultramed_rl.records import PreferenceGroup, Prompt, ScoredCompletion, SelectionAudit
from ultramed_rl.store.shards import read_columns, shard_files

_OF_ANSWER = {"finish_reason": pa.string(), "logprob": pa.float64()}
_PAIRED = pa.schema({"group_id": pa.string(), "completions": pa.list_(pa.struct(_OF_ANSWER))})
_WEIGHED = pa.schema({"group_id": pa.string(), "logprobs": pa.list_(pa.float64())})


class AnswerMetrics:
    """Lengths in tokens, how answers ended, and their rewards. Memory holds a length and a reward of each, since quantiles
    need them all.

    The data's own answers have a reward like the others; what is said of lengths and ends is of the sampled ones.
    """

    def __init__(self, scored: Iterable[ScoredCompletion] = ()) -> None:
        self._lengths, self._rewards = array("i"), array("d")
        self._counts: Counter[str] = Counter()
        self._terms: defaultdict[str, float] = defaultdict(float)  # by scorer, the sum of its finite numbers
        self._termed: Counter[str] = Counter()  # by scorer, how many these are
        self._biases: defaultdict[str, list[float]] = defaultdict(
            lambda: [0.0, 0]
        )  # the same of judges' biases
        self.add(scored)

    def add(self, scored: Iterable[ScoredCompletion]) -> int:
        """These too; returns their tokens, those of the data's own answers among them."""
        tokens, counts = 0, self._counts
        for item in scored:
            completion, reason = item.completion, item.completion.finish_reason
            length = len(completion.token_ids)
            tokens += length
            if reason != "reference":
                self._lengths.append(length)
                counts[reason] += 1
                empty = not (answer := completion.answer) or answer.isspace()
                counts["empty"] += empty
                if completion.thought_tokens:
                    counts["thoughts"] += 1
                    counts["thought_tokens"] += completion.thought_tokens
                    counts["all_thought"] += empty
            if math.isfinite(item.reward):
                self._rewards.append(item.reward)
            else:
                counts["non_finite"] += 1
            for name, value in item.details.items():
                if name.endswith(BIASES):
                    self._biases[name][0] += value
                    self._biases[name][1] += 1
            for name, value in item.terms.items():
                if math.isfinite(value):
                    self._terms[name] += value
                    self._termed[name] += 1
        return tokens

    def metrics(self) -> dict[str, float]:
        """Mean, deviation and quantiles of the finite rewards; of several scorers, each one's mean; of a judge that compares,
        `bias_...`: the means over answers of what `PairwiseJudge` says of it. Where answers reason,
        how many do, the tokens of that, and `all_thought_share`: those that say nothing after it, or never end it."""
        lengths, rewards, counts = summarize(self._lengths), summarize(self._rewards), self._counts
        thoughts = {
            "thought_length_mean": counts["thought_tokens"] / max(1, counts["thoughts"]),
            "thought_share": counts["thoughts"] / lengths.count,
            "all_thought_share": counts["all_thought"] / lengths.count,
        }
        return {
            "completions": lengths.count,
            "tokens": sum(self._lengths),
            "length_mean": lengths.mean,
            "length_p90": lengths.p90,
            "finished_share": self._counts["stop"] / lengths.count,
            "empty_share": self._counts["empty"] / lengths.count,
            "reward_mean": rewards.mean,
            "reward_std": rewards.std,
            "reward_p10": rewards.p10,
            "reward_p50": rewards.p50,
            "reward_p90": rewards.p90,
            "reward_non_finite": self._counts["non_finite"],
            **(thoughts if counts["thoughts"] else {}),
            **{f"reward_{name}_mean": self._terms[name] / n for name, n in sorted(self._termed.items())},
            **{f"bias_{name}": total / n for name, (total, n) in sorted(self._biases.items())},
        }


class RoundMetrics:
    """A round's scored answers and pairs, as metrics."""

    def __init__(self) -> None:
        self.answers, self.length = AnswerMetrics(), LengthFit()
        self._sums: Counter[str] = Counter()
        self._margins, self._version = 0.0, math.inf

    def add_answers(self, prompt: Prompt, scored: Sequence[ScoredCompletion]) -> None:
        """A prompt's scored answers."""
        self._sums["tokens_scored"] += len(prompt.token_ids) + self.answers.add(scored)
        self.length.add_answers(scored)
        self._version = min(self._version, scored[0].completion.policy_version)

    def add_pair(self, pair: PreferenceGroup) -> None:
        """What was chosen of them."""
        sums = self._sums
        sums["pairs"] += 1
        self._margins += pair.margin
        sums["chosen"] += len(pair.chosen.token_ids)
        sums["rejected"] += len(pair.rejected.token_ids)
        sums["tokens_reference"] += pair.packed_tokens

    def metrics(self, audit: SelectionAudit) -> dict[str, float]:
        """What selection kept and dropped, the reward margin, and the lengths of both sides; there are pairs.

        `tokens_scored` and `tokens_reference` are what reward models and reference read: each prompt once. `policy_version`
        is the oldest that an answer is of. `length_correlation` is that of reward and tokens within prompts, -1 to 1; NaN
        where one never varies.
        """
        sums = self._sums
        return {
            **self.answers.metrics(),
            "length_correlation": self.length.correlation,
            "policy_version": self._version,
            "pairs": sums["pairs"],
            **{f"pairs_{name}": float(value) for name, value in asdict(audit).items() if name != "pairs"},
            "margin_mean": self._margins / sums["pairs"],
            "chosen_length": sums["chosen"] / sums["pairs"],
            "rejected_length": sums["rejected"] / sums["pairs"],
            "tokens_scored": sums["tokens_scored"],
            "tokens_reference": sums["tokens_reference"],
        }


def kl_to_reference(folder: Path) -> float:
    """Nats per completion of the sampling policy from the reference, over the completions in a round's pairs.

    The mean of log pi - log pi_ref of pi's own samples estimates KL(pi || pi_ref); pair selection keeps
    the extremes, so it is an estimate on pairs, not on all samples. The data's own answers were not sampled.
    """
    total, count = 0.0, 0
    # A pair's two rows stand at about the same place of their files: few wait for the other one.
    pairs, references = _PAIRED.empty_table(), _WEIGHED.empty_table()
    files = (shard_files(folder / name) for name in ("pairs.parquet", "reference.parquet"))
    for pair_file, reference_file in zip_longest(*files):
        if pair_file is not None:
            table = read_columns(
                pair_file, "group_id", *(f"completions.list.element.{n}" for n in _OF_ANSWER)
            )
            pairs = pa.concat_tables([pairs, table.cast(_PAIRED)])
        if reference_file is not None:
            table = read_columns(reference_file, "group_id", "logprobs")
            references = pa.concat_tables([references, table.cast(_WEIGHED)])
        places = pc.index_in(pairs["group_id"], value_set=references["group_id"])
        answers = pc.list_flatten(pairs.filter(places.is_valid())["completions"])
        weighed = pc.list_flatten(references.take(places.drop_null())["logprobs"])
        ratios = pc.subtract(pc.struct_field(answers, "logprob"), weighed)
        sampled = pc.not_equal(pc.struct_field(answers, "finish_reason"), "reference")
        own = pc.filter(ratios, sampled)
        total, count = total + (pc.sum(own).as_py() or 0.0), count + len(own)
        missing = pc.invert(pc.is_in(references["group_id"], value_set=pairs["group_id"]))
        pairs, references = pairs.filter(places.is_null()), references.filter(missing)
    return total / count if count else 0.0


def token_rates(metrics: Mapping[str, float], seconds: Mapping[str, float]) -> dict[str, float]:
    """Tokens per second of sampling (answers only), scoring and reference logprobs (and each prompt once), for the phases
    whose seconds are known."""
    tokens = {"completions": "tokens", "scored": "tokens_scored", "reference": "tokens_reference"}
    return {
        f"tokens_per_second_{phase}": metrics[name] / max(seconds[phase], 1e-9)
        for phase, name in tokens.items()
        if phase in seconds
    }


def prompt_means(scored: Iterable[ScoredCompletion]) -> dict[str, float]:
    """Mean of the finite rewards of each prompt's completions; NaN for a prompt without any."""
    return means_by_prompt((item.completion.prompt_id, item.reward) for item in scored)


def means_by_prompt(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of each prompt's finite values; NaN for a prompt without any."""
    by_prompt: dict[str, list[float]] = {}
    for prompt, value in values:
        by_prompt.setdefault(prompt, []).extend([value] if math.isfinite(value) else [])
    return {prompt: fmean(finite) if finite else math.nan for prompt, finite in by_prompt.items()}


def tokens_by_prompt(scored: Iterable[ScoredCompletion]) -> dict[str, float]:
    """The mean tokens of each prompt's completions."""
    return means_by_prompt(
        (item.completion.prompt_id, float(len(item.completion.token_ids))) for item in scored
    )


def change_metrics(
    before: Mapping[str, float],
    after: Mapping[str, float],
    resamples: int,
    seed: int,
    gaps: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The change of the mean over prompts with its 95 % interval, paired, the win rate, and how many `prompts` could be compared:
    those with a finite number on both sides. Nothing where there is none.

    With `gaps`, how many tokens longer each prompt's answers have become, also `win_rate_lc`: the win rate at equal length (see
    `evaluation.length_control`).
    """
    assert before.keys() == after.keys(), "evaluations of different prompts"
    prompts = sorted(p for p in before if math.isfinite(before[p]) and math.isfinite(after[p]))
    if not prompts:
        return {}
    first, second = [before[p] for p in prompts], [after[p] for p in prompts]
    change = paired_bootstrap(first, second, resamples, seed)
    bounds = {"change": change.mean, "change_low": change.low, "change_high": change.high}
    found = {**bounds, "win_rate": win_rate(first, second), "prompts": float(len(prompts))}
    if gaps is not None:
        won = [0.5 if old == new else float(new > old) for old, new in zip(first, second, strict=True)]
        found["win_rate_lc"] = float(controlled_wins(won, [gaps[p] for p in prompts]).mean())
    return found


def judge_metrics(
    name: str,
    before: Mapping[str, float],
    after: Mapping[str, float],
    resamples: int,
    seed: int,
    gaps: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """A judge's mean by prompt or item and its change from the start, under its name."""
    found = change_metrics(before, after, resamples, seed, gaps)
    if found:
        found["mean"] = fmean(value for value in after.values() if math.isfinite(value))
    return {f"judge_{name}_{key}": value for key, value in found.items()}


def agreement(scores: Iterable[Iterable[tuple[float, float]]]) -> float:
    """Of all pairs of answers to the same prompt the share that two measures order alike.

    Args:
        scores: of each prompt its answers' (reward, judge's score).

    Pairs that the reward or anyone's missing number does not order are left out; a tie of the judge counts a half, so that
    1/2 is what chance gives. NaN without a pair.
    """
    alike = pairs = 0.0
    for answers in scores:
        known = [answer for answer in answers if all(map(math.isfinite, answer))]
        for (reward, score), (other, others) in combinations(known, 2):
            if reward != other:
                pairs += 1
                alike += 0.5 if score == others else (score > others) == (reward > other)
    return alike / pairs if pairs else math.nan
