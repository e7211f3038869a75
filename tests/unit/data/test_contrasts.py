"""Contrasts: one respect per pair, which is never length, and a split that leaks no prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.data.contrasts import Texts, balance_lengths, build_contrasts, split_contrasts
from ultramed_rl.learning.length import length_accuracies
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


def test_two_answers_that_ended_are_contrasted_whole() -> None:
    prompts = [prompt("a"), prompt("b")]
    calm = [answer("a", "0123456789"), answer("b", "abcdefghij")]
    wild = [answer("a", "xxxxxxxxxx"), answer("b", "yyyy", "length")]
    a, b, *on_topic = sorted(build(prompts, calm, wild), key=lambda c: c.prompt.kind)
    assert (a.prompt.kind, a.chosen.token_ids, a.rejected.token_ids) == (
        "coherent",
        calm[0].token_ids,
        wild[0].token_ids,
    )
    # The wild one never ended: both are cut to its four tokens.
    assert (b.chosen.text, b.rejected.text) == ("abcd", "yyyy")
    assert {side.finish_reason for side in b.completions} == {"length"} and END not in b.chosen.token_ids
    assert [(c.prompt.kind, c.chosen.text, c.rejected.text) for c in on_topic] == [
        ("on_topic", "0123456789", "abcdefghij"),
        ("on_topic", "abcdefghij", "0123456789"),
    ]
    assert {side.prompt_id for side in a.completions} == {"a"}


def test_whole_sentences_are_contrasted_with_as_many_tokens_of_a_longer_answer() -> None:
    def complete(*answers: Completion) -> list[tuple[str, str]]:
        calm = [*answers, answer("b", "Ask your doctor about it.")]
        pairs = build([prompt("a"), prompt("b")], calm, [answer(n, "?") for n in "ab"])
        return [(c.chosen.text, c.rejected.text) for c in pairs if c.prompt.kind == "complete"]

    # A token is a letter, the end of turn one too.
    first, cut = answer("a", "Take it now."), answer("a", "Drink plenty of water, and", "length")
    assert complete(first, cut) == [("Take it now.", "Drink plenty ")]
    # Nothing is as long as the longest answer; its first sentence stands for it.
    longest = answer("a", "Rest now.\nDrink a lot of water")
    assert complete(longest, answer("a", "Stop at once", "length")) == [("Rest now.", "Stop at on")]
    assert complete(answer("a", "Rest now.)Drink a lot of water")) == []
    # Neither a number nor a list's mark ends a sentence, nor does an abbreviation.
    assert complete(answer("a", "1. It is 2.5 mg, e.g. Dr. No has it so far and on", "length")) == []


def test_an_answer_that_never_ended_is_never_preferred_to_one_that_did() -> None:
    prompts = [prompt(n) for n in "abc"]
    calm = [answer("a", "fine, thanks"), answer("b", "never ends", "length"), answer("c", "  ")]
    wild = [answer(n, "wild") for n in "abc"]
    contrasts = build(prompts, calm, wild)
    assert [(c.chosen.text, c.rejected.text) for c in contrasts] == [("fine", "wild"), ("neve", "wild")]
    with pytest.raises(ValueError, match=r"contrasts: .*\b1 calm .*reward\.train\.data\.max_new_tokens"):
        build(prompts[1:2], calm[1:2], wild[1:2])


def by_kind(contrasts: Sequence[PreferenceGroup]) -> dict[str, list[int]]:
    """By how many tokens each chosen answer is longer."""
    gaps: dict[str, list[int]] = {}
    for c in contrasts:
        gaps.setdefault(c.prompt.kind, []).append(len(c.chosen.token_ids) - len(c.rejected.token_ids))
    return gaps


def test_length_tells_nothing_within_a_kind() -> None:
    """Calm answers of one to three sentences, some cut off; wild ones that are mostly longer; right options that are often
    the longest, as in exams."""
    prompts, calm, wild = [], list[Completion](), list[Completion]()
    for i in range(60):
        name, right = f"p{i}", "ABCD"[i % 4]
        drugs = {letter: letter.lower() * (5 + (3 * i + k) % 7) for k, letter in enumerate("ABCD")}
        drugs[right] += "x" * (i % 3)
        text = "Best?\n\n" + "\n".join(f"{letter}. {drug}" for letter, drug in drugs.items())
        key = f"The best option is {right}. {drugs[right]}. So, the answer is {right}."
        prompts.append(Prompt(name, (Message(role="user", content=text),), (1,), key, "vignette"))
        sentence = "Take it with water" + " today" * (i % 5)
        calm += [
            answer(name, ". ".join([sentence] * (1 + i % 3)) + ".", "length" if i % 5 == 4 else "stop"),
            answer(name, f"{sentence} and with food" + " or tea" * (i % 6), "length" if i % 2 else "stop"),
        ]
        wild.append(answer(name, "zq " * (8 + i % 25), "length" if i % 4 else "stop"))
    contrasts = build(prompts, calm, wild)
    gaps = by_kind(contrasts)
    assert {kind: len(of) >= 30 for kind, of in gaps.items()} == dict.fromkeys(
        ("coherent", "complete", "on_topic", "correct"), True
    )
    for kind, of in gaps.items():
        longer = sum((gap > 0) + 0.5 * (gap == 0) for gap in of) / len(of)
        assert abs(fmean(of)) < 0.2 and 0.4 <= longer <= 0.6, kind
    assert set(gaps["coherent"]) == set(gaps["complete"]) == {0}
    _, held_out = split_contrasts(contrasts, 0.3, 1)
    assert 0.4 <= length_accuracies(held_out)["length_accuracy"] <= 0.6


def test_identical_pairs_are_left_out() -> None:
    prompts = [prompt("a"), prompt("b")]
    same = [answer("a", "same words"), answer("b", "same words")]
    assert build(prompts, same, same) == []


def test_every_prompt_needs_its_answers() -> None:
    prompts, both = [prompt("a"), prompt("b")], [answer("a", "x"), answer("b", "y")]
    with pytest.raises(ValueError, match=r"\b1 wild [a-z ]+ 1 [a-z ]+ 2 "):
        build(prompts, both, both[:1])
    with pytest.raises(ValueError, match=r"\b2 calm [a-z ]+ 1 [a-z ]+ 2 "):
        build(prompts, [both[0], both[0]], both)
    with pytest.raises(ValueError, match=r"\b3 calm [a-z ]+ 3 [a-z ]+ 2 "):
        build(prompts, [*both, answer("c", "z")], both)


def test_a_vignette_contrasts_its_right_letter_with_the_wrong_one_that_is_as_long() -> None:
    text = "Best?\n\nA. Ampicillin\nB. Ceftriaxone\nC. Vancomycine\n\nBe brief."
    right = "The best option is B. Ceftriaxone. So, the answer is B."
    vignette = Prompt("v", (Message(role="user", content=text),), (1,), right, "vignette")
    # It needs no answer of the policy: this one was cut off.
    calm = [answer("v", "uh", "length"), answer("a", "fine")]
    (pair,) = build([vignette, prompt("a")], calm, [answer("v", "w"), answer("a", "w")])
    assert (pair.prompt.prompt_id, pair.prompt.kind) == ("v", "correct")
    wrong = "The best option is C. Vancomycine. So, the answer is C."
    assert pair.chosen.token_ids == (*encode(right), END)
    assert pair.rejected.token_ids == (*encode(wrong), END)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=20))
def test_balanced_pairs_have_as_many_longer_as_shorter(sizes: list[tuple[int, int]]) -> None:
    pairs = [
        PreferenceGroup(prompt(f"p{n}"), (answer("x", "a" * one), answer("x", "b" * other)), (1.0, 0.0))
        for n, (one, other) in enumerate(sizes)
    ]
    kept = balance_lengths(pairs)
    assert kept == [pair for pair in pairs if pair in kept], "in their order"
    signs = Counter((a > b) - (a < b) for a, b in sizes)
    assert len(kept) == signs[0] + 2 * min(signs[1], signs[-1])
    assert not kept or length_accuracies(kept) == {"length_accuracy": 0.5}


texts = st.text("abcd ", max_size=8)


@given(
    st.lists(st.tuples(texts, texts, st.sampled_from(["stop", "length"])), min_size=1, max_size=12),
    st.integers(0, 5),
)
def test_invariants(rows: list[tuple[str, str, str]], seed: int) -> None:
    prompts = [prompt(f"p{i}") for i in range(len(rows))]
    calm = [answer(f"p{i}", text, reason) for i, (text, _, reason) in enumerate(rows)]
    wild = [answer(f"p{i}", text) for i, (_, text, _) in enumerate(rows)]
    if not any(c.finish_reason == "stop" and c.text.strip() for c in calm):
        return
    contrasts = build(prompts, calm, wild, seed)
    assert contrasts == build(prompts, calm, wild, seed)
    assert max(Counter((c.prompt.prompt_id, c.prompt.kind) for c in contrasts).values(), default=1) == 1
    assert len({c.group_id for c in contrasts}) == len(contrasts)
    for c in contrasts:
        assert c.chosen.text.strip() and c.chosen.text.strip() != c.rejected.text.strip()
        assert {side.prompt_id for side in c.completions} == {c.prompt.prompt_id}
        assert c.chosen.finish_reason != "length" or c.rejected.finish_reason == "length"
        assert all((side.token_ids[-1] == END) == (side.finish_reason == "stop") for side in c.completions)
    for gaps in by_kind(contrasts).values():
        assert sum(gap > 0 for gap in gaps) == sum(gap < 0 for gap in gaps)


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
