"""The tree of options whose likelihoods are asked for."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.actors.options import add_up, branches

OPTIONS = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6
).map(tuple)


def test_letters_are_one_branch() -> None:
    assert branches([(11,), (12,), (13,)]) == {(): (11, 12, 13)}


def test_options_that_begin_alike_share_their_branches() -> None:
    # "beta blocker", "beta agonist", "beta": the last ends where the others go on.
    assert branches([(5, 6, 7), (5, 8), (5,)]) == {(): (5,), (5,): (6, 8), (5, 6): (7,)}


def test_an_options_logprob_is_the_sum_along_its_branches() -> None:
    known = {((), 5): -1.0, ((5,), 6): -0.5, ((5,), 8): -2.0, ((5, 6), 7): -0.25}
    assert add_up([(5, 6, 7), (5, 8), (5,)], known) == (-1.75, -3.0, -1.0)


@given(OPTIONS)
def test_every_token_of_every_option_is_asked_for_once(options: tuple[tuple[int, ...], ...]) -> None:
    found = branches(options)
    for option in options:
        assert all(option[k] in found[option[:k]] for k in range(len(option)))
    assert all(len(set(tokens)) == len(tokens) for tokens in found.values())
    assert len(found) == len({option[:k] for option in options for k in range(len(option))})


@given(OPTIONS)
def test_likelihoods_of_all_strings_of_a_length_add_up_to_one(options: tuple[tuple[int, ...], ...]) -> None:
    # Under a model that gives four tokens the same chance, an option of k tokens has the chance 4^-k.
    known = {(b, token): math.log(0.25) for b, tokens in branches(options).items() for token in tokens}
    for option, logprob in zip(options, add_up(options, known), strict=True):
        assert math.isclose(math.exp(logprob), 0.25 ** len(option))
