"""The stage that benchmarks a reward model: both sides of known pairs are scored, and counted by subset.

Medical RewardBench (UltraMedical, arXiv 2406.03949, section 4): four subsets, and their plain mean.
RewardBench (arXiv 2403.13787, section 4 and the code published with it): sections of subsets, in which a pair
counts as much as any other, except that in Reasoning mathematics counts as much as all code; and the plain mean
of the sections. The paper's fifth one, older preference test sets, is not among the rows of its data.
A tie is half right in both. RewardBench 2's rows (arXiv 2506.01937) have one wanted answer among four, which must score
highest; of several wanted answers (RM-Bench, arXiv 2410.16184; PPE, arXiv 2410.14872) each is held against each other one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ultramed_rl.cluster.inputs import describe_inputs
from ultramed_rl.config import RewardBenchConfig
from ultramed_rl.data.preferences import read_pairs
from ultramed_rl.data.stage_data import fit_pairs, tokenize_preference
from ultramed_rl.evaluation.statistics import Interval, wilson_interval
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
MEDICAL = "Medical RewardBench"
GENERAL = "RewardBench"
OTHERS = "mean of the subsets"
MEDICAL_SUBSETS = ("Easy", "Hard", "Human", "Length")
# Each section's parts: in a part pairs count alike, and parts do in their section.
_PARTS = {
    "Chat": ("alpacaeval-easy alpacaeval-length alpacaeval-hard mt-bench-easy mt-bench-med",),
    "Chat Hard": (
        "mt-bench-hard llmbar-natural llmbar-adver-neighbor llmbar-adver-GPTInst llmbar-adver-GPTOut "
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous refusals-offensive xstest-should-refuse xstest-should-respond donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp hep-go hep-java hep-js hep-python hep-rust"),
}
SECTIONS = {name: tuple(tuple(part.split()) for part in parts) for name, parts in _PARTS.items()}
_KNOWN = [*MEDICAL_SUBSETS, *(name for parts in SECTIONS.values() for part in parts for name in part)]
_BY_FOLDED = {name.casefold(): name for name in _KNOWN}


@dataclass(frozen=True)
class PreparedPairs:
    """What is scored: pairs in the reward model's own tokens; and counts of rows, and of pairs too long by subset."""

    pairs: tuple[PreferenceGroup, ...]
    scorers: Scorers
    rows: dict[str, int]  # counts: of all, of misfits, of those with control tokens as text
    too_long: dict[str, int]  # by subset
    tokenizer: ChatTokenizer


@dataclass(frozen=True)
class ScoredPair:
    """A pair with the scores of both sides; of more answers the lowest wanted and the highest unwanted one."""

    pair_id: str
    subset: str
    chosen: float
    rejected: float
    share: float | None = None  # of more answers than two, how right they are ordered, 0 to 1
    places: tuple[int, int] = (0, 1)  # the two answers' among the row's

    @property
    def margin(self) -> float:
        """chosen - rejected; NaN where a score isn't finite."""
        return self.chosen - self.rejected if self.finite else math.nan

    @property
    def finite(self) -> bool:
        """Whether both scores are numbers to compare."""
        return math.isfinite(self.chosen) and math.isfinite(self.rejected)

    @property
    def right(self) -> float:
        """1 where the chosen answer scores higher, a half for a tie, else 0; 0 where a score isn't finite."""
        if not self.finite:
            return 0.0
        if self.share is not None:
            return self.share
        return 0.5 if self.chosen == self.rejected else float(self.chosen > self.rejected)


@dataclass(frozen=True)
class SubsetScore:
    """What came of a subset."""

    subset: str
    pairs: int  # scored
    right: float  # of them, ties by halves
    accuracy: Interval | None  # Wilson's; None where all pairs were too long to be scored
    ties: int = 0
    non_finite: int = 0
    too_long: int = 0

    @property
    def figures(self) -> dict[str, float]:
        """Its accuracy with the interval, where it has one, and its counts."""
        share = self.accuracy
        known = {} if share is None else {"accuracy": share.mean, "low": share.low, "high": share.high}
        return known | {"ties": self.ties, "non_finite": self.non_finite, "too_long": self.too_long}


@dataclass(frozen=True)
class SubsetAverage:
    """An average in 0..1 over what there is, and the names of what it should have been over besides."""

    name: str
    accuracy: float
    missing: tuple[str, ...] = ()


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


def score_group(group: PreferenceGroup, rewards: Sequence[float]) -> ScoredPair:
    """A benchmark's row by the scores of its answers, the wanted ones first."""
    wanted, others = rewards[: group.desirable], rewards[group.desirable :]
    share = None
    if len(rewards) > 2 and len(wanted) == 1:
        share = float(wanted[0] >= max(others)) / (1 + others.count(wanted[0]))
    elif len(rewards) > 2:
        share = fmean((a > b) + 0.5 * (a == b) for a in wanted for b in others)
    # A score that isn't finite comes first, so that the row counts as one without.
    order = sorted(range(len(rewards)), key=lambda place: (math.isfinite(rewards[place]), rewards[place]))
    chosen = next(place for place in order if place < group.desirable)
    order.sort(key=lambda place: (math.isfinite(rewards[place]), -rewards[place]))
    rejected = next(place for place in order if place >= group.desirable)
    scores = (rewards[chosen], rewards[rejected])
    return ScoredPair(
        group.prompt.prompt_id, known_subset(group.prompt.kind), *scores, share, (chosen, rejected)
    )


def length_alone(pairs: Sequence[PreferenceGroup]) -> dict[str, float]:
    """The share that length alone gets right of each subset and in each average, as the benchmark counts: by the better of two
    rules, the longer answer and the shorter one."""
    found: dict[str, float] = {}
    for sign in (1.0, -1.0):
        judged = [score_group(pair, [sign * len(a.token_ids) for a in pair.completions]) for pair in pairs]
        subsets = score_subsets(judged, {})
        shares = {s.subset: s.right / s.pairs for s in subsets}
        shares |= {average.name: average.accuracy for average in average_subsets(subsets)}
        found = {name: max(share, found.get(name, 0.0)) for name, share in shares.items()}
    return found


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


def known_subset(name: str) -> str:
    """A benchmark's own spelling of its subset; any other name as it is."""
    return _BY_FOLDED.get(name.casefold(), name)


def score_subsets(pairs: Sequence[ScoredPair], too_long: Mapping[str, int]) -> tuple[SubsetScore, ...]:
    """Each subset's score: the benchmarks' subsets in their order, then the others in that of the pairs. `too_long`: pairs
    by subset that were left out."""
    by_subset: dict[str, list[ScoredPair]] = {}
    for pair in pairs:
        by_subset.setdefault(pair.subset, []).append(pair)
    names = [*by_subset, *too_long]
    scores = []
    for name in dict.fromkeys([*(name for name in _KNOWN if name in names), *names]):
        members = by_subset.get(name, [])
        right = math.fsum(pair.right for pair in members)
        accuracy = wilson_interval(right, len(members)) if members else None
        ties = sum(pair.finite and pair.chosen == pair.rejected for pair in members)
        non_finite = sum(not pair.finite for pair in members)
        left_out = too_long.get(name, 0)
        scores.append(SubsetScore(name, len(members), right, accuracy, ties, non_finite, left_out))
    return tuple(scores)


def average_subsets(scores: Sequence[SubsetScore]) -> tuple[SubsetAverage, ...]:
    """The averages of each benchmark that has a subset among these, and the plain mean of all other subsets. Those in which
    nothing was scored count as missing."""
    scored = {score.subset: score for score in scores if score.pairs}
    alone = {MEDICAL: MEDICAL_SUBSETS, OTHERS: [name for name in scored if name not in _KNOWN]}
    plain = {name: _average(name, [(s,) for s in subsets], scored) for name, subsets in alone.items()}
    sections = [a for name, parts in SECTIONS.items() if (a := _average(name, parts, scored)) is not None]
    if sections:
        missing = tuple(name for name in SECTIONS if name not in {section.name for section in sections})
        sections.append(SubsetAverage(GENERAL, fmean(section.accuracy for section in sections), missing))
    return tuple(a for a in (plain[MEDICAL], *sections, plain[OTHERS]) if a is not None)


def _average(
    name: str, parts: Sequence[Sequence[str]], scored: Mapping[str, SubsetScore]
) -> SubsetAverage | None:
    """The mean of the parts' accuracies, each over all of its pairs; None where none of them was scored."""
    there = [[scored[subset] for subset in part if subset in scored] for part in parts]
    means = [math.fsum(s.right for s in part) / sum(s.pairs for s in part) for part in there if part]
    missing = tuple(subset for part in parts for subset in part if subset not in scored)
    return SubsetAverage(name, fmean(means), missing) if means else None


def wrong_pairs(pairs: Sequence[ScoredPair]) -> list[ScoredPair]:
    """The pairs judged wrong, worst first: those without a finite score, then by margin. Ties aren't wrong."""
    wrong = [pair for pair in pairs if pair.right == 0.0]
    return sorted(wrong, key=lambda pair: pair.margin if pair.finite else -math.inf)
