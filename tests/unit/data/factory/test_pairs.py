"""Judged records to preferences: which answers meet, which is better, and that no prompt is in two splits."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.config.factory_steps import Pairs, SplitSizes
from ultramed_rl.config.stages import PreferenceSource
from ultramed_rl.data.chats import NotedRow
from ultramed_rl.data.comparisons import read_drafts
from ultramed_rl.data.factory.judgements import Verdict, judged_row, read_judged
from ultramed_rl.data.factory.pair_rows import (
    build_pairs,
    choose_pair,
    choose_splits,
    distinct_answers,
    ordered_pairs,
    ranked_answers,
)
from ultramed_rl.data.factory.step import Row
from ultramed_rl.data.identity import prompt_key
from ultramed_rl.data.preferences import read_preferences
from ultramed_rl.records import Message, RankedAnswers

COLUMNS = {"prompt_id", "prompt", "chosen", "rejected", "metadata", "label_type", "feedback"}
ALL = SplitSizes(dev=0, test=0)


def judged(
    scores: Sequence[float],
    *,
    name: str = "MedQA,1",
    question: str = "Why?",
    texts: Sequence[str] | None = None,
    unfinished: Sequence[int] = (),
    ranks: Sequence[int] | None = None,
) -> Row:
    """A judged row; without ranks those of the scores, in the order of the candidates where they tie."""
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    own = list(ranks) if ranks else [order.index(place) + 1 for place in range(len(scores))]
    said = texts or [f"text {place}" for place in range(len(scores))]
    row = {
        "id": name,
        "conversations": [{"from": "human", "value": question}],
        "candidates": [
            {"model": f"m{place}", "text": text, "unfinished": place in unfinished}
            for place, text in enumerate(said)
        ],
    }
    columns = zip(scores, own, strict=True)
    return judged_row(row, "gpt", [Verdict("e", {"clarity": s}, s, rank) for s, rank in columns], ())


def answers(row: Row) -> list[Any]:
    return distinct_answers(read_judged(row), Counter())


def places(pairs: Sequence[Any]) -> list[tuple[int, int]]:
    return [(better.place, worse.place) for better, worse in pairs]


def build(rows: Sequence[Row], **options: Any) -> tuple[list[tuple[str, Row]], dict[str, int]]:
    counts: Counter[str] = Counter()
    rules = Pairs(**{"splits": ALL, **options})
    return list(build_pairs(lambda: rows, rules, counts)), dict(counts)


# -- which answers meet ------------------------------------------------------------------------------------


def test_eight_ranked_answers_make_28_pairs() -> None:
    pairs = ordered_pairs(answers(judged([5, 5, 5, 4, 4, 3, 2, 1])), 0.0)
    assert len(pairs) == 28 and (0, 1) in places(pairs) and (1, 0) not in places(pairs)


def test_a_gap_leaves_out_what_lies_closer() -> None:
    own = answers(judged([5, 4, 4, 2]))
    assert places(ordered_pairs(own, 1)) == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    assert places(ordered_pairs(own, 2)) == [(0, 3), (1, 3), (2, 3)]
    decimal = answers(judged([4.3, 3.3]))  # 4.3 - 3.3 is 0.9999999999999996 in binary
    assert places(ordered_pairs(decimal, 1)) == [(0, 1)]


def test_a_rank_against_the_scores_makes_no_pair() -> None:
    own = answers(judged([3, 5, 1], ranks=[1, 2, 3]))
    assert places(ordered_pairs(own, 0.0)) == [(0, 2), (1, 2)]


def test_equal_texts_count_once_at_their_best_rank() -> None:
    """Else "same" would be both better and worse than what is ranked between."""
    counts: Counter[str] = Counter()
    row = judged([5, 4, 3, 2, 1], texts=["same", "other", " same\n", " ", "last"])
    own = distinct_answers(read_judged(row), counts)
    assert [answer.place for answer in own] == [0, 1, 4]
    assert counts == {"identical": 1, "empty": 1}


RECORDS = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from(["a", "b", "c", "d", "e", " a", ""])), min_size=2, max_size=8
)


@given(RECORDS, st.sampled_from([0.0, 1.0, 2.0]), st.booleans())
def test_pairs_are_strict_and_never_of_equal_texts(
    items: list[tuple[int, str]], gap: float, reverse: bool
) -> None:
    """Whatever is ranked how: ranks and scores agree, sides differ, and no pair is there both ways."""
    scores, texts = [score for score, _ in items], [text for _, text in items]
    ranks = list(range(len(items), 0, -1)) if reverse else None
    own = answers(judged(scores, texts=texts, ranks=ranks))
    pairs = ordered_pairs(own, gap)
    for better, worse in pairs:
        assert better.text and worse.text and better.text != worse.text
        assert better.verdict.rank < worse.verdict.rank
        assert better.verdict.overall - worse.verdict.overall >= gap
    sides = [(better.text, worse.text) for better, worse in pairs]
    assert len(set(sides)) == len(sides) and not {(w, b) for b, w in sides} & set(sides)
    if ranks is None and not gap:
        n = len({text.strip() for text in texts} - {""})
        assert len(pairs) == n * (n - 1) // 2


@given(RECORDS, st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans())
def test_a_ranking_holds_no_pair_that_ordered_pairs_would_not(
    items: list[tuple[int, str]], gap: float, reverse: bool
) -> None:
    scores, texts = [score for score, _ in items], [text for _, text in items]
    ranks = list(range(len(items), 0, -1)) if reverse else None
    own = answers(judged(scores, texts=texts, ranks=ranks))
    ranked = ranked_answers(own, gap)
    said = {(a.place, b.place) for (a, s), (b, t) in combinations(ranked, 2) if s > t}
    allowed = set(places(ordered_pairs(own, gap)))
    assert said <= allowed
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
    if gap <= 1 and not reverse:
        assert said == allowed  # whole scores: nothing is left out


def test_a_ranking_by_hand() -> None:
    own = answers(judged([5, 4, 4, 2]))
    assert [(a.place, s) for a, s in ranked_answers(own, 0.0)] == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.0)]
    assert [(a.place, s) for a, s in ranked_answers(own, 1.0)] == [(0, 5), (1, 4), (2, 4), (3, 2)]
    assert [(a.place, s) for a, s in ranked_answers(own, 2.0)] == [(0, 5), (3, 2)]


# -- the binarised pair ------------------------------------------------------------------------------------


def choose(row: Row, **options: Any) -> Any:
    return choose_pair(read_judged(row), answers(row), Pairs(**options))


def test_chosen_is_the_top_rank_and_a_tie_of_scores_goes_to_the_strongest_model() -> None:
    row = judged([4, 5, 5, 5, 1])
    assert choose(row)[0].place == 1
    assert choose(row, strongest=["m0", "m3", "m2"])[0].place == 3  # m0 is strongest and scores less
    assert choose(row, strongest=["m9"])[0].place == 1


def test_rejected_is_drawn_from_all_that_are_worse() -> None:
    drawn = Counter(choose(judged([5, 4, 3, 2], name=f"x,{n}"))[1].place for n in range(600))
    assert set(drawn) == {1, 2, 3} and min(drawn.values()) > 150  # 200 expected, standard deviation 12
    far = {choose(judged([5, 4, 3, 2], name=f"x,{n}"), min_gap=2.0)[1].place for n in range(50)}
    assert far == {2, 3}
    row = judged([5, 4, 3, 2])
    assert len({choose(row, seed=seed)[1].place for seed in range(50)}) == 3
    assert choose(row, seed=7) == choose(row, seed=7)


def test_an_unfinished_answer_may_be_rejected_and_is_never_chosen() -> None:
    chosen, rejected = choose(judged([5, 4, 3], unfinished=[0, 2]))
    assert (chosen.place, rejected.place) == (1, 2)
    assert choose(judged([5, 4], unfinished=[0, 1])) == "no_chosen"


def test_why_a_record_gives_no_pair_is_counted() -> None:
    rows = [
        judged([5, 4], texts=["a", "a"]),
        judged([5, 5], name="x,2"),
        judged([5, 3], name="x,3"),
        judged([5, 3], name="x,4", unfinished=[0, 1]),
    ]
    found, counts = build(rows, min_gap=1.0)
    assert [row["prompt_id"] for _, row in found] == ["x,3"]
    assert counts == {
        "prompts": 4,
        "without": 3,
        "no_rejected": 2,
        "no_chosen": 1,
        "identical": 1,
        "pairs": 1,
        "train": 1,
        "dev": 0,
        "test": 0,
    }


# -- rows and their readers --------------------------------------------------------------------------------


def read(directory: Path, rows: Sequence[Row]) -> list[RankedAnswers]:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_preferences(PreferenceSource(uri=str(path)), Counter()))


def test_a_pair_has_ultramedicals_columns_and_comes_back_as_it_was(tmp_path: Path) -> None:
    ((_, row),), _ = build([judged([3, 5], texts=["bad", "good\n"])])
    assert set(row) == COLUMNS
    assert row["metadata"] == {
        "models": ["m1", "m0"],
        "scores": [5.0, 3.0],
        "ranks": [1, 2],
        "places": [1, 0],
        "judge": "gpt",
        "pair_id": "MedQA,1#1-0",
    }
    messages = (Message(role="user", content="Why?"),)
    assert read(tmp_path, [row]) == [RankedAnswers("MedQA,1", messages, ("good", "bad"), (1.0, 0.0), "MedQA")]
    assert [draft.answers for draft in read_drafts(NotedRow(row))] == [["good", "bad"]]


def test_all_pairs_come_back_each_once(tmp_path: Path) -> None:
    found, counts = build([judged([5, 4, 3, 2])], form="pairs")
    back = read(tmp_path, [row for _, row in found])
    assert counts["pairs"] == len(back) == len({one.answers for one in back}) == 6
    assert [one.prompt_id for one in back[:3]] == ["MedQA,1", "MedQA,1~2", "MedQA,1~3"]


def test_a_ranking_comes_back_with_scores_and_cuts_for_the_reward_stage(tmp_path: Path) -> None:
    ((_, row),), counts = build([judged([3, 5, 4, 4], unfinished=[2])], form="ranked")
    assert counts["pairs"] == 6 and set(row) == COLUMNS - {"chosen", "rejected"} | {"completions", "scores"}
    (back,) = read(tmp_path, [row])
    assert back.answers == ("text 1", "text 2", "text 3", "text 0") and back.scores == (3.0, 2.0, 1.0, 0.0)
    assert (back.desirable, back.cut, back.kind) == (1, frozenset({1}), "MedQA")
    ((_, row),), counts = build([judged([3, 5, 4, 4])], form="ranked", min_gap=1.0)
    (back,) = read(tmp_path, [row])
    assert counts["pairs"] == 5 and back.scores == (5.0, 4.0, 4.0, 3.0)


@pytest.mark.parametrize("form", ["binary", "pairs", "ranked"])
def test_rows_fit_one_parquet_table_and_come_back_from_it(tmp_path: Path, form: str) -> None:
    rows = [
        row
        for _, row in build([judged([5, 4, 1]), judged([2, 5], name="x,2", question="Who?")], form=form)[0]
    ]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    back = list(read_preferences(PreferenceSource(uri=str(path)), Counter()))
    assert back == read(tmp_path, rows)


# -- splits ------------------------------------------------------------------------------------------------


def key(row: Row) -> str:
    return prompt_key([Message(role="user", content=row["prompt"])])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(2, 4)), min_size=1, max_size=25),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 5),
)
def test_no_prompt_is_in_two_splits_in_any_form(
    items: list[tuple[int, int]], dev: int, test: int, seed: int
) -> None:
    """Prompts that differ in case and spaces alone are one; every form splits alike; the order doesn't matter."""
    rows = [
        judged(range(n, 0, -1), name=f"x,{i}", question=f"{'Why' if i % 2 else ' why'} {prompt}?")
        for i, (prompt, n) in enumerate(items)
    ]
    prompts = len({prompt for prompt, _ in items})
    sizes = SplitSizes(dev=dev, test=test)
    if dev + test >= prompts:
        with pytest.raises(ValueError, match=rf"splits\.dev={dev} [a-z]+ splits\.test={test} "):
            build(rows, splits=sizes)
        return
    splits: dict[str, set[str]] = defaultdict(set)
    for form in ("binary", "pairs", "ranked"):
        for own in (rows, rows[::-1]):
            for split, row in build(own, splits=sizes, seed=seed, form=form)[0]:
                splits[key(row)].add(split)
    assert all(len(found) == 1 for found in splits.values())
    sizes_found = Counter(found.copy().pop() for found in splits.values())
    assert (sizes_found["dev"], sizes_found["test"]) == (dev, test)


def test_a_record_without_a_pair_keeps_its_place_in_the_splits() -> None:
    """Else a stricter form would move a prompt from test to training, and the stages would leak."""
    rows = [judged([5, 4 + n % 2], name=f"x,{n}", question=f"Why {n}?") for n in range(60)]
    sizes = SplitSizes(dev=10, test=20)
    loose = {key(row): split for split, row in build(rows, splits=sizes)[0]}
    strict = {key(row): split for split, row in build(rows, splits=sizes, min_gap=1.0)[0]}
    assert len(loose) == 60 and len(strict) == 30 and strict.items() <= loose.items()


def test_splits_differ_by_seed_and_dev_is_not_the_easier_half_of_the_draw() -> None:
    keys = [f"{n:016x}" for n in range(400)]
    one, other = (choose_splits(keys, SplitSizes(dev=100, test=100), seed) for seed in (1, 2))
    assert Counter(one.values()) == {"dev": 100, "test": 100} and one != other


def test_memory_holds_no_rows() -> None:
    """Rows are made as they are asked for: the first ones before the last ones are read."""
    reads = 0

    def rows() -> Any:
        nonlocal reads
        for n in range(50):
            reads += 1
            yield judged([5, 4], name=f"x,{n}", question=f"Why {n}?")

    stream = build_pairs(rows, Pairs(splits=ALL), Counter())
    next(stream)
    assert reads == 51  # one pass for the splits, and one row of the second


def test_a_strong_model_that_no_candidate_is_of_is_named(caplog: pytest.LogCaptureFixture) -> None:
    build([judged([5, 4])], strongest=["m1", "gpt-4"])
    assert re.search(r"strongest: .*'gpt-4'; .*\['m0', 'm1'\]", caplog.text)
    with pytest.raises(ValueError, match=r"strongest\n.*'a'"):
        Pairs(strongest=["a", "a"])
