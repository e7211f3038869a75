"""Pairs whose better answer is known, to benchmark a reward model on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ultramed_rl.config.stages import BenchmarkPairs
from ultramed_rl.data.chats import Misfit, check_text, read_column
from ultramed_rl.data.conversations import check_order
from ultramed_rl.data.identity import UniqueIds, content_key, row_id
from ultramed_rl.data.misfits import FittingRows
from ultramed_rl.data.preference_formats import read_draft
from ultramed_rl.data.sources import Row
from ultramed_rl.records import PreferenceGroup, RankedAnswers

SIDES = ("chosen", "rejected")
SUBSET_COLUMNS = ("subset", "label_type", "type", "category")
NO_SUBSET = "all"


def read_pairs(source: BenchmarkPairs, counts: Counter[str]) -> Iterator[RankedAnswers]:
    """The pairs behind a source's URI (see `read_rows`), in order: the chosen answer first, scores 1 and 0.

    `chosen` and `rejected` are texts, an assistant's turn, or whole conversations that start with the prompt;
    the prompt is a text or turns under `prompt`, else under `messages`, and may be absent beside whole
    conversations. Other columns with answers or scores don't count. Texts are trimmed. Every row counts, also
    one that stands twice; ids are unique as in `read_preferences`, and `cut` holds the sides that a row's own
    `completions` say were cut off.

    `kind` is the pair's subset: the value of `subset_column`, else of the first of SUBSET_COLUMNS that the row
    has, else "all".

    Args:
        counts: gains rows, misfit and, by reason, misfit_column, misfit_turn, misfit_empty, misfit_rendered, misfit_order,
            misfit_prompt, misfit_equal, misfit_subset, misfit_id.

    Raises:
        ValueError: an unreadable source; at its end, too many misfits, or no pair at all.
    """
    ids = UniqueIds()

    def parse(row: Row) -> RankedAnswers:
        subset = _subset(row, source.subset_column)
        draft = read_draft(_pair_columns(row))
        check_order(draft.messages, "user")
        answers = tuple(draft.answers)
        if answers[0] == answers[1]:
            raise Misfit("its sides are equal", name="equal")
        name = ids.claim(row_id(row, ("prompt_id", "id")) or content_key(draft.messages))
        cut = _cut(row)
        places = frozenset(place for place, text in enumerate(answers) if text in cut)
        return RankedAnswers(name, tuple(draft.messages), answers, (1.0, 0.0), subset, 1, places)

    fix = "clean the file, or raise data.max_misfit_share"
    limits = (source.uri, source.limit, source.max_misfit_share)
    yield from FittingRows(*limits, "hold no pair", fix, counts).parse(parse)


def fit_pairs(
    pairs: Sequence[PreferenceGroup], limit: int, drop: bool
) -> tuple[list[PreferenceGroup], Counter[str]]:
    """The pairs of which no side has more than `limit` tokens with its prompt, and those left out by subset.

    Raises:
        ValueError: some are too long and aren't to be dropped, or all are.
    """
    lengths = [len(pair.prompt.token_ids) + max(len(c.token_ids) for c in pair.completions) for pair in pairs]
    fitting = [pair for pair, length in zip(pairs, lengths, strict=True) if length <= limit]
    left_out = Counter(
        pair.prompt.kind for pair, length in zip(pairs, lengths, strict=True) if length > limit
    )
    if left_out and not (drop and fitting):
        by_subset = ", ".join(f"{subset} {count}" for subset, count in left_out.items())
        fix = "" if drop else ", or set data.too_long=drop"
        raise ValueError(
            f"data: {left_out.total()} of {len(pairs)} pairs are over model.max_length={limit} ({by_subset}), the "
            f"longest has {max(lengths)} tokens; raise model.max_length{fix}"
        )
    return fitting, left_out


def _pair_columns(row: Row) -> Row:
    """The columns that make the pair, so that no other one decides which answer is the better."""
    for column in SIDES:
        if read_column(row, column) in (None, "", []):
            raise Misfit(f"column {column!r} is empty", name="empty")
    prompt = row["messages"] if row.get("prompt") is None and "messages" in row else row.get("prompt")
    found = {"prompt": prompt, "trajectory": row.get("trajectory")}
    return {**found, **{column: row[column] for column in SIDES}}


def _subset(row: Row, column: str | None) -> str:
    """The row's subset, as text."""
    if column is not None and row.get(column) is None:
        raise Misfit(f"no column {column!r}", column=column)
    names = SUBSET_COLUMNS if column is None else (column,)
    value = next((row[name] for name in names if row.get(name) not in (None, "")), NO_SUBSET)
    if not isinstance(value, str | int) or not str(value).strip():
        raise Misfit(f"its subset is {value!r:.40}, not a name", name="subset")
    return check_text(str(value).strip(), "its subset", name="id")


def _cut(row: Row) -> frozenset[str]:
    """Texts that a sampler cut off, as this project's own pairs tell them."""
    items = row.get("completions")
    found = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return frozenset(str(item.get("text")).strip() for item in found if item.get("finish_reason") == "length")
