"""The report of a data set: its table, distributions, models and topics; numbers by hand."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.config.factory import Report
from ultramed_rl.data.factory.hashing import HashedEmbedder
from ultramed_rl.data.factory.judgements import Order, Verdict, judged_row, model_table
from ultramed_rl.data.factory.report.build import (
    LENGTH_STARTS,
    MOST_SHOWN,
    ModelView,
    bin_column,
    bin_labels,
    build_report,
    distribution_figure,
    win_rate_figure,
)
from ultramed_rl.data.factory.report.table import (
    KIND_COLUMNS,
    MOST_NAMES,
    OTHERS,
    UNNAMED,
    SetTable,
    Spread,
    count_sets,
    gather_facts,
    read_all_facts,
    read_facts,
    render_table,
    set_name,
)
from ultramed_rl.data.factory.report.topics import (
    WORDLESS,
    Point,
    PointSample,
    cluster_count,
    label_clusters,
    map_topics,
    topic_figure,
)
from ultramed_rl.tracking.tables import table_cells

ATTACK = "</script><script>alert(1)</script>"
MCQ = "Which one?\n\nA. Vitamin A\nB. Vitamin B"


def record(name: str, question: str, answer: str | None = None, **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}]
    turns += [{"from": "gpt", "value": answer}] if answer else []
    return {"id": name, "type": "Open-End", "conversations": turns, "answer": None, **more}


ROWS = [
    record("MedQA,1", MCQ, "So, B.", type="Exam", answer_key=0)
    | {"answer": "B", "difficulty": 7.0},  # 8 words
    record("MedQA,2", "What is it?", score="This question would be rated as a 9."),  # 3 words
    record("MedQuad,1", "one two three four", "a b c", difficulty=None, score="It is hard."),
    record("no-comma", "one two", "a", type="Literature", score=5),
]


def once(rows: Sequence[Any]) -> Iterator[Any]:
    """A stream that can be read one time only."""
    yield from rows


def table_of(rows: Iterable[Any], originals: dict[str, int] | None = None) -> SetTable:
    misfits: Counter[str] = Counter()
    return count_sets(gather_facts(read_all_facts(rows, misfits)), misfits, originals)


def bins(rows: Iterable[Any], column: str = "words") -> dict[str, list[int]]:
    counts = bin_column(gather_facts(read_all_facts(rows, Counter())), column)
    return {name: own.tolist() for name, own in counts.items()}


# -- the table ---------------------------------------------------------------------------------------------


def test_a_set_is_what_stands_before_the_comma_or_else_the_type() -> None:
    assert set_name({"id": "TextBookQA,Anatomy_Gray_28", "type": "Exam"}) == "TextBookQA"
    assert set_name({"id": "a,b,c"}) == "a" and set_name({"id": ",b", "type": "Exam"}) == "Exam"
    assert set_name({"id": "17", "type": "Exam"}) == "Exam" and set_name({}) == UNNAMED
    assert set_name({"id": 17, "type": ["x"]}) == "['x']"


def test_means_and_deviations_by_set_are_those_by_hand() -> None:
    table = table_of(once(ROWS))
    literature, medqa, medquad = table.sets
    assert [row.name for row in table.sets] == ["Literature", "MedQA", "MedQuad"]
    # Words 8 and 3: mean 5.5, squares 2 x 6.25, over n - 1 = 1. Scores 7 and 9: mean 8, squares 2.
    assert medqa.length == Spread(2, 5.5, pytest.approx(math.sqrt(12.5)))
    assert medqa.score == Spread(2, 8.0, pytest.approx(math.sqrt(2)))
    assert medquad.length == Spread(1, 4.0, None) and medquad.score == Spread(0, None, None)
    assert literature.score == Spread(1, 5.0, None)
    # 8, 3, 4, 2: mean 4.25, squares 14.0625 + 1.5625 + 0.0625 + 5.0625 = 20.75; scores 7, 9, 5.
    assert table.total.length == Spread(4, 4.25, pytest.approx(math.sqrt(20.75 / 3)))
    assert table.total.score == Spread(3, 7.0, pytest.approx(2.0))
    assert (medqa.retained, medqa.answered, medqa.choices) == (2, 1, 1)
    assert table_cells((*table.kinds, table.total), KIND_COLUMNS) == [
        ["Exam", "1", "1", "1", "0"],
        ["Literature", "1", "1", "0", "0"],
        ["Open-End", "2", "1", "0", "1"],
        ["Total", "4", "3", "1", "1"],
    ]


def test_originals_are_shown_where_known_and_summed_only_if_all_are() -> None:
    part = table_of(ROWS, {"MedQA": 10_200, "Gone": 30})
    assert {row.name: row.original for row in part.sets} == {
        "Gone": 30,
        "Literature": None,
        "MedQA": 10_200,
        "MedQuad": None,
    }
    assert part.sets[0].retained == 0 and part.total.original is None
    assert table_of(ROWS, {"MedQA": 10, "MedQuad": 5, "Literature": 1}).total.original == 16


def test_the_rendered_table_has_the_papers_columns_and_survives_a_bar_in_a_name() -> None:
    rows = [*ROWS[:2], record("a|<b>,1", "one two"), 7, None, {"id": "x"}, record("y", "half \ud800")]
    table = table_of(rows, {"MedQA": 10_200})
    lines = render_table(table).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        *("Set", "Original", "Instruction length", "Score", "Retained")
    ]
    assert lines[2].split() == [
        "|",
        "MedQA",
        "|",
        "10,200",
        "|",
        "5.50",
        "±",
        "3.54",
        "|",
        "8.00",
        "±",
        "1.41",
        "|",
        "2",
        "|",
    ]
    assert "a\\|\\<b>" in lines[3] and len({len(line) for line in lines[:5]}) == 1
    assert dict(table.misfits) == {"column": 1, "row": 2, "turn": 1}
    assert lines[-1].endswith(": 4 (column 1, row 2, turn 1).")
    assert lines[4].split() == [
        "|",
        "Total",
        *["|", "–", "|", "4.33", "±", "3.21", "|", "8.00", "±", "1.41", "|", "3", "|"],
    ]


def test_an_exam_without_a_key_is_a_row_but_no_multiple_choice() -> None:
    assert not read_facts(record("x,1", MCQ, type="Exam")).choice
    assert not read_facts(record("x,1", MCQ) | {"answer": "C"}).choice
    assert read_facts(record("x,1", MCQ) | {"answer": " A "}).choice


def test_a_new_prefix_in_every_row_does_not_grow_the_table() -> None:
    table = table_of(record(f"s{n},1", "a b", type=f"t{n}") for n in range(MOST_NAMES + 50))
    assert len(table.sets) == MOST_NAMES + 1 == len(table.kinds)
    assert {row.name: row.retained for row in table.sets}[OTHERS] == 50 and table.total.retained == 150


@given(st.lists(st.integers(1, 400), min_size=2, max_size=40))
@settings(deadline=None)
def test_one_pass_gives_the_moments_of_all_numbers(lengths: list[int]) -> None:
    with patch("ultramed_rl.data.factory.report.table._BLOCK", 7):
        found = table_of(record("a,1", "w " * n) for n in lengths).total.length
    assert found.mean == pytest.approx(np.mean(lengths))
    assert found.sd == pytest.approx(np.std(lengths, ddof=1), abs=1e-9)


# -- distributions -----------------------------------------------------------------------------------------


def test_every_row_lands_in_the_bin_that_names_its_length() -> None:
    labels = bin_labels(LENGTH_STARTS)
    held = {
        name: {labels[n]: count for n, count in enumerate(counts) if count}
        for name, counts in bins(once(ROWS)).items()
    }
    assert held == {"Literature": {"2": 1}, "MedQA": {"8-9": 1, "3": 1}, "MedQuad": {"4": 1}}
    answers = bins(ROWS, "answer_words")
    assert {name: sum(counts) for name, counts in answers.items()} == {
        "Literature": 1,
        "MedQA": 1,
        "MedQuad": 1,
    }
    scores = bins(ROWS, "score")
    assert scores["MedQA"] == [0, 0, 0, 0, 0, 0, 1, 0, 1, 0] and "MedQuad" not in scores


def test_bins_meet_and_the_last_one_is_open() -> None:
    labels = bin_labels(LENGTH_STARTS)
    assert labels[:8] == ("1", "2", "3", "4", "5", "6-7", "8-9", "10-12") and labels[-1] == "16384 or more"
    assert bin_labels(tuple(range(1, 11)))[-1] == "10"
    assert bins([record("a,1", "w " * 20_000), 3])["a"][-1] == 1


@pytest.mark.parametrize(("score", "place"), [(1, 0), (6.49, 5), (6.5, 6), (10, 9)])
def test_scores_are_rounded_a_half_up(score: float, place: int) -> None:
    counts = bins([record("a,1", "q", difficulty=score)], "score")["a"]
    assert counts[place] == 1 == sum(counts)


def test_the_figure_shows_shares_and_names_its_largest_sets() -> None:
    rows = [record("a,1", "w"), record("a,2", "w"), record("a,3", "w w w"), record("<b>,1", "w w")]
    figure = distribution_figure(bin_column(gather_facts(read_all_facts(rows, Counter())), "words"), "words")
    assert [trace.y for trace in figure.data] == [(0, 1, 0), pytest.approx((2 / 3, 0, 1 / 3))]
    assert [note.text for note in figure.layout.annotations] == ["&lt;b&gt; (1)", "a (3)"]
    assert [tuple(one) for one in figure.data[1].customdata] == [("1", 2), ("2", 0), ("3", 1)]
    many = gather_facts(read_all_facts((record(f"s{n},1", "w", difficulty=3) for n in range(60)), Counter()))
    assert bin_column(many, "answer_words") == {}
    for column, places in (("words", 1), ("score", 10)):
        bars = distribution_figure(bin_column(many, column), column).data
        assert len(bars) == MOST_SHOWN and len(bars[0].x) == places


# -- models ------------------------------------------------------------------------------------------------


def judged(models: Sequence[str], ranks: Sequence[int], orders: bool = True) -> dict[str, Any]:
    """Scores 6 - rank; shown in the order of `models`."""
    candidates = [{"model": model, "text": f"by {model}", "unfinished": False} for model in models]
    ranking = tuple(sorted(range(len(ranks)), key=lambda place: ranks[place]))
    order = [Order(tuple(range(len(ranks))), ranking)] if orders else []
    verdicts = [Verdict("", {}, 6.0 - rank, rank) for rank in ranks]
    return judged_row({**record("x,1", "Why?"), "candidates": candidates}, "j", verdicts, order)


JUDGED = [
    judged("abc", (1, 2, 3)),
    judged("abc", (1, 3, 2)),
    judged("ab", (2, 1)),
    judged(["d<i>"], (1,), False),
]


def test_a_win_rate_cell_holds_its_number_and_is_blank_where_models_never_met() -> None:
    table = model_table(JUDGED)
    figure = win_rate_figure(table)
    heat = figure.data[0]
    assert [tuple(row) for row in heat.z] == [
        (None,) * 4,
        (None, None, pytest.approx(2 / 3), 1),
        (None, pytest.approx(1 / 3), None, 0.5),
        (None, 0, 0.5, None),
    ]
    assert list(heat.text[1]) == ["", "", "0.67", "1.00"]
    assert figure.layout.yaxis.ticktext == ("1. d&lt;i&gt;", "2. a", "3. b", "4. c")


def test_lines_carry_mean_ranks_and_scores() -> None:
    view = ModelView.of(model_table(JUDGED))
    assert [row[2:4] for row in view.rows] == [
        pytest.approx(means) for means in ((1, 5), (4 / 3, 14 / 3), (2, 4), (2.5, 3.5))
    ]
    assert view.rows[1] == (
        "a",
        3,
        *(pytest.approx(n) for n in (4 / 3, 14 / 3)),
        None,
        None,
        pytest.approx(2 / 3),
        1,
    )
    assert view.beaten == ["beats 1", "beats 2", "beats 3", "beats 4"]


NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?%?")


def places_of(folder: Path, rows: Sequence[Any]) -> list[str]:
    """The paragraphs of the report's section on the places of answers."""
    build_report(ROWS, folder, HashedEmbedder(), lambda: rows, Report())
    page = (folder / "report.html").read_text(encoding="utf-8")
    section = page.partition("<h2>Places</h2>")[2].partition("</section>")[0]
    return [" ".join(text.split()) for text in re.findall("(?s)<p>(.*?)</p>", section)]


def test_what_places_did_is_said_in_sentences(tmp_path: Path) -> None:
    # Shown first and best in 2 of 3; by chance 1/3 + 1/3 + 1/2. Variance 2 x 2/9 + 1/4, its root 0.833.
    lines = places_of(tmp_path, JUDGED)
    verdict = lines[1].rpartition(": ")[2]
    assert [NUMBER.findall(line) for line in lines] == [["3", "0"], ["66.7%", "38.9%", "+1.0"]]
    (unseen,) = places_of(tmp_path, JUDGED[3:])
    assert not NUMBER.findall(unseen)
    biased = places_of(tmp_path, [judged("ab", (1, 2))] * 20)[1]
    assert NUMBER.findall(biased)[-1] == "+4.5" and biased.rpartition(": ")[2] != verdict


# -- topics ------------------------------------------------------------------------------------------------

HEART = [f"The heart and its rhythm, beat {n}: atrial fibrillation of the heart" for n in range(20)]
VACCINE = [f"Which vaccine dose {n} protects children? A vaccine schedule" for n in range(15)]


def sample_of(*texts: str, most: int = 2000, seed: int = 0) -> PointSample:
    sample = PointSample(most, seed)
    for number, text in enumerate(texts):
        sample.add(Point(f"id{number}", "set", text))
    return sample


def test_the_sample_is_seeded_in_order_and_all_texts_where_they_fit() -> None:
    texts = [*map(str, range(100))]
    sample = sample_of(*texts, most=10, seed=3)
    places = [int(point.text) for point in sample.points]
    assert sample.seen == 100 and len(set(places)) == 10 and places == sorted(places)
    assert (
        sample_of(*texts, most=10, seed=3).points
        == sample.points
        != sample_of(*texts, most=10, seed=4).points
    )
    assert [point.text for point in sample_of(*texts, most=100).points] == texts


def test_every_text_of_the_stream_is_as_likely_to_be_sampled() -> None:
    texts = [*map(str, range(40))]
    drawn = (sample_of(*texts, most=10, seed=seed) for seed in range(2000))
    counts = Counter(int(point.text) for sample in drawn for point in sample.points)
    # 500 expected of each, standard deviation sqrt(2000 x 1/4 x 3/4) = 19.4; five of them.
    assert len(counts) == 40 and all(abs(count - 500) < 97 for count in counts.values())


def test_two_subjects_are_two_clusters_named_by_their_own_words() -> None:
    found = map_topics(sample_of(*HEART, *VACCINE), HashedEmbedder(), seed=0, clusters=2)
    assert found.clusters.tolist() == [0] * 20 + [1] * 15, "the larger cluster is the first"
    assert found.labels[0].split(", ")[0] in {"atrial", "beat", "fibrillation", "heart", "rhythm"}
    assert found.labels[1] == "children, dose, protects"
    assert found.places.shape == (35, 2) and np.isfinite(found.places).all()
    again = map_topics(sample_of(*HEART, *VACCINE), HashedEmbedder(), seed=0, clusters=2)
    assert np.array_equal(found.places, again.places) and found.labels == again.labels


@pytest.mark.parametrize(
    "texts", [["a b"], ["x", "y"], ["same"] * 30, ["a", "b", "c", "d", "e"], [*"aaaaaaaaaaab"]]
)
def test_small_and_equal_sets_have_a_map(texts: list[str]) -> None:
    found = map_topics(sample_of(*texts), HashedEmbedder(), seed=0, clusters=3)
    assert found.places.shape == (len(texts), 2) and np.isfinite(found.places).all()
    assert len(found.labels) == min(3, len(set(texts))) == len(set(found.clusters.tolist()))
    assert sum(len(trace.x) for trace in topic_figure(found).data) == len(texts)


def test_a_map_says_what_it_cannot_be_made_of() -> None:
    for texts, embed, clusters, words in (
        ([], HashedEmbedder(), None, r"\b0 .*None .*\b1\b"),
        (["a"], HashedEmbedder(), 0, r"\b1 .*\b0 .*\b1\b"),
        (["a", "b"], lambda texts: np.ones((1, 4)), None, r"^embed .*\(1, 4\) [a-z]+ 2 "),
        (["a"], lambda texts: np.full((1, 4), np.nan), None, r"^embed .*\(1, 4\) [a-z]+ 1 "),
    ):
        with pytest.raises(ValueError, match=words):
            map_topics(sample_of(*texts), embed, seed=0, clusters=clusters)


def test_the_number_of_clusters_is_half_the_root_of_the_texts() -> None:
    assert [cluster_count(n) for n in (1, 2, 50, 100, 400, 5000)] == [1, 1, 4, 5, 10, 12]


def test_labels_leave_out_stop_words_plurals_and_what_clusters_share() -> None:
    texts = [
        "the patient has a stroke",
        "patient: strokes and a stroke, CT",
        "patient with CT",
        "patient, gout",
        "gout",
    ]
    # Stroke and CT are in 2/3 of the first; patient in all of it, and in half of the second.
    first, second = label_clusters(texts, np.array([0, 0, 0, 1, 1]), words=2)
    assert first == "ct, stroke" and second == "gout, patient"
    assert label_clusters(["of the", "and"], np.array([0, 0])) == (WORDLESS,)
    assert label_clusters(["COVID-19 vaccine", "covid-19"], np.array([0, 0]), words=1) == ("covid-19",)


def test_hover_holds_the_first_120_characters_as_text_not_as_tags() -> None:
    text = "<b>&" + "x" * 200
    (trace,) = topic_figure(map_topics(sample_of(text), HashedEmbedder(), seed=0)).data
    shown = trace.text[0].split("<br>", 1)[1].replace("<br>", "")
    assert shown == "&lt;b&gt;&amp;" + "x" * 115 + "…"


# -- the whole report --------------------------------------------------------------------------------------


def test_the_report_is_written_with_every_part_and_no_raw_text(tmp_path: Path) -> None:
    rows = [*ROWS, record(f"{ATTACK},1", f"{ATTACK} What? \x00", "a"), record("y", "half \ud800"), None]
    config = Report(originals={"MedQA": 9})
    folder = tmp_path / "new" / "report"
    build_report(once(rows), folder, HashedEmbedder(), lambda: once(JUDGED), config, f"T {ATTACK} \ud800")
    table = json.loads((folder / "table.json").read_text())
    assert table["total"]["retained"] == 5 and table["misfits"] == {"row": 1, "turn": 1}
    assert table["sets"][2]["name"] == "MedQA" and table["sets"][2]["length"]["mean"] == 5.5
    assert json.loads((folder / "models.json").read_text())["models"]["models"][1] == "a"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert (
        "<script>alert" not in page
        and "\x00" not in page
        and page.count("<script") - page.count("\\<script") >= 3
    )
    assert "&lt;script&gt;alert(1)" in page and "Mean rank" in page and "5.50 ± 3.54" in page
    assert "Sets</h2>" not in (folder / "topics.html").read_text(encoding="utf-8")
    assert not list(folder.glob(".tmp-*"))


def test_a_report_of_nothing_says_so_and_removes_the_pictures_of_an_earlier_one(tmp_path: Path) -> None:
    build_report(ROWS, tmp_path, HashedEmbedder(), lambda: JUDGED, Report())
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count('class="figure"') == 5
    assert {"topics.html", "models.json"} <= {path.name for path in tmp_path.iterdir()}
    build_report([None], tmp_path, HashedEmbedder(), lambda: [], Report())
    assert {path.name for path in tmp_path.iterdir()} == {"table.json", "table.md", "report.html"}
    assert 'class="figure"' not in (tmp_path / "report.html").read_text(encoding="utf-8")
