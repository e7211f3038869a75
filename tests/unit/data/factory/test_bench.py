"""A reward bench out of test pairs: which subset a pair fits, sizes, people's labels, and its reader."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.config.factory_steps import Bench, BenchSizes
from ultramed_rl.config.stages import BenchmarkPairs
from ultramed_rl.data.factory.bench import (
    SHEET_COLUMNS,
    SUBSETS,
    build_bench,
    pair_kinds,
    read_labels,
    sheet_rows,
)
from ultramed_rl.data.factory.step import Row
from ultramed_rl.data.preferences import read_pairs


def pair(
    scores: tuple[float, float] = (5, 2),
    ranks: tuple[int, int] = (1, 4),
    words: tuple[int, int] = (4, 4),
    *,
    prompt: str = "Why?",
    number: int = 0,
) -> dict[str, Any]:
    turns = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": " ".join([side] * count)}]
        for side, count in zip(("good", "bad"), words, strict=True)
    ]
    return {
        "prompt_id": f"MedQA,{prompt}",
        "prompt": prompt,
        "chosen": turns[0],
        "rejected": turns[1],
        "metadata": {"scores": list(scores), "ranks": list(ranks), "pair_id": f"{prompt}#{number}"},
        "label_type": None,
        "feedback": None,
    }


def build(
    pairs: list[Row], labels: dict[str, Any] | None = None, **options: Any
) -> tuple[list[Row], dict[str, int]]:
    counts: Counter[str] = Counter()
    return build_bench(pairs, Bench(**options), counts, labels), dict(counts)


@pytest.mark.parametrize(
    ("scores", "ranks", "words", "kinds"),
    [
        ((5, 3), (1, 3), (4, 4), ["Easy"]),
        ((5, 3), (1, 2), (4, 4), []),  # far apart, but next ranks
        ((5, 3.5), (1, 5), (4, 4), []),
        ((4.3, 3.3), (2, 3), (4, 4), ["Hard"]),
        ((4, 4), (2, 3), (4, 4), ["Hard"]),
        ((4, 4), (2, 4), (4, 4), []),
        ((5, 2), (1, 4), (4, 6), ["Length", "Easy"]),
        ((5, 4), (1, 2), (4, 6), ["Length", "Hard"]),
        ((5, 3.5), (1, 5), (4, 5), []),
        ((5, 3.5), (1, 5), (6, 4), []),  # the chosen one is longer
    ],
)
def test_which_subsets_a_pair_fits(
    scores: tuple[float, float], ranks: tuple[int, int], words: tuple[int, int], kinds: list[str]
) -> None:
    assert pair_kinds(pair(scores, ranks, words), Bench()) == kinds


def test_a_pair_goes_to_the_rarer_subset_and_to_the_next_where_that_is_full() -> None:
    long = [pair(words=(4, 9), prompt=f"p{n}") for n in range(3)]
    rows, counts = build(long, sizes=BenchSizes(easy=9, hard=0, length=1, human=0))
    assert [row["subset"] for row in rows] == ["Length", "Easy", "Easy"]
    assert len({row["id"] for row in rows}) == 3
    assert counts == {
        "pairs": 3,
        "unfit": 0,
        "overruled": 0,
        "unknown_labels": 0,
        "Length_eligible": 3,
        "Easy_eligible": 3,
        **{"Human": 0, "Length": 1, "Hard": 0, "Easy": 2},
        **{"Human_short": 0, "Length_short": 0, "Hard_short": 0, "Easy_short": 7},
    }


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.integers(0, 4), st.integers(1, 6), st.sampled_from([2, 4, 9]), st.booleans()
        ),
        min_size=1,
        max_size=40,
    ),
    st.integers(1, 3),
)
def test_sizes_and_prompts_hold_and_each_pair_is_where_it_fits(
    items: list[tuple[int, int, int, int, bool]], per_prompt: int
) -> None:
    pairs = [
        pair((5, 5 - gap), (1, 1 + ranks), (4, words), prompt=f"p{prompt}", number=n)
        for n, (prompt, gap, ranks, words, _) in enumerate(items)
    ]
    labels = {p["metadata"]["pair_id"]: "rejected" for p, item in zip(pairs, items, strict=True) if item[4]}
    options = {"sizes": BenchSizes(easy=3, hard=2, length=2, human=1), "per_prompt": per_prompt}
    try:
        rows, counts = build(pairs, labels, **options)
    except ValueError:
        assert not labels and not any(pair_kinds(p, Bench()) for p in pairs)
        return
    sizes = {"Easy": 3, "Hard": 2, "Length": 2, "Human": 1}
    found = Counter(row["subset"] for row in rows)
    assert all(found[s] == counts[s] == sizes[s] - counts[f"{s}_short"] <= sizes[s] for s in SUBSETS)
    assert max(Counter(row["prompt"] for row in rows).values()) <= per_prompt
    assert len({row["id"] for row in rows}) == len(rows)
    original = {p["metadata"]["pair_id"]: p for p in pairs}
    for row in rows:
        own = original[row["id"]]
        if row["subset"] == "Human":
            assert row["chosen"] == own["rejected"] and row["rejected"] == own["chosen"]
        else:
            assert row["subset"] in pair_kinds(own, Bench()) and row["chosen"] == own["chosen"]
    again, _ = build(pairs[::-1], labels, **options)
    assert again == rows  # the draw goes by the pairs, not by their order


def test_the_bench_is_read_by_reward_bench(tmp_path: Path) -> None:
    rows, _ = build([pair(prompt="p"), pair((4, 4), (1, 2), prompt="q")], {})
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts: Counter[str] = Counter()
    found = [
        (p.kind, p.messages[0]["content"], p.answers[0][:4])
        for p in read_pairs(BenchmarkPairs(uri=str(path)), counts)
    ]
    assert found == [("Hard", "q", "good"), ("Easy", "p", "good")] and counts["misfit"] == 0


def test_what_is_no_pair_or_fits_nothing_is_refused_in_one_line() -> None:
    for pairs, words in (
        ([{**pair(), "metadata": None}], r"\bNone\b.*pairs\.form=pairs"),
        ([pair(), pair()], r"^pair 'Why\?#0': "),
        ([pair((5, 3), (1, 2))], r"^bench: .*\b1 .*\beasy_gap\b.*\bhard_gap\b"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            build(pairs)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"hard_gap=2\.0: .*easy_gap="):
        Bench(hard_gap=2.0)


# -- labels ------------------------------------------------------------------------------------------------


def labels(directory: Path, *rows: tuple[str, str], header: str = "pair_id,preferred") -> Path:
    path = directory / "labels.csv"
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


def test_a_majority_decides_and_conflicts_are_counted(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    rows = [
        *[("a", "chosen"), ("a", "rejected"), ("a", " Chosen ")],
        *[("b", "rejected"), ("b", "tie")],
        *[("c", "chosen"), ("c", "rejected")],
        *[("d", "tie")],
        *[("e", "rejected")],
    ]
    found = read_labels(labels(tmp_path, *rows), 0, counts)
    assert found == {"a": "chosen", "b": "rejected", "e": "rejected"}
    assert counts == {"labels": 9, "labelled": 5, "conflicts": 3, "undecided": 2}


def test_the_sheet_hides_the_judges_choice_and_its_labels_find_the_side_again(tmp_path: Path) -> None:
    pairs = [pair(prompt=f"p{n}") for n in range(200)]
    sheet = list(sheet_rows(pairs, seed=3))
    assert set(sheet[0]) == set(SHEET_COLUMNS)
    good_first = sum(row["first"].startswith("good") for row in sheet)
    assert 65 < good_first < 135  # 100 expected, standard deviation 7
    path = tmp_path / "labels.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["pair_id", "preferred", "by"])
        for row in sheet:  # someone who always prefers the judge's choice
            writer.writerow([row["pair_id"], "first" if row["first"].startswith("good") else "second", "dr"])
    assert set(read_labels(path, 3, Counter()).values()) == {"chosen"}
    assert set(read_labels(path, 4, Counter()).values()) == {"chosen", "rejected"}


def test_people_overrule_the_judge_and_unknown_labels_are_counted() -> None:
    rows, counts = build(
        [pair(prompt="p"), pair(prompt="q")], {"p#0": "rejected", "q#0": "chosen", "z": "chosen"}
    )
    found = {row["id"]: row for row in rows}
    assert [row["subset"] for row in rows] == ["Human", "Human"]
    assert found["p#0"]["chosen"][1]["content"] == "bad bad bad bad" and found["p#0"]["metadata"]["overruled"]
    assert found["q#0"]["chosen"][1]["content"] == "good good good good"
    assert (counts["overruled"], counts["unknown_labels"], counts["Human"]) == (1, 1, 2)


@pytest.mark.parametrize(
    ("rows", "header", "says"),
    [
        ([("a", "left")], "pair_id,preferred", r" 1: pair_id='a', preferred='left'; .*\bfirst, second\b"),
        ([("", "tie")], "pair_id,preferred", " 1: pair_id=''"),
        ([("a", "")], "pair_id,preferred", " 1: pair_id='a', preferred=''"),
        ([("a",)], "pair_id,preferred", " 2: 1 cells .* 2 "),
        ([("a", "tie")], "id,label", r"\bid, label; .*\bpair_id\b.*\bpreferred$"),
    ],
)
def test_labels_that_cannot_be_read_say_where(
    tmp_path: Path, rows: list[Any], header: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        read_labels(labels(tmp_path, *rows, header=header), 0, Counter())


def test_a_missing_file_of_labels_has_a_fix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv'; check"):
        read_labels(tmp_path / "none.csv", 0, Counter())
