"""The stage that benchmarks a reward model: both sides of known pairs are scored, and counted by subset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.inputs import describe_inputs
from ultramed_rl.config import RewardBenchConfig
from ultramed_rl.data.preferences import read_pairs
from ultramed_rl.data.stage_data import fit_pairs, tokenize_preference
from ultramed_rl.evaluation.reward_bench import (
    ScoredPair,
    SubsetAverage,
    SubsetScore,
    average_subsets,
    known_subset,
    score_subsets,
    wrong_pairs,
)
from ultramed_rl.models.checks import check_models
from ultramed_rl.models.reading import RewardReader
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, RankedAnswers, ScoredCompletion
from ultramed_rl.store import ArtifactFolder, WorkDirectory
from ultramed_rl.store.atomic import write_json, write_lines
from ultramed_rl.token_ids import TokenIds
from ultramed_rl.tracking import Progress, Tracker, watched
from ultramed_rl.tracking.summary import render_subsets
from ultramed_rl.workers.rewards import RewardWorkers
from ultramed_rl.workers.scorers import Scorers

_NAMES_SHOWN = 3  # of missing subsets in the table; reward_bench.json has all of them


@dataclass(frozen=True)
class PreparedPairs:
    """What is scored: pairs in the reward model's own tokens; and counts of rows, and of pairs too long by subset."""

    pairs: tuple[PreferenceGroup, ...]
    scorers: Scorers
    rows: dict[str, int]
    too_long: dict[str, int]


@dataclass(frozen=True)
class RewardBenchResult:
    """Each subset's score and the averages, in the order in which they are shown."""

    directory: Path
    subsets: tuple[SubsetScore, ...]
    averages: tuple[SubsetAverage, ...]


def bench_reward(config: RewardBenchConfig, *, resume: bool = False) -> RewardBenchResult:
    """Score all pairs, keep the scores, and report; with `resume`, scores that are there are not made again.

    `reward_bench.json` holds the figures, `failures.jsonl` the pairs judged wrong, `scored.parquet` all scores.

    Raises:
        ValueError: bad input, with value, rule and fix; before Ray starts.
    """
    progress = Progress()
    bench = prepare_bench(config, progress)
    with WorkDirectory.open(config, resume, lambda: describe_inputs(config)) as store, watched(store.path):
        scored = _scores(config, bench, ArtifactFolder(store.path), progress)
        subsets = score_subsets(scored, bench.too_long)
        result = RewardBenchResult(store.path, subsets, average_subsets(subsets))
        finished = (store.path / "reward_bench.json").is_file()
        pairs = {pair.prompt.prompt_id: pair for pair in bench.pairs}
        failures = (_failure(pair, pairs[pair.pair_id]) for pair in wrong_pairs(scored))  # worst first
        write_lines(store.path / "failures.jsonl", failures)
        write_json(store.path / "reward_bench.json", _report(config, bench, result))
        if not finished:
            with Tracker(store, config) as tracker:
                tracker.log(_metrics(result), step=0, kind="evaluation")
        progress.say(render_subsets(list(_table(result))))
        return result


def prepare_bench(config: RewardBenchConfig, progress: Progress) -> PreparedPairs:
    """All that can go wrong before a reward model starts: the model's kind, its tokenizer, the pairs."""
    model = config.model
    check_models(config)
    reader = RewardReader.of(model.path, None, trust_remote_code=model.trust_remote_code)
    counts: Counter[str] = Counter()
    ranked = list(read_pairs(config.data, counts))
    counts.update("neutralised" for p in ranked if reader.tokenizer.markers(p.messages, p.answers))
    pairs = [_tokenize(pair, reader) for pair in ranked]
    fitting, left_out = fit_pairs(pairs, model.max_length, config.data.too_long == "drop")
    too_long: Counter[str] = Counter()
    for subset, count in left_out.items():
        too_long[known_subset(subset)] += count
    progress.say(
        f"pairs: {len(fitting)} of {counts['rows']} rows ({counts['misfit']} don't fit, "
        f"{too_long.total()} too long, {counts['neutralised']} with control tokens as text)"
    )
    return PreparedPairs(
        tuple(fitting), Scorers(config.reward, reader.tokenizer), dict(counts), dict(too_long)
    )


def _tokenize(pair: RankedAnswers, reader: RewardReader) -> PreferenceGroup:
    """The pair as the reward model reads it."""
    if reader.ours:
        return tokenize_preference(pair, reader.tokenizer)
    prompt = Prompt(pair.prompt_id, pair.messages, kind=pair.kind)
    texts = map(reader.tokenizer.without_end, pair.answers)
    sides = [Completion(pair.prompt_id, i, text, (), "reference", 0.0, 0) for i, text in enumerate(texts)]
    group = reader.read(prompt, sides)
    return PreferenceGroup(
        replace(prompt, token_ids=TokenIds(group.prompt)),
        tuple(replace(s, token_ids=TokenIds(ids)) for s, ids in zip(sides, group.answers, strict=True)),
        pair.scores,
    )


def _scores(
    config: RewardBenchConfig, bench: PreparedPairs, artifacts: ArtifactFolder, progress: Progress
) -> list[ScoredPair]:
    """Each pair with the scores of both sides; a pair is one group, so that its prompt is computed once."""

    def compute(prompts: Sequence[Prompt], answers: Sequence[Completion], _: str) -> list[ScoredCompletion]:
        workers = RewardWorkers(config)
        try:
            with progress.phase("score", len(answers), "answers") as bar:
                return workers.score(bench.scorers, prompts, answers, bar.advance)
        finally:
            workers.stop()

    prompts = [pair.prompt for pair in bench.pairs]
    answers = [answer for pair in bench.pairs for answer in pair.completions]
    results = artifacts.phase("scored", compute, prompts, answers, config.model.path, kind=ScoredCompletion)
    rewards = [scored.reward for scored in results]
    return [
        ScoredPair(prompt.prompt_id, known_subset(prompt.kind), chosen, rejected)
        for prompt, chosen, rejected in zip(prompts, rewards[::2], rewards[1::2], strict=True)
    ]


def _failure(scored: ScoredPair, pair: PreferenceGroup) -> dict[str, Any]:
    return {
        "pair_id": scored.pair_id,
        "subset": scored.subset,
        "chosen_score": scored.chosen,
        "rejected_score": scored.rejected,
        "margin": scored.margin,
        "prompt": list(pair.prompt.messages),
        "chosen": pair.chosen.text,
        "rejected": pair.rejected.text,
    }


def _report(config: RewardBenchConfig, bench: PreparedPairs, result: RewardBenchResult) -> dict[str, Any]:
    return {
        "model": config.model.path,
        "data": config.data.uri,
        "pairs": len(bench.pairs),
        "rows": bench.rows,
        "subsets": {s.subset: {**_figures(s), "right": s.right, "pairs": s.pairs} for s in result.subsets},
        "averages": {a.name: {"accuracy": a.accuracy, "missing": list(a.missing)} for a in result.averages},
    }


def _figures(score: SubsetScore) -> dict[str, float]:
    """A subset's accuracy with its interval, where it has one, and its counts."""
    share = score.accuracy
    known = {} if share is None else {"accuracy": share.mean, "low": share.low, "high": share.high}
    return known | {"ties": score.ties, "non_finite": score.non_finite, "too_long": score.too_long}


def _metrics(result: RewardBenchResult) -> dict[str, float]:
    """The figures as flat metrics."""
    counts = ("pairs", "right", "ties", "non_finite", "too_long")
    totals = {name: float(sum(getattr(score, name) for score in result.subsets)) for name in counts}
    accuracies = {f"accuracy_{s.subset}": s.accuracy.mean for s in result.subsets if s.accuracy is not None}
    return {**totals, **accuracies, **{f"average_{a.name}": a.accuracy for a in result.averages}}


def _table(result: RewardBenchResult) -> Iterator[dict[str, Any]]:
    for score in result.subsets:
        yield {"name": score.subset, "pairs": score.pairs, **_figures(score)}
    for average in result.averages:
        row, missing = {"name": average.name, "accuracy": average.accuracy}, average.missing
        shown = ", ".join(missing) if len(missing) <= _NAMES_SHOWN else f"{len(missing)} of its parts"
        yield {**row, "missing": shown} if missing else row
