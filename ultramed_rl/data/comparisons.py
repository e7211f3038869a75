"""Answers to one prompt that somebody compared, in the forms in which they are published (see `forms`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from ultramed_rl.data.chats import Misfit, NotedRow, as_flag, read_turns, unlearnt_turns
from ultramed_rl.data.forms import (
    ANSWERS,
    LABELS,
    QUESTIONS,
    TURNS,
    RowForm,
    complete_prompt,
    is_told,
    match_form,
    read_orphan,
    read_path,
    read_replies,
    with_input,
)
from ultramed_rl.data.sources import Row
from ultramed_rl.records import Message

_CHOSEN = "chosen chosen_response preferred_output"
_REJECTED = "rejected rejected_response non_preferred_output"
_TEXTS = ("text", "content", "response", "answer", "output", "completion")
_SCORES = ("score", "reward", "overall_score", "rating", "avg_rating", "pm_score")
_RANKS = ("rank", "ranks")  # the best one has the lowest
_SIDE_SCORES = [
    (kind, sign, f"{kind}_chosen chosen_{kind}", f"{kind}_rejected rejected_{kind}")
    for kinds, sign in ((_SCORES, 1.0), (_RANKS, -1.0))
    for kind in kinds
]
_ANY_SCORE = " ".join(columns for _, _, *both in _SIDE_SCORES for columns in both)
_SCORE_LISTS = "scores rewards ratings rating"
_PLACES = "they are under chosen and rejected, two beside a verdict as in response_1, response_2 and winner"
# Which of several answers is meant, perhaps.
_BEST = "best best_index best_idx best_answer chosen chosen_index chosen_idx correct_index correct correct_answer winner preference preferred label"
_WORDS = {
    **dict.fromkeys(("a>b", "a>>b", "model_a", "a", "response_1", "response_a"), 1.0),
    **dict.fromkeys(("a=b", "tie", "both", "both_bad", "tie (bothbad)"), 0.0),
    **dict.fromkeys(("b>a", "b>>a", "model_b", "b", "response_2", "response_b"), -1.0),
}


@dataclass(frozen=True)
class Draft:
    """A row's prompt and answers as they stand there."""

    messages: list[Message]
    answers: list[str]
    scores: list[float] | None = None  # without them, answers are listed best first
    desirable: int | None = None  # how many answers are wanted, where the row says so; one alone needs that
    cut: frozenset[str] = frozenset()  # texts that a sampler cut off


def read_drafts(row: NotedRow) -> list[Draft]:
    """The row's prompt and answers, in whichever form it is: one draft, or several of a tree of replies. More answers win
    over a pair of them.

    Raises:
        Misfit: no known form, or one with something amiss.
    """
    nothing = (
        f"no preferences in {{}}; {_PLACES}, under answers or completions, or under completion and label"
    )
    if row.find(QUESTIONS) and row.find(ANSWERS):
        nothing = "one answer alone in {}; it needs a label, or others to compare with in the same row"
    drafts = match_form(row, _PREFERENCES, nothing)
    drafts = drafts if isinstance(drafts, list) else [drafts]
    return [_completed(row, draft) for draft in drafts]


def read_benched(row: NotedRow) -> Draft:
    """A benchmark's row: its verdict decides, and no score beside chosen and rejected; the wanted answers come first. Raises
    Misfit."""
    nothing = f"no pair in {{}}; {_PLACES}"
    return _completed(row, match_form(row, _BENCHES, nothing))


def _completed(row: NotedRow, draft: Draft) -> Draft:
    messages = complete_prompt(row, draft.messages)
    return draft if messages is draft.messages else replace(draft, messages=messages)


# -- prompts and answers -----------------------------------------------------------------------------------


def _asked(row: NotedRow) -> list[Message]:
    """What the row's answers answer, as far as it stands apart from them; perhaps nothing."""
    # UltraInteract's trajectory is what was said so far; of UltraSafety `prompt` is a jailbreak's frame and `instruction`
    # what is asked; HelpSteer3's and NeMo's context is the chat, SHP's history a post.
    if (name := row.find(f"trajectory {QUESTIONS} context {TURNS} history")) is None:
        return []
    if isinstance(row[name], dict) and "messages" in row[name]:  # OpenAI's
        return complete_prompt(NotedRow(row[name]), read_turns(row[name], "messages"))
    return with_input(row, read_turns(row, name, None if name == "trajectory" else "user"), name)


def _answer(prompt: list[Message], value: Any, name: str) -> tuple[list[Message], str]:
    """An answer's text, after what it answers: the prompt, or the turns before it where they are more than its end."""
    if isinstance(value, dict) and not {"role", "from"} & value.keys():
        value = _first(value, _TEXTS)
    turns = read_turns({name: value}, name, "assistant")
    if not turns or turns[-1]["role"] != "assistant":
        raise Misfit(f"column {name!r} doesn't end with an assistant's turn", name="order")
    if len(turns) - 1 in unlearnt_turns({name: value}, name, "assistant"):
        raise Misfit(f"column {name!r} ends with a turn that its data keeps from being learnt", name="weight")
    before = turns[:-1]
    return prompt if prompt[len(prompt) - len(before) :] == before else before, turns[-1]["content"]


def _draft(prompt: list[Message], answers: Sequence[tuple[str, Any]], **more: Any) -> Draft:
    """Of answers, each after its column's name."""
    read = [_answer(prompt, value, name) for name, value in answers]
    names = " and ".join(dict.fromkeys(name for name, _ in answers))
    if not all(context for context, _ in read) and any(isinstance(value, str) for _, value in answers):
        raise Misfit(
            f"{names} hold no prompt apart from their answers, and no other column does; name it prompt, question or "
            "instruction, or give turns",
            name="prompt",
        )
    if any(context != read[0][0] for context, _ in read):
        raise Misfit(f"{names} are answers to different chats", name="prompt")
    told = [turn["content"] for turn in read[0][0]]
    if not is_told([turn["content"] for turn in prompt if turn["role"] == "user"], told):
        raise Misfit(
            f"the turns of {names} don't hold their row's prompt, {prompt[-1]['content']!r:.40}; where the turns are all that was "
            "asked, name the prompt's column under the source's ignore",
            name="prompt",
        )
    return Draft(read[0][0], [text for _, text in read], **more)


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


# -- pairs -------------------------------------------------------------------------------------------------


def _read_sides(row: NotedRow, *names: str) -> Draft:
    """Wanted and unwanted answers; a side may be several texts."""
    sides = [row[name] for name in names]
    listed = [s if isinstance(s, list) and s and isinstance(s[0], str) else [s] for s in sides]
    answers = [(name, one) for name, side in zip(names, listed, strict=True) for one in side]
    wanted, total = len(listed[0]), len(answers)
    scores = [float(place < wanted) for place in range(total)]
    return _draft(_asked(row), answers, scores=scores, desirable=wanted)


def _read_scored_sides(row: NotedRow, *names: str) -> Draft:
    """As `_read_sides`, with the scores or ranks that the row gives its sides."""
    draft, scored = _read_sides(row, *names), list[list[float]]()
    if row.find(_ANY_SCORE) is None and not any(isinstance(row[name], dict) for name in names):
        return draft
    for kind, sign, *columns in _SIDE_SCORES:
        # A column for one side alone says nothing.
        found = map(row.find, columns if all(map(row.has, columns)) else ("", ""))
        apart = [None if column is None else row[column] for column in found]
        within = [row[name].get(kind) if isinstance(row[name], dict) else None for name in names]
        scored += [_agreeing(kind, sign, *pair) for pair in (apart, within) if pair != [None, None]]
    return replace(draft, scores=scored[0] if scored else draft.scores)


def _agreeing(kind: str, sign: float, better: Any, worse: Any) -> list[float]:
    """The scores of the wanted answer and the other one; of ranks, which have sign -1, so that more is better."""
    scores = [sign * _number(value) + 0.0 for value in (better, worse)]  # no -0.0
    if scores[0] < scores[1]:
        raise Misfit(f"its chosen answer has {kind} {better}, its rejected one {worse}", name="score")
    return scores


def _read_replaced(row: NotedRow, turns: str, rejected: str) -> Draft:
    """ms-swift's: a chat, and what its last answer is better than."""
    before, _ = _answer([], row[turns], turns)
    return _draft(before, [(turns, row[turns]), (rejected, row[rejected])], scores=[1.0, 0.0])


def _compared(meanings: Mapping[str, float] | None) -> Callable[[NotedRow, str, str, str], Draft]:
    """A reader of two answers and a verdict, which means a number above zero for the first, below for the second; without
    meanings it is one, the other way round."""

    def read_compared(row: NotedRow, first: str, second: str, verdict: str) -> Draft:
        value = row[verdict]
        said = str(value).strip().casefold().removesuffix(".0")
        lead = -_number(value) if meanings is None else meanings.get(said)
        if lead is None:
            raise Misfit(f"column {verdict!r} holds {value!r:.40}, no verdict", name="score")
        names = (first, second) if lead >= 0 else (second, first)
        # As SHP has score_A beside human_ref_A.
        scores = [row.find(f"score_{name[-1]} {name}_score".casefold()) for name in names]
        if lead and None not in scores:
            _agreeing("score", 1.0, *(row[str(name)] for name in scores))
        return replace(_read_sides(row, *names), scores=[abs(lead), 0.0])

    return read_compared


_PAIRS = tuple(
    RowForm(columns, _compared(meanings))
    for columns, meanings in (
        (("output_1", "output_2", "preference"), {"1": 1.0, "2": -1.0}),
        (("response_1", "response_2", "preference_strength"), None),
        (("response1", "response2", "overall_preference"), None),
        (("human_ref_a", "human_ref_b", "labels"), {"1": 1.0, "0": -1.0}),
        (("response_0", "response_1", "better_response_id"), {"0": 1.0, "1": -1.0}),
        (("response_a", "response_b", "label winner"), _WORDS),
        (("response_1", "response_2", "winner"), _WORDS),
        (("conversation_a", "conversation_b", "winner"), _WORDS),
    )
)


# -- more answers, and one alone ---------------------------------------------------------------------------


def _read_ranked(row: NotedRow, column: str) -> Draft:
    """Answers as texts or records, with scores or ranks in a column or of their own."""
    items = row[column]
    if not isinstance(items, list) or not items:
        raise Misfit(f"column {column!r} holds {items!r:.40}, not a list of answers", name="answers")
    desirable = row.get("desirable")
    if desirable is not None and not (isinstance(desirable, int) and 0 <= desirable <= len(items)):
        raise Misfit(
            f"column 'desirable' holds {desirable!r:.40}, not a number of its answers", name="answers"
        )
    texts = [_first(item, _TEXTS) if isinstance(item, dict) else item for item in items]
    for text in texts:
        if not isinstance(text, str | list):
            raise Misfit(f"an answer holds {text!r:.40}, not text under {', '.join(_TEXTS)}", name="answers")
    draft = _draft(_asked(row), [(column, text) for text in texts], scores=_scores(row, items))
    return replace(draft, desirable=desirable, cut=cut_texts(items))


def cut_texts(items: Any) -> frozenset[str]:
    """The texts of those answers that their records say a sampler cut off."""
    records = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    cut = [item for item in records if item.get("finish_reason") == "length"]
    return frozenset(str(_first(item, _TEXTS)).strip() for item in cut)


def _scores(row: NotedRow, items: Sequence[Any]) -> list[float] | None:
    """The row's scores, else the answers' own, all or none of them; where ranks stand beside them, both must agree."""
    orders = []
    item_rank = lambda item: _first(item, _RANKS)
    for columns, sign, own in ((_SCORE_LISTS, 1.0, _item_score), (" ".join(_RANKS), -1.0, item_rank)):
        column = row.find(columns)
        of_items = [own(item) if isinstance(item, dict) else None for item in items]
        values = of_items if column is None else row[column]
        if not isinstance(values, list) or len(values) != len(items):
            raise Misfit(
                f"column {column!r} isn't a list of {len(items)} numbers, one an answer", name="score"
            )
        if column is not None or any(value is not None for value in values):
            orders.append([sign * _number(value) + 0.0 for value in values])  # no -0.0
    if len(orders) > 1:
        pairs = [[(a > b) - (a < b) for a in order for b in order] for order in orders]
        if any(one * other < 0 for one, other in zip(*pairs, strict=True)):
            raise Misfit("its scores and its ranks contradict each other", name="score")
    if not orders and (beside := _unread_numbers(row, items) or row.find(_BEST)):
        raise Misfit(
            f"{beside!r} may say which answer is better, and isn't read; name it score or rank, or leave it out",
            name="score",
        )
    return orders[0] if orders else None


def _unread_numbers(row: NotedRow, items: Sequence[Any]) -> str | None:
    """The name of numbers or flags beside answers, one each, which may say what is better."""
    records = [item for item in items if isinstance(item, dict)]
    named = {name: [item.get(name) for item in records] for item in records for name in item}
    named |= {name: value for name, value in row.items() if name not in row.read and isinstance(value, list)}
    for name, values in named.items():
        if len(values) == len(items) and not name.endswith("id") and name not in _TEXTS:
            with suppress(Misfit):
                _ = [as_flag(value) is not None or _number(value) for value in values]
                return name
    return None


def _item_score(item: Row) -> Any:
    """An answer's score; UltraFeedback's and UltraSafety's annotations count by the mean of their ratings."""
    score, annotations = _first(item, _SCORES), item.get("annotations")
    if score is not None or not isinstance(annotations, dict):
        return score
    aspects = [a if isinstance(a, list) else [a] for a in annotations.values()]
    notes = [note for aspect in aspects for note in aspect if isinstance(note, dict)]
    ratings = [note["Rating"] for note in notes if note.get("Rating") is not None]
    return fmean(map(_number, ratings)) if ratings else None


def _read_numbered(row: NotedRow, *_: str) -> Draft:
    """PPE's samples: response_1, response_2, ... and whether each is right; the right ones first."""
    scores = row["scores"]
    if not isinstance(scores, list) or not scores:
        raise Misfit(f"column 'scores' holds {scores!r:.40}, not a list of numbers", name="score")
    names = [f"response_{number}" for number in range(1, len(scores) + 1)]
    numbered = sorted(zip(map(_number, scores), names, strict=True), key=lambda one: -one[0])
    answers = [(name, row.get(name)) for _, name in numbered]
    draft = _draft(_asked(row), answers, scores=[score for score, _ in numbered])
    return replace(draft, desirable=sum(score > 0 for score, _ in numbered))


def _read_labelled(row: NotedRow, *names: str) -> Draft:
    """One answer, wanted or not, in a column or at the end of a chat."""
    *_, answer, label = names
    wanted = as_flag(row[label])
    if wanted is None:
        raise Misfit(f"column {label!r} holds {row[label]!r:.40}, not true or false", name="score")
    prompt = _asked(row) if len(names) > 2 else []
    return _draft(prompt, [(answer, row[answer])], scores=[float(wanted)], desirable=int(wanted))


def _read_tree(row: NotedRow, *_: str) -> list[Draft]:
    """Of OASST's tree of replies, each turn of the user's that several ranked replies answer."""
    drafts = [draft for path, node in _asked_nodes([], row["prompt"]) for draft in _read_replies(path, node)]
    if not drafts:
        raise Misfit("no turn of its tree has two replies with ranks", name="answers")
    return drafts


def _asked_nodes(path: list[Row], node: Row) -> Iterator[tuple[list[Row], Row]]:
    path = [*path, node]
    yield path, node
    for reply in read_replies(node):
        yield from _asked_nodes(path, reply)


def _read_replies(path: list[Row], node: Row) -> Iterator[Draft]:
    replies = [reply for reply in read_replies(node) if reply.get("rank") is not None]
    if node.get("role") == "prompter" and len(replies) > 1:
        scores = [0.0 - _number(reply["rank"]) for reply in replies]
        yield _draft(read_path(path), [("text", reply.get("text")) for reply in replies], scores=scores)


# The first whose columns the row has.
_LISTED = RowForm(("answers completions",), _read_ranked)
_NUMBERED = RowForm(("response_1", "response_2", "scores"), _read_numbered)
_PREFERENCES = (
    RowForm(("message_tree_id", "prompt"), _read_tree),
    RowForm(("message_tree_id", "parent_id", "text"), read_orphan),
    _LISTED,
    RowForm((_CHOSEN, _REJECTED), _read_scored_sides),
    *_PAIRS,
    _NUMBERED,
    RowForm((TURNS, "rejected_response rejected_messages"), _read_replaced),
    RowForm(
        ("generations responses", f"{_SCORE_LISTS} rank ranks"),
        lambda row, column, _: _read_ranked(row, column),
    ),
    RowForm((f"{QUESTIONS} {TURNS}", ANSWERS, LABELS), _read_labelled),
    RowForm((TURNS, LABELS), _read_labelled),
)
_BENCHES = (RowForm((_CHOSEN, _REJECTED), _read_sides), *_PAIRS, _NUMBERED)
