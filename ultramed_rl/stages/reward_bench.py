"""The stage that benchmarks a reward model: the sides of known pairs are scored, and counted (`evaluation.reward_benches`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ultramed_rl.cluster.inputs import describe_inputs
from ultramed_rl.config import RewardBenchConfig
from ultramed_rl.data.preferences import read_pairs
from ultramed_rl.data.stage_data import fit_pairs, tokenize_preference
from ultramed_rl.evaluation.reward_benches import (
    ScoredPair,
    SubsetAverage,
    SubsetScore,
    average_subsets,
    known_subset,
    length_alone,
    score_group,
    score_subsets,
    wrong_pairs,
)
from ultramed_rl.models.checks import check_models
from ultramed_rl.models.reading import RewardReader
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, RankedAnswers, ScoredCompletion
from ultramed_rl.store import ArtifactFolder, WorkDirectory
from ultramed_rl.store.atomic import write_json, write_lines
from ultramed_rl.token_ids import TokenIds
from ultramed_rl.tracking import Progress, Tracker, watched
from ultramed_rl.tracking.tables import render_subsets
from ultramed_rl.workers.scorers import Scorers
from ultramed_rl.workers.stage import RewardWorkers

_NAMES_SHOWN = 3  # of missing subsets in the table; reward_bench.json has all of them


@dataclass(frozen=True)
class PreparedPairs:
    """What is scored: pairs in the reward model's own tokens; and counts of rows, and of pairs too long by subset."""

    pairs: tuple[PreferenceGroup, ...]
    scorers: Scorers
    rows: dict[str, int]  # counts: of all, of misfits, of those with control tokens as text
    too_long: dict[str, int]  # by subset
    tokenizer: ChatTokenizer


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
        result = RewardBenchResult(store.path, subsets, average_subsets(subsets, scored))
        finished = (store.path / "reward_bench.json").is_file()
        pairs = {pair.prompt.prompt_id: pair for pair in bench.pairs}
        failures = (_failure(pair, pairs[pair.pair_id]) for pair in wrong_pairs(scored))  # worst first
        write_lines(store.path / "failures.jsonl", failures)
        alone = length_alone(bench.pairs)
        averages = {
            a.name: {"accuracy": a.accuracy, "length_accuracy": alone[a.name], "missing": list(a.missing)}
            for a in result.averages
        }
        figures = {s.subset: s.figures for s in subsets}
        for subset in figures.keys() & alone.keys():
            figures[subset]["length_accuracy"] = alone[subset]
        report = {
            "model": config.model.path,
            "data": config.data.uri,
            "pairs": len(bench.pairs),
            "rows": bench.rows,
            "subsets": {s.subset: figures[s.subset] | {"right": s.right, "pairs": s.pairs} for s in subsets},
            "averages": averages,
        }
        write_json(store.path / "reward_bench.json", report)
        if not finished:
            with Tracker(store, config) as tracker:
                lengths = {f"length_accuracy_{name}": share for name, share in alone.items()}
                tracker.log(_metrics(result) | lengths, step=0, kind="evaluation")
        rows: list[dict[str, Any]] = [
            {"name": s.subset, "pairs": s.pairs, **figures[s.subset]} for s in subsets
        ]
        for average in result.averages:
            missing = average.missing
            shown = ", ".join(missing) if len(missing) <= _NAMES_SHOWN else f"{len(missing)} of its parts"
            rows.append({"name": average.name, **averages[average.name]})
            rows[-1]["missing"] = shown if missing else None
        progress.say(render_subsets(rows))
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
    scorers = Scorers(config.reward, reader.tokenizer)
    return PreparedPairs(tuple(fitting), scorers, dict(counts), dict(too_long), reader.tokenizer)


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
        pair.desirable,
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
    rewards = iter(scored.reward for scored in results)
    return [score_group(pair, [next(rewards) for _ in pair.completions]) for pair in bench.pairs]


def _failure(scored: ScoredPair, pair: PreferenceGroup) -> dict[str, Any]:
    return {
        "pair_id": scored.pair_id,
        "subset": scored.subset,
        "chosen_score": scored.chosen,
        "rejected_score": scored.rejected,
        "margin": scored.margin,
        "prompt": list(pair.prompt.messages),
        "chosen": pair.completions[scored.places[0]].text,
        "rejected": pair.completions[scored.places[1]].text,
    }


def _metrics(result: RewardBenchResult) -> dict[str, float]:
    counts = ("pairs", "right", "ties", "non_finite", "too_long")
    totals = {name: float(sum(getattr(score, name) for score in result.subsets)) for name in counts}
    accuracies = {f"accuracy_{s.subset}": s.accuracy.mean for s in result.subsets if s.accuracy is not None}
    return {**totals, **accuracies, **{f"average_{a.name}": a.accuracy for a in result.averages}}
