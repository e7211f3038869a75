"""Preferences: rows of every published format become a prompt and its answers, best first.

UltraMedical-Preference    prompt (a text); chosen, rejected: turns from the user's on
UltraFeedback, binarized   the same, with score_chosen, score_rejected
UltraInteract              trajectory: turns; chosen, rejected: texts
TRL                        prompt, chosen, rejected: texts or turns; without prompt, turns that begin alike;
                           or prompt, completion, label
UltraFeedback, UltraSafety instruction; completions: response and overall_score, or ratings under annotations
ranked in general          prompt; answers or completions: texts, or texts with scores; perhaps scores, rewards
this project's own pairs   prompt, completions, rewards, desirable
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from ultramed_rl.config.stages import BenchmarkPairs, PreferenceSource
from ultramed_rl.data.chats import FittingRows, Misfit, check_order, check_text, read_column, read_turns
from ultramed_rl.data.identity import UniqueIds, content_key, row_id
from ultramed_rl.data.sources import Row
from ultramed_rl.records import Message, RankedAnswers

LISTS = ("answers", "completions")
SCORE_LISTS = ("scores", "rewards")
TEXTS = ("text", "content", "response")
SCORES = ("score", "reward", "overall_score", "rating")
SIDES = ("chosen", "rejected")
KIND_COLUMNS = ("label_type", "kind", "task")  # UltraMedical's, this project's, UltraInteract's
SUBSET_COLUMNS = ("subset", "label_type", "type", "category")


def read_preferences(
    source: PreferenceSource, counts: Counter[str], *, quiet: bool = False
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
        return replace(ranked, prompt_id=ids.claim(ranked.prompt_id))

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
    cut = frozenset(place for place, text in enumerate(answers) if text in draft.cut)
    kind = category or _kind(row)
    return RankedAnswers(name, tuple(draft.messages), answers, scores, kind, desirable, cut)


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


# -- pairs to benchmark a reward model on ------------------------------------------------------------------


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
        counts: gains rows, misfit and, by reason, misfit_NAME.

    Raises:
        ValueError: an unreadable source; at its end, too many misfits, or no pair at all.
    """
    ids = UniqueIds()

    def parse(row: Row) -> RankedAnswers:
        subset = _subset(row, source.subset_column)
        for column in SIDES:
            if read_column(row, column) in (None, "", []):
                raise Misfit(f"column {column!r} is empty", name="empty")
        prompt = row["messages"] if row.get("prompt") is None and "messages" in row else row.get("prompt")
        # The columns that make the pair alone, so that no other one decides which answer is the better.
        columns = {column: row.get(column) for column in ("trajectory", *SIDES)}
        draft = read_draft({"prompt": prompt, **columns})
        check_order(draft.messages, "user")
        chosen, rejected = draft.answers
        if chosen == rejected:
            raise Misfit("its sides are equal", name="equal")
        name = ids.claim(row_id(row, ("prompt_id", "id")) or content_key(draft.messages))
        items = row["completions"] if isinstance(row.get("completions"), list) else []
        cut = _cut_texts([str(item.get("text")) if isinstance(item, dict) else "" for item in items], items)
        places = frozenset(place for place, text in enumerate(draft.answers) if text in cut)
        return RankedAnswers(name, tuple(draft.messages), (chosen, rejected), (1.0, 0.0), subset, 1, places)

    fix = "clean the file, or raise data.max_misfit_share"
    limits = (source.uri, source.limit, source.max_misfit_share)
    yield from FittingRows(*limits, "hold no pair", fix, counts).parse(parse)


def _subset(row: Row, column: str | None) -> str:
    """The row's subset, as text."""
    if column is not None and row.get(column) is None:
        raise Misfit(f"no column {column!r}", column=column)
    names = SUBSET_COLUMNS if column is None else (column,)
    value = next((row[name] for name in names if row.get(name) not in (None, "")), "all")
    if not isinstance(value, str | int) or not str(value).strip():
        raise Misfit(f"its subset is {value!r:.40}, not a name", name="subset")
    return check_text(str(value).strip(), "its subset", name="id")


# -- formats -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draft:
    """A row's prompt and answers as they stand there."""

    messages: list[Message]
    answers: list[str]
    scores: list[float] | None = None  # without them, answers are listed best first
    desirable: int | None = None  # how many answers are wanted, where the row says so; one alone needs that
    cut: frozenset[str] = frozenset()  # texts that a sampler cut off


def read_draft(row: Row) -> Draft:
    """The row's prompt and answers, in whichever format it is. More answers win over a pair of them.

    Raises:
        Misfit: no known format, or one with something amiss.
    """
    present = {name for name, value in row.items() if value is not None}
    for columns, read in _FORMATS:
        if present.issuperset(columns):
            return read(row)
    raise Misfit(
        f"no preferences in its columns {', '.join(row)}; they are under chosen and rejected, under "
        "answers or completions, or under completion and label"
    )


def _read_pair(row: Row) -> Draft:
    """chosen and rejected, perhaps with scores of their own."""
    # UltraInteract's prompt is what was said so far.
    told = read_turns(row, "trajectory") if row.get("trajectory") is not None else _prompt(row, "prompt")
    if not told and any(isinstance(row[column], str) for column in SIDES):
        raise Misfit(
            "chosen and rejected are texts that hold their prompt; give it in a column 'prompt', or both as turns",
            name="prompt",
        )
    sides = [read_turns(row, column, "assistant") for column in SIDES]
    contexts = [_context(told, side, column) for side, column in zip(sides, SIDES, strict=True)]
    if contexts[0] != contexts[1]:
        raise Misfit("chosen and rejected are answers to different chats", name="prompt")
    scores = [row.get("score_chosen"), row.get("score_rejected")]
    numbers = None if scores == [None, None] else [_number(score) for score in scores]
    if numbers is not None and numbers[0] < numbers[1]:
        raise Misfit(
            f"its chosen answer scores {numbers[0]:g}, below its rejected one's {numbers[1]:g}", name="score"
        )
    return Draft(contexts[0], [side[-1]["content"] for side in sides], numbers)


def _read_unpaired(row: Row) -> Draft:
    """One answer, wanted or not."""
    turns = read_turns(row, "completion", "assistant")
    label = row["label"]
    if label not in (True, False):  # 1 and 0 are these too
        raise Misfit(f"column 'label' holds {label!r:.40}, not true or false", name="score")
    context = _context(_prompt(row, "prompt"), turns, "completion")
    return Draft(context, [turns[-1]["content"]], [float(label)], int(label))


def _read_ranked(row: Row) -> Draft:
    """Answers as texts or records, with scores in a column or of their own."""
    column = next(name for name in LISTS if row.get(name) is not None)
    items = row[column]
    if not isinstance(items, list) or not items:
        raise Misfit(f"column {column!r} holds {items!r:.40}, not a list of answers", name="answers")
    # UltraSafety's `prompt` is a jailbreak's frame, and its `instruction` what is asked.
    messages = _prompt(row, "instruction") or _prompt(row, "prompt")
    scores = _scores(row, items)
    desirable = row.get("desirable")
    if desirable is not None and not (isinstance(desirable, int) and 0 <= desirable <= len(items)):
        raise Misfit(
            f"column 'desirable' holds {desirable!r:.40}, not a number of its answers", name="answers"
        )
    texts = [_first(item, TEXTS) if isinstance(item, dict) else item for item in items]
    for text in texts:
        if not isinstance(text, str):
            raise Misfit(f"an answer holds {text!r:.40}, not text under {', '.join(TEXTS)}", name="answers")
    return Draft(messages, texts, scores, desirable, _cut_texts(texts, items))


# The first whose columns the row has.
_FORMATS: list[tuple[tuple[str, ...], Callable[[Row], Draft]]] = [
    (("answers",), _read_ranked),
    (("completions",), _read_ranked),
    (SIDES, _read_pair),
    (("completion", "label"), _read_unpaired),
]


def _prompt(row: Row, column: str) -> list[Message]:
    """The column's turns; none where the row doesn't have it."""
    return [] if row.get(column) is None else read_turns(row, column, "user")


def _context(prompt: list[Message], turns: list[Message], column: str) -> list[Message]:
    """What the last turn answers: the prompt, or the turns before where they are more than its end."""
    if not turns or turns[-1]["role"] != "assistant":
        raise Misfit(f"column {column!r} doesn't end with an assistant's turn", name="order")
    before = turns[:-1]
    return prompt if prompt[len(prompt) - len(before) :] == before else before


def _cut_texts(texts: Sequence[str], items: Sequence[Any]) -> frozenset[str]:
    """Those of the answers' texts that a sampler cut off, as this project's own pairs tell."""
    ends = [item.get("finish_reason") if isinstance(item, dict) else None for item in items]
    return frozenset(text.strip() for text, end in zip(texts, ends, strict=True) if end == "length")


def _scores(row: Row, items: Sequence[Any]) -> list[float] | None:
    """The row's scores, else the answers' own, all or none of them."""
    column = next((name for name in SCORE_LISTS if row.get(name) is not None), None)
    values = [_item_score(item) for item in items] if column is None else row[column]
    if not isinstance(values, list) or len(values) != len(items):
        raise Misfit(f"column {column!r} isn't a list of {len(items)} numbers, one an answer", name="score")
    if column is None and all(value is None for value in values):
        return None
    return [_number(value) for value in values]


def _item_score(item: Any) -> Any:
    """An answer's score; UltraFeedback's and UltraSafety's annotations count by the mean of their ratings."""
    if not isinstance(item, dict):
        return None
    score = _first(item, SCORES)
    annotations = item.get("annotations")
    if score is not None or not isinstance(annotations, dict):
        return score
    notes = [
        note for aspect in annotations.values() for note in (aspect if isinstance(aspect, list) else [aspect])
    ]
    ratings = [note["Rating"] for note in notes if isinstance(note, dict) and note.get("Rating") is not None]
    return fmean(map(_number, ratings)) if ratings else None


def _first(item: Row, names: Sequence[str]) -> Any:
    """The value under the first of the names that has one."""
    return next((item[name] for name in names if item.get(name) is not None), None)


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise Misfit(f"a score is {value!r:.40}, not a number", name="score") from None
    if not math.isfinite(number):
        raise Misfit(f"a score is {number}", name="non_finite")
    return number
