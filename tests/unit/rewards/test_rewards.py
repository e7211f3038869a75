"""Terms that need no network, their sum, ensembles, and the config sections of all terms."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ultramed_rl.config.rewards import Ensemble, RewardTerm
from ultramed_rl.records import Completion, Message, Prompt
from ultramed_rl.rewards import TERMS, Term, combine_members, make_term, score_terms, weighted_sum

VIGNETTE = "Which drug?\n\nA. Aspirin\nB. Metoprolol\nC. Warfarin"


def term(**section: Any) -> Term:
    return make_term(TypeAdapter(RewardTerm).validate_python(section))


def prompt(name: str, answer: str | None = None, text: str = "Which?") -> Prompt:
    return Prompt(name, (Message(role="user", content=text),), answer=answer)


def completion(
    name: str, text: str = "x", tokens: int = 1, reason: str = "stop", sample: int = 0
) -> Completion:
    return Completion(name, sample, text, tuple(range(tokens)), reason, 0.0, 0)


# -- answer ------------------------------------------------------------------------------------------------


def test_answers_are_compared_with_the_reference() -> None:
    prompts = [
        prompt("mcq", "The best option is B. Metoprolol. So, the answer is B.", VIGNETTE),
        prompt("dose", "81 mg"),
        prompt("open", "Drink water, rest, and see a doctor after 3 days."),
        prompt("none"),
    ]
    given_answers = [
        ("mcq", "So, the answer is B.", 2.0),
        ("mcq", "B. Metoprolol", 2.0),
        ("mcq", "The answer is A.", -1.0),
        ("mcq", "It depends.", -0.5),
        ("mcq", "The answer is A or B.", -0.5),
        ("mcq", "The answer is D.", -0.5),
        ("dose", "The answer is 81.05 mg.", 2.0),
        ("dose", "The answer is 82 mg.", -1.0),
        ("dose", "Some.", -0.5),
        ("open", "The answer is 3.", 0.0),
        ("none", "The answer is A.", 0.0),
    ]
    scorer = term(type="answer", right=2, wrong=-1, missing=-0.5)
    found = scorer.score(prompts, [completion(name, text) for name, text, _ in given_answers])
    assert found == [reward for _, _, reward in given_answers]


@pytest.mark.parametrize(
    ("kind", "reference", "answer", "reward"),
    [
        ("letter", "B", "The answer is B.", 1.0),
        ("letter", "42", "42", 0.0),  # no letter to compare with
        ("number", "B", "B", 0.0),
        ("number", "It makes 42", "42.0", 1.0),
        ("auto", "It makes 42", "42.0", 0.0),  # prose: its number is no answer
        ("auto", "42", "42", 1.0),
    ],
)
def test_kinds_of_answers(kind: str, reference: str, answer: str, reward: float) -> None:
    assert term(type="answer", kind=kind).score([prompt("p", reference)], [completion("p", answer)]) == [
        reward
    ]


@pytest.mark.parametrize(
    ("relative", "absolute", "reference", "answer", "reward"),
    [
        (0.01, 0.0, "100", "101", 1.0),
        (0.01, 0.0, "100", "101.1", 0.0),
        (0.5, 0.0, "1", "1.9", 0.0),  # 0.9 is over half of 1, though under half of 1.9
        (0.0, 0.5, "0", "0.5", 1.0),
        (0.0, 0.5, "0", "-0.6", 0.0),
        (0.0, 0.0, "0.3", "0.30", 1.0),
    ],
)
def test_tolerances(relative: float, absolute: float, reference: str, answer: str, reward: float) -> None:
    scorer = term(type="answer", relative_tolerance=relative, absolute_tolerance=absolute)
    assert scorer.score([prompt("p", reference)], [completion("p", answer)]) == [reward]


def test_prompts_without_reference_are_told(caplog: pytest.LogCaptureFixture) -> None:
    term(type="answer").score([prompt("p"), prompt("q", "A")], [])
    assert "answer: 1 of 2 " in caplog.text


# -- length and format -------------------------------------------------------------------------------------


def test_length_window_falls_linearly() -> None:
    scorer = term(type="length", low=10, high=20, falloff=10)
    tokens = [0, 5, 9, 10, 15, 20, 22, 30, 90]
    found = scorer.score([prompt("p")], [completion("p", tokens=n) for n in tokens])
    assert found == pytest.approx([0.0, 0.5, 0.9, 1.0, 1.0, 1.0, 0.8, 0.0, 0.0])


def test_length_penalty_per_token() -> None:
    scorer = term(type="length", free=4)
    assert scorer.score([prompt("p")], [completion("p", tokens=n) for n in (0, 4, 5, 9)]) == [0, 0, -1, -5]


def test_format_rules() -> None:
    scorer = term(type="format", must_match=r"(?i)so, the answer is", must_not_match=r"\bAI\b", ended=True)
    answers = [
        completion("p", "So, the answer is A."),
        completion("p", "A."),
        completion("p", "As an AI: so, the answer is A."),
        completion("p", "So, the answer is A.", reason="length"),
        completion("p", "So, the answer is A.", reason="reference"),
    ]
    assert scorer.score([prompt("p")], answers) == [0.0, -1.0, -1.0, -1.0, 0.0]


# -- sums and ensembles ------------------------------------------------------------------------------------


def test_weighted_sum() -> None:
    assert weighted_sum([1.0, -0.5], [[1.0, 2.0], [4.0, 2.0]]) == [-1.0, 1.0]
    assert weighted_sum([1.0], [[]]) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_nan(bad: float) -> None:
    total = weighted_sum([1.0, 1.0], [[1.0, bad, bad], [1.0, 1.0, -bad]])
    assert total[0] == 2.0 and math.isnan(total[1]) and math.isnan(total[2])
    for combine in ("mean", "min"):
        found = combine_members(Ensemble(paths=["a", "b"], combine=combine), [[bad, 1.0], [0.0, 3.0]])
        assert math.isnan(found[0]) and math.isfinite(found[1])


def test_ensembles_by_hand() -> None:
    values = [[1.0, 0.0], [2.0, 0.0], [3.0, 6.0]]
    paths = ["a", "b", "c"]
    assert combine_members(Ensemble(paths=paths), values) == [2.0, 2.0]
    assert combine_members(Ensemble(paths=paths, combine="min"), values) == [1.0, 0.0]
    # Population deviations: sqrt(2/3), and sqrt((4 + 4 + 16) / 3) = sqrt(8).
    uncertain = combine_members(Ensemble(paths=paths, combine="uncertainty", penalty=0.5), values)
    assert uncertain == pytest.approx([2 - 0.5 * math.sqrt(2 / 3), 2 - 0.5 * math.sqrt(8)])


def test_lists_of_unequal_length_are_our_mistake() -> None:
    with pytest.raises(ValueError, match="shorter"):
        weighted_sum([1.0, 1.0], [[1.0, 2.0], [1.0]])


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40), st.sampled_from("ABCD")), max_size=30),
    st.randoms(),
)
def test_order_of_completions_and_prompts_is_free(
    rows: list[tuple[int, int, str]], shuffler: random.Random
) -> None:
    prompts = [prompt(str(i), "ABCDA"[i]) for i in range(5)]
    completions = [
        completion(str(i), f"The answer is {letter}.", n, sample=k) for k, (i, n, letter) in enumerate(rows)
    ]
    terms = {
        "answer": term(type="answer"),
        "length": term(type="length", low=5, high=9, falloff=7),
        "format": term(type="format", must_match="A"),
    }
    before = {name: said.values for name, said in score_terms(terms, prompts, completions).items()}
    assert before["answer"] == [float("ABCDA"[i] == letter) for i, _, letter in rows]
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    shuffler.shuffle(prompts)
    again = score_terms(terms, prompts, [completions[i] for i in order])
    after = {name: said.values for name, said in again.items()}
    assert after == {name: [values[i] for i in order] for name, values in before.items()}


# -- config ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"type": "answer", "weight": 0}, r"weight\n.*type=zero"),
        ({"type": "answer", "weight": math.inf}, r"\bweight\b(?s:.*)finite_number"),
        ({"type": "length"}, "low=None high=None falloff=None free=None: "),
        ({"type": "length", "low": 1, "high": 2}, "low=1 high=2 falloff=None free=None: "),
        (
            {"type": "length", "low": 1, "high": 2, "falloff": 1, "free": 3},
            r"low=1 high=2 falloff=1(\.0)? free=3: ",
        ),
        ({"type": "length", "low": 3, "high": 2, "falloff": 1}, r"low=3: .*high=2"),
        ({"type": "format"}, "rule; .*must_match, .*ended"),
        ({"type": "format", "must_match": "("}, r"must_match\n.*'\('"),
        ({"type": "http", "url": "localhost:5000"}, r"url\n.*'localhost:5000'"),
        ({"type": "http", "url": "http://u:secret@host/get_reward"}, r"url\n[^=]*\[type"),
        ({"type": "judge", "model": "m", "base_url": "ftp://x"}, "judge.base_url"),
        (
            {"type": "judge", "model": "m", "base_url": "http://x/v1", "samples": 3},
            "samples=3: .*temperature=0",
        ),
        (
            {"type": "judge", "model": "m", "base_url": "http://x/v1", "scale": {"low": 5, "high": 5}},
            r"low=5(\.0)?: .*high=5",
        ),
        ({"type": "python", "path": "my_reward.py"}, "my_reward.py"),
        ({"type": "unknown"}, "tag"),
        ({"type": "answer", "wieght": 1}, "wieght"),
    ],
)
def test_sections_that_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(RewardTerm).validate_python(section)


def test_a_refusal_keeps_a_password_to_itself() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(RewardTerm).validate_python({"type": "http", "url": "http://u:secret@host/get_reward"})
    assert "secret" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"paths": ["a"]}, r"\bpaths\b(?s:.*)too_short"),
        ({"paths": ["a", "a"]}, r"paths\n.*'a'"),
        ({"paths": ["a", "b"], "combine": "uncertainty"}, r"penalty=None: .*combine=uncertainty"),
        ({"paths": ["a", "b"], "penalty": 1.0}, r"penalty=1\.0: .*combine=mean"),
    ],
)
def test_ensembles_that_are_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Ensemble.model_validate(section)


def test_terms_come_back_from_their_dump() -> None:
    sections: list[dict[str, Any]] = [
        {"type": "answer"},
        {"type": "length", "free": 3, "weight": -0.5},
        {"type": "format", "ended": True, "name": "cut"},
        {"type": "http", "url": "http://h/get_reward"},
        {"type": "judge", "model": "m", "base_url": "http://h/v1"},
        {"type": "rubric", "model": "m", "base_url": "http://h/v1"},
        {"type": "python", "path": "my_reward.py:score"},
        {"type": "pairwise", "engine": {"path": "judge"}},
    ]
    assert {s["type"] for s in sections} == set(TERMS) - {"rule", "likeness"}, "which judge alone"
    for section in sections:
        config = TypeAdapter(RewardTerm).validate_python(section)
        assert TypeAdapter(RewardTerm).validate_python(config.model_dump(mode="json")) == config
        assert config.name == section.get("name", section["type"])


def test_secrets_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    with pytest.raises(ValueError, match=r"http\.token_env='NO_SUCH_TOKEN': "):
        term(type="http", url="http://h/get_reward", token_env="NO_SUCH_TOKEN")
    with pytest.raises(ValueError, match="judge.api_key_env='NO_SUCH_TOKEN'"):
        term(type="judge", model="m", base_url="http://h/v1", api_key_env="NO_SUCH_TOKEN")


def test_importing_rewards_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'ray', 'openai', 'fastapi', 'uvicorn', 'transformers'}"
    code = f"import sys, ultramed_rl.rewards; print(sorted(set(sys.modules) & {heavy}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
