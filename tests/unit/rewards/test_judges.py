"""Judges by rule and by likeness: numbers derived by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from ultramed_rl.config.judges import Evaluation, JudgeChoice, Likeness
from ultramed_rl.records import Completion, Prompt
from ultramed_rl.rewards import make_term
from ultramed_rl.rewards.likeness import AnswerLikeness
from ultramed_rl.rewards.rules import mentions_one, split_sentences

ASKED = "what is the dose of Xarelto?"


def judge(text: str, finish: str = "stop", **rules: Any) -> float:
    prompt = Prompt("p", ({"role": "system", "content": "Metoprolol."}, {"role": "user", "content": ASKED}))
    config = TypeAdapter(JudgeChoice).validate_python({"type": "rule", **rules})
    (score,) = make_term(config).score([prompt], [Completion("p", 0, text, (1,), finish, 0.0, 0)])
    return score


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Ask a doctor.", 1),
        ("Take 2.5 mg daily. Ask a doctor!", 2),
        ("It is used e.g. for pain, by Dr. Smith vs. placebo.", 1),
        ("It has vitamin C. It helps.", 2),
        ('He said "no." Then he left.', 2),
        ("1. Rest.\n2. Drink water.", 2),
        ("What? Yes... maybe. ", 2),
        ("...", 0),
        ("", 0),
    ],
)
def test_sentences_are_counted(text: str, sentences: int) -> None:
    assert len(split_sentences(text)) == sentences


@pytest.mark.parametrize(
    ("rules", "text", "kept"),
    [
        ({"max_words": 3}, "one two three", True),
        ({"max_words": 2}, "one two three", False),
        ({"min_words": 4}, "one two -- three", False),
        ({"min_sentences": 1, "max_sentences": 2}, "Xarelto is a pill. Ask a pharmacist.", True),
        ({"max_sentences": 2}, "Xarelto is a pill. Ask a", False),
        ({"max_sentences": 1}, "Xarelto is a pill. Ask a pharmacist.", False),
        ({"min_sentences": 1}, "", False),
        ({"must_match": "(?i)pharmacist"}, "Ask your Pharmacist.", True),
        ({"must_not_match": "cure"}, "It will cure you.", False),
        ({"mentions": r"\b[A-Z]\w{5,}"}, "XARELTO 20 mg.", True),
        ({"mentions": r"\b[A-Z]\w{5,}"}, "Xareltos 20 mg.", False),
        ({"mentions": r"(?i)dose of (\w+)"}, "A dose.", False),
        ({"mentions": r"Metoprolol"}, "No name: it is of the system's message.", True),
        ({"max_words": 9, "must_match": "mg", "mentions": "Xarelto"}, "Xarelto 20 mg", True),
        ({"max_words": 9, "must_match": "mg", "mentions": "Xarelto"}, "Xarelto 20", False),
    ],
)
def test_an_answer_keeps_all_rules_or_not(rules: dict[str, Any], text: str, kept: bool) -> None:
    assert judge(text, **rules) == float(kept)


def test_an_answer_that_was_cut_off_has_not_ended() -> None:
    assert (judge("It", "length", ended=True), judge("It", "stop", ended=True)) == (0.0, 1.0)


def test_the_first_group_that_found_something_is_the_name() -> None:
    assert mentions_one("about B", [("", "b")]) and not mentions_one("about B", [("a", "b")])


def embed(texts: Sequence[str]) -> np.ndarray:
    """a and b at a right angle, c between them."""
    places = {"a": (1.0, 0.0), "b": (0.0, 1.0), "c": (0.6, 0.8)}
    return np.array([places[text] for text in texts], dtype=np.float32)


def test_likeness_is_the_cosine_with_the_question_or_the_reference() -> None:
    prompts = [
        Prompt("p", ({"role": "user", "content": "a"},), answer="b"),
        Prompt("q", ({"role": "user", "content": "b"},)),
    ]
    answers = [("p", "c"), ("q", "c"), ("p", "b"), ("q", " ")]
    completions = [Completion(p, i, text, (1,), "stop", 0.0, 0) for i, (p, text) in enumerate(answers)]
    asked = AnswerLikeness(Likeness(), embed).score(prompts, completions)
    assert asked == pytest.approx([0.6, 0.8, 0.0, 0.0])
    reference = AnswerLikeness(Likeness(to="reference"), embed).score(prompts, completions)
    assert reference == pytest.approx([0.8, math.nan, 1.0, math.nan], nan_ok=True)


def test_an_encoder_finds_answers_near_to_their_question() -> None:
    term = make_term(Likeness())
    prompt = Prompt("p", ({"role": "user", "content": "What is aspirin used for?"},))
    texts = ["Aspirin is used against pain and fever.", "The capital of France is Paris."]
    near, far = term.score(
        [prompt], [Completion("p", i, t, (1,), "stop", 0.0, 0) for i, t in enumerate(texts)]
    )
    assert far < 0.2 < 0.5 < near <= 1.0


@pytest.mark.parametrize(
    ("judges", "names"),
    [
        ([{"type": "rule"}], "must_match"),
        ([{"type": "rule", "min_words": 3, "max_words": 2}], "min_words=3.*max_words=2"),
        ([{"type": "rule", "ended": True}, {"type": "rule", "ended": True}], "'rule'"),
        ([{"type": "rule", "ended": True, "name": "a b"}], r"judges\.0\.name='a b'"),
        ([{"type": "rule", "ended": True, "name": "reward"}], r"judges\.0\.name='reward'"),
        ([{"type": "length", "free": 3, "weight": -1.0}], r"judges\.0\.weight=-1"),
        ([{"type": "format", "ended": True}], "format"),
    ],
)
def test_judges_that_are_refused(judges: list[dict[str, Any]], names: str) -> None:
    with pytest.raises(ValidationError, match=names):
        Evaluation.model_validate({"judges": judges})
