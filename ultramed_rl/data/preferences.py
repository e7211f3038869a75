"""Preferences to learn from, and pairs to benchmark a reward model on: best answer first, out of every form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from ultramed_rl.config.stages import BenchmarkPairs, PreferenceSource
from ultramed_rl.data.chats import FittingRows, Misfit, NotedRow, SourceNotes, check_order, check_text
from ultramed_rl.data.comparisons import Draft, cut_texts, read_benched, read_drafts
from ultramed_rl.data.files import Row, SourceError
from ultramed_rl.data.forms import gather_answers
from ultramed_rl.data.identity import UniqueIds, content_key, row_id
from ultramed_rl.records import RankedAnswers

KIND_COLUMNS = ("label_type", "kind", "task")  # UltraMedical's, this project's, UltraInteract's
SUBSET_COLUMNS = ("subset", "label_type", "type", "category", "domain")


def read_preferences(
    source: PreferenceSource, counts: Counter[str], notes: SourceNotes | None = None
) -> Iterator[RankedAnswers]:
    """The preferences behind a source's URI (see `read_rows`), in order and each once, as they are read.

    Formats are told by columns. A prompt ends with the user's turn; texts are trimmed, answers differ, and scores
    descend. Where a row has none, a pair's are 1 and 0, and n answers', listed best first, n - 1 down to 0. Of identical
    answers the best one stays.

    Rows may share a prompt, as the pairs of one prompt do, so splits are by the prompt's content (`prompt_key`)
    and not by id. The id is the row's own `prompt_id` or `id`, else a hash of the prompt; from its second row on
    it ends in ~2, ~3, ... in file order. Memory holds some numbers a row.

    `kind` is the source's `category`, else the row's own label_type, kind or task, else what comes before the
    first comma of its prompt_id (UltraMedical's "MedQA,123"), else "preference".

    Args:
        counts: gains rows, duplicate (equal prompt and answers), misfit and, by reason, misfit_NAME.
        notes: gains what is noted of rows and columns; None: warnings say it.

    Raises:
        ValueError: an unreadable source; at its end, too many misfits, or no preference at all.
    """
    counts.update(duplicate=0)
    contents: set[int] = set()
    ids = UniqueIds()

    def parse(row: NotedRow) -> list[RankedAnswers]:
        new = []
        for ranked in [_rank(row, draft, source.category) for draft in read_drafts(row)]:
            key = int(ranked_key(ranked), 16)
            if key in contents:
                counts["duplicate"] += 1
            else:
                contents.add(key)
                new.append(replace(ranked, prompt_id=ids.claim(ranked.prompt_id)))
        return new

    fix = "clean the file, or raise max_misfit_share"
    rows = FittingRows.of(source, "hold no preference", fix, counts, notes)
    for new in rows.parse(parse, gather_answers):
        yield from new


def ranked_key(ranked: RankedAnswers) -> str:
    """16 hexadecimal digits that stand for prompt and answers, their order, and which are wanted."""
    return content_key(ranked.messages, (*ranked.answers, ranked.desirable))


def _rank(row: NotedRow, draft: Draft, category: str | None) -> RankedAnswers:
    """A row's answers, best first; its id may be another row's too."""
    check_order(draft.messages, "user")
    answers, scores = _order(draft)
    if len(answers) < 2 and len(draft.answers) > 1:
        raise Misfit("its answers are equal", name="equal")
    if len(answers) < 2 and draft.desirable is None:
        raise Misfit("one answer alone; it needs a label, or others to compare with", name="answers")
    if len(answers) > 1 and scores[0] == scores[-1]:
        raise Misfit(f"all of its answers score {scores[0]:g}", name="tie")
    name = row_id(row, ("prompt_id", "id", "message_tree_id")) or content_key(draft.messages)
    desirable = min(1 if draft.desirable is None else draft.desirable, len(answers))
    cut = frozenset(place for place, text in enumerate(answers) if text in draft.cut)
    kind = category or _kind(row)
    return RankedAnswers(name, tuple(draft.messages), answers, scores, kind, desirable, cut)


def _order(draft: Draft) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Answers of different texts, best first and as listed where equally good, and their scores."""
    if draft.scores is None:
        kept = list(dict.fromkeys(draft.answers))
        return tuple(kept), tuple(float(place) for place in reversed(range(len(kept))))
    best: dict[str, float] = {}
    for score, text in sorted(zip(draft.scores, draft.answers, strict=True), key=lambda pair: -pair[0]):
        best.setdefault(text, score)
    return tuple(best), tuple(best.values())


def _kind(row: Row) -> str:
    for column in KIND_COLUMNS:
        if isinstance(row.get(column), str) and row[column].strip():
            return check_text(row[column].strip(), f"its {column}", name="id")
    set_name, comma, _ = str(row.get("prompt_id") or "").partition(",")
    return set_name if comma and set_name else RankedAnswers.kind


# -- pairs to benchmark a reward model on ------------------------------------------------------------------


def read_pairs(
    source: BenchmarkPairs, counts: Counter[str], notes: SourceNotes | None = None
) -> Iterator[RankedAnswers]:
    """The pairs behind a source's URI (see `read_rows`), in order: the chosen answer first, scores 1 and 0.

    The sides are texts, an assistant's turn, or whole conversations that start with the prompt, which may then be
    absent. The row's verdict decides; scores beside chosen and rejected don't count. Texts are trimmed. Every row counts, also
    one that stands twice; ids are unique as in `read_preferences`, and `cut` holds the sides that a row's own
    `completions` say were cut off. Where several answers are wanted or unwanted, all stay together: the wanted ones
    first, `desirable` of them, with scores 1 and 0.

    `kind` is the pair's subset: the value of `subset_column`, else of the first of SUBSET_COLUMNS that the row
    has, else "all".

    Args:
        counts: gains rows, misfit and, by reason, misfit_NAME; tie (neither side is better, and so left out).

    Raises:
        ValueError: an unreadable source; at its end, too many misfits, or no pair at all.
    """
    ids = UniqueIds()

    def parse(row: NotedRow) -> RankedAnswers | None:
        subset = _subset(row, source.subset_column)
        draft = read_benched(row)
        check_order(draft.messages, "user")
        answers, wanted = draft.answers, draft.desirable or 0
        if set(answers[:wanted]) & set(answers[wanted:]):
            raise Misfit("its sides are equal", name="equal")
        if not draft.scores or draft.scores[0] == draft.scores[-1]:
            counts["tie"] += 1
            return None
        own_id = row_id(row, ("prompt_id", "id", "pair_id", "question_id"))
        name = ids.claim(own_id or content_key(draft.messages))
        scores = tuple(float(place < wanted) for place in range(len(answers)))
        cut_off = cut_texts(row.get("completions"))  # as this project's own pairs tell
        cut = frozenset(place for place, text in enumerate(answers) if text in cut_off)
        return RankedAnswers(name, tuple(draft.messages), tuple(answers), scores, subset, wanted, cut)

    fix = "clean the file, or raise data.max_misfit_share"
    pair = None
    for pair in FittingRows.of(source, "hold no pair", fix, counts, notes).parse(parse):
        yield pair
    if pair is None:
        raise SourceError(
            f"source {source.uri!r}: its {counts['tie']} pairs are all ties; name another source"
        )


def _subset(row: Row, column: str | None) -> str:
    """The row's subset, as text."""
    if column is not None and row.get(column) is None:
        raise Misfit(f"no column {column!r}", column=column)
    names = SUBSET_COLUMNS if column is None else (column,)
    value = next((row[name] for name in names if row.get(name) not in (None, "")), "all")
    if not isinstance(value, str | int) or not str(value).strip():
        raise Misfit(f"its subset is {value!r:.40}, not a name", name="subset")
    return check_text(str(value).strip(), "its subset", name="id")
