"""Contrasts: one respect per pair, only finished answers preferred, and a split that leaks no prompt."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.data.contrasts import Contrast, build_contrasts, split_contrasts
from ultramed_rl.records import Completion, Message, Prompt

END = 2


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def prompt(name: str) -> Prompt:
    return Prompt(name, (Message(role="user", content=name),), (1,))


def answer(name: str, text: str, reason: str = "stop") -> Completion:
    tokens = (*encode(text), END) if reason == "stop" else tuple(encode(text))
    return Completion(name, 0, text, tokens, reason, 0.0, 0)


def build(
    prompts: list[Prompt], calm: list[Completion], wild: list[Completion], seed: int = 0
) -> list[Contrast]:
    return build_contrasts(prompts, calm, wild, encode_text=encode, end_token=END, seed=seed)


def test_three_kinds_of_two_finished_answers() -> None:
    prompts = [prompt("a"), prompt("b")]
    calm = [answer("a", "0123456789"), answer("b", "abcdefghij")]
    wild = [answer("a", "xx", "length"), answer("b", "yy", "length")]
    contrasts = build(prompts, calm, wild)
    assert [(c.prompt.prompt_id, c.kind) for c in contrasts] == [
        (name, kind) for name in "ab" for kind in ("coherent", "complete", "on_topic")
    ]
    coherent, complete, on_topic = contrasts[:3]
    assert coherent.chosen == complete.chosen == on_topic.chosen == calm[0].token_ids
    assert coherent.rejected == wild[0].token_ids
    assert on_topic.rejected == calm[1].token_ids
    # 30 to 80 % of ten tokens, without the end token
    assert 3 <= len(complete.rejected) <= 8
    assert complete.rejected == calm[0].token_ids[: len(complete.rejected)]


def test_only_finished_answers_with_text_are_preferred() -> None:
    prompts = [prompt(n) for n in "abc"]
    calm = [answer("a", "fine, thanks"), answer("b", "cut", "length"), answer("c", "  ")]
    wild = [answer(n, "wild") for n in "abc"]
    contrasts = build(prompts, calm, wild)
    assert [(c.prompt.prompt_id, c.kind) for c in contrasts] == [("a", "coherent"), ("a", "complete")]
    with pytest.raises(
        ValueError, match="none of 1 calm answers ended by itself; raise reward.train.data.max_new"
    ):
        build(prompts[1:2], calm[1:2], wild[1:2])


def test_identical_pairs_are_left_out() -> None:
    prompts = [prompt("a"), prompt("b")]
    same = [answer("a", "x"), answer("b", "x")]  # one token: no room for a cut either
    assert build(prompts, same, same) == []


def test_every_prompt_needs_its_two_answers() -> None:
    prompts, both = [prompt("a"), prompt("b")], [answer("a", "x"), answer("b", "y")]
    with pytest.raises(ValueError, match="1 wild answers of 1 prompts for 2 prompts"):
        build(prompts, both, both[:1])
    with pytest.raises(ValueError, match="2 calm answers of 1 prompts for 2 prompts"):
        build(prompts, [both[0], both[0]], both)


def test_a_vignette_contrasts_its_right_letter_with_a_wrong_one() -> None:
    text = "Best?\n\nA. Ampicillin\nB. Ceftriaxone\n\nBe brief."
    right = "The best option is B. Ceftriaxone. So, the answer is B."
    vignette = Prompt("v", (Message(role="user", content=text),), (1,), right, "vignette")
    # It needs no answer of the policy: this one was cut off.
    calm = [answer("v", "uh", "length"), answer("a", "fine")]
    contrasts = build([vignette, prompt("a")], calm, [answer("v", "w"), answer("a", "w")])
    assert (contrasts[0].prompt.prompt_id, contrasts[0].kind) == ("v", "correct")
    wrong = "The best option is A. Ampicillin. So, the answer is A."
    assert contrasts[0].chosen == (*encode(right), END)
    assert contrasts[0].rejected == (*encode(wrong), END)


texts = st.text("abcd ", max_size=8)


@given(
    st.lists(st.tuples(texts, texts, st.sampled_from(["stop", "length"])), min_size=1, max_size=12),
    st.integers(0, 5),
)
def test_invariants(rows: list[tuple[str, str, str]], seed: int) -> None:
    prompts = [prompt(f"p{i}") for i in range(len(rows))]
    calm = [answer(f"p{i}", text, reason) for i, (text, _, reason) in enumerate(rows)]
    wild = [answer(f"p{i}", text) for i, (_, text, _) in enumerate(rows)]
    good = {c.prompt_id: c for c in calm if c.finish_reason == "stop" and c.text.strip()}
    if not good:
        return
    contrasts = build(prompts, calm, wild, seed)
    assert contrasts == build(prompts, calm, wild, seed)
    assert max(Counter((c.prompt.prompt_id, c.kind) for c in contrasts).values(), default=1) == 1
    for c in contrasts:
        assert c.chosen == good[c.prompt.prompt_id].token_ids != c.rejected
        if c.kind == "on_topic":
            assert c.rejected in [g.token_ids for i, g in good.items() if i != c.prompt.prompt_id]


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40), st.floats(0.05, 0.95), st.integers(0, 5))
def test_the_split_is_by_prompt(names: list[int], held_out: float, seed: int) -> None:
    contrasts = [Contrast(prompt(f"p{n}"), (i,), (i, i), "coherent") for i, n in enumerate(names)]
    size = len(set(names))
    expected = max(1, round(held_out * size))
    if expected >= size:
        with pytest.raises(ValueError, match=f"of {size} prompts can't be split"):
            split_contrasts(contrasts, held_out, seed)
        return
    training, held = split_contrasts(contrasts, held_out, seed)
    sides = [{c.prompt.prompt_id for c in part} for part in (training, held)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == expected
    assert len(training) + len(held) == len(contrasts)
