"""BioASQ's names: what is read from an answer, and scores worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.evaluation.reading.text import (
    normalise_name,
    read_names,
    score_factoid,
    score_list,
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The snippets name one gene.\nAnswer: BRCA1", ("BRCA1",)),
        ("Answer: BRCA1; BRCA2; TP53", ("BRCA1", "BRCA2", "TP53")),
        ("**Answer:** the p53 protein.", ("p53 protein",)),
        ("**Answer: Dystrophin**", ("Dystrophin",)),
        ("Answer: \"imatinib\"; 'nilotinib'; “dasatinib”.", ("imatinib", "nilotinib", "dasatinib")),
        ("Answer:\n- Imatinib\n- Nilotinib\n\nThese inhibit BCR-ABL.", ("Imatinib", "Nilotinib")),
        ("Answer:\n\n1. **Imatinib**\n2. Nilotinib\n", ("Imatinib", "Nilotinib")),
        ("Answer:\n* an ACE inhibitor\n* the sartans", ("ACE inhibitor", "sartans")),
        ("## Final Answer\nDystrophin", ("Dystrophin",)),
        ("Answer:\nDystrophin\nIt is the largest gene.", ("Dystrophin",)),
        ("The final answer is: TNF-α", ("TNF-α",)),
        ("Answer: BRCA1\nOn reflection:\nAnswer: BRCA2", ("BRCA2",)),
        ("Answer: 1,25-dihydroxyvitamin D", ("1,25-dihydroxyvitamin D",)),
        ("Answer: fever, headache and rash", ("fever, headache and rash",)),
        ("Answer: imatinib; Imatinib; IMATINIB.", ("imatinib",)),
        ("Answer: imatinib; ; ;", ("imatinib",)),
        (r"Answer: $\boxed{\text{Dystrophin}}$", ("Dystrophin",)),
        ("<think>Answer: BRCA1</think>Answer: BRCA2", ("BRCA2",)),
        ("Answer: CD4+ T cells", ("CD4+ T cells",)),
        ("Answer: BRCA1\n\nQuestion: Which gene is lost?\nAnswer: TP53", ("BRCA1",)),
        ("Answer: BRCA1<|eot_id|>", ("BRCA1",)),
        ("It is the gene BRCA1.", ()),
        ("Answer:", ()),
        ("Answer: name; name; ...", ()),
        ("Answer: unknown", ()),
        ("Answer: N/A", ()),
        ("<think>Answer: BRCA1", ()),
        ("", ()),
        (" \n ", ()),
    ],
)
def test_names_are_read_as_a_reader_would(text: str, names: tuple[str, ...]) -> None:
    reading = read_names(text)
    assert reading.given == names
    assert reading.problem == ("" if names else "none")


DRUGS = (("imatinib", "Gleevec"), ("nilotinib",), ("dasatinib",))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Answer: imatinib, nilotinib, dasatinib", 1.0),
        ("Answer: imatinib, nilotinib and dasatinib.", 1.0),
        ("Answer: imatinib, nilotinib, and dasatinib.", 1.0),
        ("Answer: Imatinib / nilotinib / dasatinib", 1.0),
        (r"\boxed{imatinib; nilotinib; dasatinib}", 1.0),
        (r"Answer: \boxed{imatinib; nilotinib; dasatinib}", 1.0),
        (r"They are $\boxed{\text{imatinib, nilotinib, dasatinib}}$.", 1.0),
        ("Answer:\nImatinib\nNilotinib\nDasatinib", 1.0),
        ("Answer: Imatinib\nNilotinib\nDasatinib", 1.0),
        ("Answer:\nImatinib,\nNilotinib,\nDasatinib\n\nThese all inhibit BCR-ABL.", 1.0),
        ("Answer:\n- **Imatinib**: the first\n- **Nilotinib** - the second\n- Dasatinib (Sprycel)", 1.0),
        ("Answer: imatinib (Gleevec); nilotinib (Tasigna); dasatinib", 1.0),
        ("Answer: imatinib (Gleevec, Glivec), nilotinib (Tasigna), dasatinib (Sprycel)", 1.0),
        ("Answer: imatinib, aspirin, nilotinib", 2 / 3),  # two of three given, two of three wanted
        ("Answer: imatinib, imatinib", 0.5),
        ("Answer: aspirin, heparin, warfarin", 0.0),
        ("Answer: 1) imatinib 2) nilotinib 3) dasatinib", 1.0),
        ("Answer: • imatinib • nilotinib • dasatinib", 1.0),
        ("Answer:\na) imatinib\nb) nilotinib\nc) dasatinib", 1.0),
        ("Answer: imatinib, nilotinib, as well as dasatinib", 1.0),
        ("Answer: The drugs are imatinib, nilotinib and dasatinib.", 1.0),
        ("The answer is imatinib, nilotinib and dasatinib.", 1.0),
        ("Answer: Imatinib; nilotinib; dasatinib. All inhibit ABL.", 1.0),
        ("Answer:\n- Imatinib, which came first.\n- Nilotinib\n- Dasatinib", 1.0),
        ("<answer>imatinib; nilotinib; dasatinib</answer>", 1.0),
        ('{"answer": ["imatinib", "nilotinib", "dasatinib"]}', 1.0),
        ("Imatinib, nilotinib, dasatinib", 0.0),  # no "Answer:" marks them
    ],
)
def test_lists_are_scored_in_the_forms_that_models_write(text: str, score: float) -> None:
    assert score_list(read_names(text).given, DRUGS) == pytest.approx(score)


@pytest.mark.parametrize(
    ("name", "accepted", "score"),
    [
        ("Aspirin (ASA)", "aspirin", 1.0),
        ("Aspirin (ASA)", "ASA", 1.0),
        ("Aspirin [also known as ASA]", "ASA", 1.0),
        ("ASA", "aspirin (ASA)", 1.0),
        ("aspirin: a salicylate", "aspirin", 1.0),
        ("chromosome 9, p arm", "chromosome 9, p arm", 1.0),  # whole, where that is wanted
        ("signs and symptoms", "signs and symptoms", 1.0),
        ("heparin, aspirin", "aspirin", 0.0),  # the first counts
        ("1,25-dihydroxyvitamin D", "25-dihydroxyvitamin D", 0.0),
        ("aspirinate (salt)", "aspirin", 0.0),
    ],
)
def test_a_name_with_its_other_name_is_either(name: str, accepted: str, score: float) -> None:
    assert score_factoid((name,), ((accepted,),)) == score


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("TNF-α", "TNF alpha", True),
        ("TNFα", "tumor necrosis factor", False),
        ("the Dystrophin", "dystrophin", True),
        ("HER-2", "HER2", True),
        ("β-catenin", "beta catenin", True),
        ("Parkinson's disease", "parkinsons  disease.", True),
        ("Parkinson’s disease", "Parkinson's disease", True),
        ("µ-opioid receptor", "mu opioid receptor", True),  # the micro sign is the letter in another place
        ("1.5 mg", "15 mg", False),
        ("IL-1 2", "IL-12", False),
        ("1-5", "15", False),
        ("CD4+", "CD4", False),
        ("hepatitis A", "hepatitis B", False),
        ("vitamin A", "vitamin", False),
    ],
)
def test_spellings_of_one_name_are_equal_and_no_others(one: str, other: str, same: bool) -> None:
    assert (normalise_name(one) == normalise_name(other)) is same


@pytest.mark.parametrize(
    ("names", "score"),
    [
        (("TNF-α",), 1.0),
        (("cachectin",), 1.0),
        (("IL-6", "TNF"), 0.0),  # only the first counts
        (("TNF", "IL-6"), 1.0),
        (("TNF receptor",), 0.0),
        (("...",), 0.0),
        ((), 0.0),
    ],
)
def test_a_factoid_is_right_if_the_first_name_is_accepted(names: tuple[str, ...], score: float) -> None:
    assert score_factoid(names, (("TNF", "TNF alpha", "Cachectin", "-"),)) == score


@pytest.mark.parametrize(
    ("names", "score"),
    [
        (("imatinib", "nilotinib"), 1.0),
        (("Imatinib", "aspirin"), 0.5),
        (("gleevec",), 2 / 3),
        (("imatinib", "gleevec"), 0.5),  # both are the first entity, which counts once
        (("imatinib", "gleevec", "nilotinib"), 0.8),  # 2 * 2/3 / (5/3)
        (("aspirin",), 0.0),
        ((), 0.0),
    ],
)
def test_a_list_is_scored_by_the_entities_it_finds(names: tuple[str, ...], score: float) -> None:
    """F1 is 2 x found / (names given + entities wanted)."""
    assert score_list(names, (("imatinib", "Gleevec"), ("nilotinib", "Tasigna"))) == pytest.approx(score)


def test_a_name_that_two_entities_share_goes_where_it_helps() -> None:
    """ "TNF" fits both entities and "cachectin" the first only; in order of places the second would get nothing."""
    assert score_list(("TNF", "cachectin"), (("TNF", "cachectin"), ("TNF", "lymphotoxin"))) == 1.0


def test_a_list_question_without_entities_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected=\(\)"):
        score_list(("imatinib",), ())


@given(st.text(max_size=300))
def test_any_text_is_read_into_names_or_none(text: str) -> None:
    for reading in (read_names(text), read_names("Answer: " + text)):
        assert bool(reading.given) != bool(reading.problem)
        assert all(normalise_name(name) for name in reading.given)


@given(
    st.lists(st.text("abcα1 -", min_size=1), max_size=5),
    st.lists(st.text("abcα1 -", min_size=1), min_size=1, max_size=5),
)
def test_scores_are_shares_and_the_order_of_names_is_free(names: list[str], wanted: list[str]) -> None:
    score = score_list(names, [(name,) for name in wanted])
    assert score == score_list(names[::-1], [(name,) for name in wanted[::-1]])
    assert 0 <= score <= 1
