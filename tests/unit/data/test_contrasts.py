"""Contrasts: one respect per pair, only finished answers preferred, and a split that leaks no prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.data.contrasts import Texts, build_contrasts, split_contrasts
from ultramed_rl.records import Completion, Message, PreferenceGroup, Prompt

END = 2


def encode(text: str) -> list[int]:
    return [ord(c) for c in text]


def decode(tokens: Sequence[int]) -> str:
    return "".join(chr(t) for t in tokens)


def prompt(name: str) -> Prompt:
    return Prompt(name, (Message(role="user", content=name),), (1,))


def answer(name: str, text: str, reason: str = "stop") -> Completion:
    tokens = (*encode(text), END) if reason == "stop" else tuple(encode(text))
    return Completion(name, 0, text, tokens, reason, 0.0, 0)


def build(
    prompts: list[Prompt], calm: list[Completion], wild: list[Completion], seed: int = 0
) -> list[PreferenceGroup]:
    return build_contrasts(
        prompts, calm, wild, texts=Texts(lambda _, text: [*encode(text), END], decode, END), seed=seed
    )


def test_three_kinds_of_two_finished_answers() -> None:
    prompts = [prompt("a"), prompt("b")]
    calm = [answer("a", "0123456789"), answer("b", "abcdefghij")]
    wild = [answer("a", "xx", "length"), answer("b", "yy", "length")]
    contrasts = build(prompts, calm, wild)
    assert [(c.prompt.prompt_id, c.prompt.kind) for c in contrasts] == [
        (name, kind) for name in "ab" for kind in ("coherent", "complete", "on_topic")
    ]
    coherent, complete, on_topic = contrasts[:3]
    assert {c.chosen.token_ids for c in contrasts[:3]} == {calm[0].token_ids}
    assert coherent.rejected.token_ids == wild[0].token_ids
    assert on_topic.rejected.token_ids == calm[1].token_ids
    # 30 to 80 % of ten tokens, without the end token
    cut = complete.rejected
    assert 3 <= len(cut.token_ids) <= 8
    assert cut.token_ids == calm[0].token_ids[: len(cut.token_ids)]
    assert cut.text == "0123456789"[: len(cut.token_ids)] and cut.finish_reason == "length"
    assert len({c.group_id for c in contrasts}) == len(contrasts)
    assert {side.prompt_id for c in contrasts[:3] for side in c.completions} == {"a"}


def test_only_finished_answers_with_text_are_preferred() -> None:
    prompts = [prompt(n) for n in "abc"]
    calm = [answer("a", "fine, thanks"), answer("b", "cut", "length"), answer("c", "  ")]
    wild = [answer(n, "wild") for n in "abc"]
    contrasts = build(prompts, calm, wild)
    assert [(c.prompt.prompt_id, c.prompt.kind) for c in contrasts] == [("a", "coherent"), ("a", "complete")]
    with pytest.raises(ValueError, match=r"contrasts: .*\b1 calm .*reward\.train\.data\.max_new_tokens"):
        build(prompts[1:2], calm[1:2], wild[1:2])


def test_identical_pairs_are_left_out() -> None:
    prompts = [prompt("a"), prompt("b")]
    same = [answer("a", "x"), answer("b", "x")]  # one token: no room for a cut either
    assert build(prompts, same, same) == []


def test_every_prompt_needs_its_two_answers() -> None:
    prompts, both = [prompt("a"), prompt("b")], [answer("a", "x"), answer("b", "y")]
    with pytest.raises(ValueError, match=r"\b1 wild [a-z ]+ 1 [a-z ]+ 2 "):
        build(prompts, both, both[:1])
    with pytest.raises(ValueError, match=r"\b2 calm [a-z ]+ 1 [a-z ]+ 2 "):
        build(prompts, [both[0], both[0]], both)


def test_a_vignette_contrasts_its_right_letter_with_a_wrong_one() -> None:
    text = "Best?\n\nA. Ampicillin\nB. Ceftriaxone\n\nBe brief."
    right = "The best option is B. Ceftriaxone. So, the answer is B."
    vignette = Prompt("v", (Message(role="user", content=text),), (1,), right, "vignette")
    # It needs no answer of the policy: this one was cut off.
    calm = [answer("v", "uh", "length"), answer("a", "fine")]
    contrasts = build([vignette, prompt("a")], calm, [answer("v", "w"), answer("a", "w")])
    assert (contrasts[0].prompt.prompt_id, contrasts[0].prompt.kind) == ("v", "correct")
    wrong = "The best option is A. Ampicillin. So, the answer is A."
    assert contrasts[0].chosen.token_ids == (*encode(right), END)
    assert contrasts[0].rejected.token_ids == (*encode(wrong), END)


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
    assert max(Counter((c.prompt.prompt_id, c.prompt.kind) for c in contrasts).values(), default=1) == 1
    for c in contrasts:
        assert c.chosen.token_ids == good[c.prompt.prompt_id].token_ids != c.rejected.token_ids
        if c.prompt.kind == "on_topic":
            assert c.rejected.token_ids in [g.token_ids for i, g in good.items() if i != c.prompt.prompt_id]


@given(st.lists(st.integers(0, 15), min_size=1, max_size=40), st.floats(0.05, 0.95), st.integers(0, 5))
def test_the_split_is_by_prompt(names: list[int], held_out: float, seed: int) -> None:
    sides = (answer("x", "x"), answer("x", "y"))
    contrasts = [PreferenceGroup(prompt(f"p{n}"), sides, (1.0, 0.0)) for n in names]
    size = len(set(names))
    expected = max(1, round(held_out * size))
    if expected >= size:
        with pytest.raises(
            ValueError, match=rf"contrasts .*\b{size} .*\bheld_out=.*reward\.train\.data\.prompts"
        ):
            split_contrasts(contrasts, held_out, seed)
        return
    training, held = split_contrasts(contrasts, held_out, seed)
    prompts = [{c.prompt.prompt_id for c in part} for part in (training, held)]
    assert not prompts[0] & prompts[1]
    assert len(prompts[1]) == expected
    assert len(training) + len(held) == len(contrasts)
