"""Preferences to learn from: rows of every published format become a prompt and its answers, best first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ultramed_rl.config.stages import PreferenceSource
from ultramed_rl.data.chats import Misfit, check_text, read_turns
from ultramed_rl.data.conversations import check_order
from ultramed_rl.data.identity import UniqueIds, content_key, row_id
from ultramed_rl.data.misfits import FittingRows
from ultramed_rl.data.preference_formats import Draft, read_draft
from ultramed_rl.data.sources import Row
from ultramed_rl.records import RankedAnswers

KIND_COLUMNS = ("label_type", "kind", "task")  # UltraMedical's, this project's, UltraInteract's


def read_preferences(
    source: PreferenceSource, counts: Counter[str], *, quiet: bool = False
) -> Iterator[RankedAnswers]:
    """The preferences behind a source's URI (see `read_rows`), in order and each once, as they are read.

    Formats are told by columns, see `preference_formats`. A prompt ends with the user's turn; texts are trimmed,
    answers differ, and scores descend. Where a row has none, a pair's are 1 and 0, and n answers', listed best
    first, n - 1 down to 0. Of identical answers the best one stays.

    Rows may share a prompt, as the pairs of one prompt do, so splits are by the prompt's content (`prompt_key`)
    and not by id. The id is the row's own `prompt_id` or `id`, else a hash of the prompt; from its second row on
    it ends in ~2, ~3, ... in file order. Memory holds some numbers a row.

    `kind` is the source's `category`, else the row's own label_type, kind or task, else what comes before the
    first comma of its prompt_id (UltraMedical's "MedQA,123"), else "preference".

    Args:
        counts: gains rows, duplicate (equal prompt and answers), misfit and, by reason, misfit_column, misfit_turn,
            misfit_empty, misfit_rendered, misfit_order, misfit_prompt, misfit_answers, misfit_equal, misfit_score,
            misfit_non_finite, misfit_tie, misfit_id.
        quiet: don't warn of skipped rows.

    Raises:
        ValueError: an unreadable source; at its end, too many misfits, or no preference at all.
    """
    counts.update(duplicate=0)
    contents: set[int] = set()
    ids = UniqueIds()

    def parse(row: Row) -> RankedAnswers | None:
        ranked = _rank(row, source.category)
        key = int(ranked_key(ranked), 16)
        if key in contents:
            counts["duplicate"] += 1
            return None
        contents.add(key)
        return RankedAnswers(**{**vars(ranked), "prompt_id": ids.claim(ranked.prompt_id)})

    fix = "clean the file, or raise max_misfit_share"
    limits = (source.uri, source.limit, source.max_misfit_share)
    yield from FittingRows(*limits, "hold no preference", fix, counts, quiet).parse(parse)


def ranked_key(ranked: RankedAnswers) -> str:
    """16 hexadecimal digits that stand for prompt and answers, their order, and which are wanted."""
    return content_key(ranked.messages, (*ranked.answers, ranked.desirable))


def _rank(row: Row, category: str | None) -> RankedAnswers:
    """The row's answers, best first; its id may be another row's too."""
    draft = read_draft(row)
    check_order(draft.messages, "user")
    answers, scores = _order(draft)
    if len(answers) < 2 and len(draft.answers) > 1:
        raise Misfit("its answers are equal", name="equal")
    if len(answers) < 2 and draft.desirable is None:
        raise Misfit("one answer alone; it needs a label, or others to compare with", name="answers")
    if len(answers) > 1 and scores[0] == scores[-1]:
        raise Misfit(f"all of its answers score {scores[0]:g}", name="tie")
    name = row_id(row, ("prompt_id", "id")) or content_key(draft.messages)
    desirable = min(1 if draft.desirable is None else draft.desirable, len(answers))
    messages = tuple(draft.messages)
    cut = frozenset(place for place, text in enumerate(answers) if text in draft.cut)
    return RankedAnswers(name, messages, answers, scores, category or _kind(row), desirable, cut)


def _order(draft: Draft) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Answers of different texts, best first and as listed where equally good, and their scores."""
    turns = read_turns({"answers": [{"role": "assistant", "content": a} for a in draft.answers]}, "answers")
    texts = [turn["content"] for turn in turns]
    if draft.scores is None:
        kept = list(dict.fromkeys(texts))
        return tuple(kept), tuple(float(place) for place in reversed(range(len(kept))))
    best: dict[str, float] = {}
    for score, text in sorted(zip(draft.scores, texts, strict=True), key=lambda pair: -pair[0]):
        best.setdefault(text, score)
    return tuple(best), tuple(best.values())


def _kind(row: Row) -> str:
    for column in KIND_COLUMNS:
        if isinstance(row.get(column), str) and row[column].strip():
            return check_text(row[column].strip(), f"its {column}", name="id")
    set_name, comma, _ = str(row.get("prompt_id") or "").partition(",")
    return set_name if comma and set_name else RankedAnswers.kind
