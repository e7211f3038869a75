"""Which candidate model answers best: ranks, scores and win rates out of judged rows. Pure numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from ultramed_rl.data.factory.judgements import Judged, read_judged
from ultramed_rl.data.factory.step import Row


@dataclass(frozen=True)
class ModelTable:
    """Candidate models, best mean rank first. All lists are in the order of `models`.

    Args:
        answers: judged answers of each.
        mean_rank: 1 is best. Comparable where all models answered the same records: with fewer candidates in a
            record ranks are lower.
        mean_score: of the overall scores.
        win_rates: [i][j] how often i's answer was better than j's, a tie counting a half; None where the two never
            met, and on the diagonal. [i][j] + [j][i] = 1.
        meetings: [i][j] records in which both answered.
    """

    models: tuple[str, ...]
    answers: tuple[int, ...]
    mean_rank: tuple[float, ...]
    mean_score: tuple[float, ...]
    win_rates: tuple[tuple[float | None, ...], ...]
    meetings: tuple[tuple[int, ...], ...]


def model_table(rows: Iterable[Row], by: Literal["score", "rank"] = "score") -> ModelTable:
    """The table over judged rows, in one pass; memory holds a few numbers for every two models.

    Args:
        by: what wins. score: the higher overall score, equal ones tie. rank: the better rank, which a judge has to
            give also where it sees no difference; identical texts tie.

    Raises:
        ValueError: no rows, a row that no judge wrote, or a model twice in one record.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])  # answers, ranks, scores
    wins: dict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        judged = read_judged(row)
        models = [candidate.model for candidate in judged.candidates]
        if len(set(models)) < len(models):
            raise ValueError(f"record {judged.prompt_id!r:.60}: models are {models}; give each its own name")
        for model, verdict in zip(models, judged.verdicts, strict=True):
            answers, ranks, scores = sums[model]
            sums[model] = [answers + 1, ranks + verdict.rank, scores + verdict.overall]
        for i, j in combinations(range(len(models)), 2):
            won = _points(judged, i, j, by)
            wins[models[i], models[j]] += won
            wins[models[j], models[i]] += 1 - won
    if not sums:
        raise ValueError("0 judged rows: a table of models needs at least one; run the feedback stage first")
    return _table(sums, wins)


def _points(judged: Judged, i: int, j: int, by: str) -> float:
    """1 if candidate i is the better, 0 if j is, 0.5 for a tie."""
    one, other = judged.verdicts[i], judged.verdicts[j]
    lead: float = one.overall - other.overall
    if by == "rank":
        texts = {judged.candidates[place].text.strip() for place in (i, j)}
        lead = other.rank - one.rank if len(texts) == 2 else 0
    return 0.5 + 0.5 * (lead > 0) - 0.5 * (lead < 0)


def _table(sums: Mapping[str, list[float]], wins: Mapping[tuple[str, str], float]) -> ModelTable:
    models = sorted(sums, key=lambda model: (sums[model][1] / sums[model][0], model))

    def met(i: str, j: str) -> int:
        return round(wins.get((i, j), 0.0) + wins.get((j, i), 0.0))

    return ModelTable(
        models=tuple(models),
        answers=tuple(int(sums[model][0]) for model in models),
        mean_rank=tuple(sums[model][1] / sums[model][0] for model in models),
        mean_score=tuple(sums[model][2] / sums[model][0] for model in models),
        win_rates=tuple(tuple(wins[i, j] / met(i, j) if met(i, j) else None for j in models) for i in models),
        meetings=tuple(tuple(met(i, j) for j in models) for i in models),
    )
