"""Data that cannot be learnt from is refused before training, with the rule and the ids that break it."""

from __future__ import annotations

import math
import re

import pytest

from ultramed_rl.learning.checks import SHOWN, check_groups, check_references
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs

VOCAB, CONTEXT = 50, 10


def make_group(
    name: str = "p",
    prompt: tuple[int, ...] = (1, 2, 3),
    answers: tuple[tuple[int, ...], ...] = ((4, 5), (6,)),
    rewards: tuple[float, ...] | None = None,
    desirable: int = 1,
) -> PreferenceGroup:
    completions = tuple(Completion(name, i, "text", ids, "stop", 0.0, 0) for i, ids in enumerate(answers))
    values = tuple(float(-i) for i in range(len(answers))) if rewards is None else rewards
    return PreferenceGroup(Prompt(name, (), prompt), completions, values, desirable)


def refusal(*groups: PreferenceGroup) -> str:
    with pytest.raises(ValueError) as caught:
        check_groups(groups, VOCAB, CONTEXT)
    return str(caught.value)


def test_good_groups_pass_up_to_the_limits() -> None:
    full = make_group("full", prompt=(1,) * 7, answers=((49, 0, 2), (4,)))  # ten tokens; the outermost ids
    one_token_of_room = make_group("room", prompt=(1,) * 9, answers=((2,), (3,)))
    listwise = make_group("list", answers=((4,), (5,), (4, 5)), rewards=(1.0, 1.0, -3.0))
    unpaired = make_group("kto", answers=((4,),), desirable=0)
    check_groups([make_group(), full, one_token_of_room, listwise, unpaired], VOCAB, CONTEXT)
    check_groups([], VOCAB, CONTEXT)


@pytest.mark.parametrize(
    ("group", "rule"),
    [
        (make_group("x", prompt=()), r"prompt=\[\]"),
        (make_group("x", answers=((4,), ())), r"answer=\[\]"),
        (make_group("x", answers=((4, 5), (4, 5))), "0=1"),
        (make_group("x", answers=((4,), (5,), (4,))), "0=2"),
        (make_group("x", prompt=(1,) * 10), r"prompt [a-z]+ max_length=10"),
        (make_group("x", answers=((4,), (5,) * 8)), r"prompt \+ answer [a-z]+ max_length=10"),
        (make_group("x", answers=((5,) * 8, (4,))), r"prompt \+ answer [a-z]+ max_length=10"),
        (make_group("x", answers=((50,), (4,))), r"\b50"),
        (make_group("x", answers=((4,), (-1,))), r"\b50"),
        (make_group("x", prompt=(1, 50)), r"\b50"),
        (make_group("x", rewards=(1.0, math.nan)), r"\breward"),
        (make_group("x", rewards=(math.inf, 0.0)), r"\breward"),
        (make_group("x", rewards=(1.0,)), r"\breward"),
        (make_group("x", desirable=3), r"desirable=3 [a-z]+ 2\b"),
        (make_group("x", desirable=-1), r"desirable=-1 [a-z]+ 2\b"),
    ],
)
def test_each_rule_names_itself_and_the_group(group: PreferenceGroup, rule: str) -> None:
    message = refusal(make_group("good"), group)
    assert re.fullmatch(rf"[^:;]*{rule}[^:;\d]*: {re.escape(group.group_id)}\. .*pairs\.parquet", message)


def test_a_group_without_answers_is_refused() -> None:
    message = refusal(make_group("x", answers=(), desirable=0))
    assert re.match(r"answer=\[\][^:]*: x:\. ", message)


def test_a_group_given_twice_is_refused_but_another_pair_of_the_prompt_is_not() -> None:
    group = make_group("x")
    assert re.match(r"[^:]+: x:0>1\. ", refusal(group, make_group("y"), group))
    other = PreferenceGroup(group.prompt, group.completions[::-1], group.rewards)
    check_groups([group, make_group("y"), other], VOCAB, CONTEXT)


def test_one_message_holds_every_broken_rule_and_id() -> None:
    message = refusal(
        make_group("a", prompt=()),
        make_group("b"),
        make_group("c", prompt=(), rewards=(0.0, math.nan)),
        make_group("d", answers=((4,), (4,))),
    )
    assert re.fullmatch(
        r"prompt=\[\][^:]*: a:0>1, c:0>1; [^:]*reward: c:0>1; [^:]*0=1: d:0>1\. .*pairs\.parquet", message
    )


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_ids_beyond_eight_are_counted(extra: int) -> None:
    message = refusal(*(make_group(f"id{i}", prompt=()) for i in range(SHOWN + extra)))
    assert SHOWN == 8
    listed = ", ".join(f"id{i}:0>1" for i in range(8))
    more = rf" [a-z]+ {extra} [a-z]+" if extra else ""
    assert re.match(rf"[^:]+: {listed}{more}\. ", message)


GROUPS = [make_group("a"), make_group("b", answers=((4,), (5,), (6,)))]
GOOD = [ReferenceLogprobs("a:0>1", (-1.0, -2.0)), ReferenceLogprobs("b:0>1>2", (-1.0, -2.0, 0.0), -4.0)]


def reference_refusal(references: list[ReferenceLogprobs]) -> str:
    with pytest.raises(ValueError) as caught:
        check_references(GROUPS, references)
    return str(caught.value)


def test_good_references_pass() -> None:
    check_references(GROUPS, GOOD)


@pytest.mark.parametrize(
    "references",
    [GOOD[::-1], GOOD[:1], [*GOOD, GOOD[0]], [GOOD[0], ReferenceLogprobs("b:1>0>2", (0.0,) * 3)]],
)
def test_references_of_other_groups_are_refused(references: list[ReferenceLogprobs]) -> None:
    assert "reference.parquet" in reference_refusal(references)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((-1.0,), (0.0,) * 3, r"1 [^:]* 2 [^:]*: a:0>1\. "),
        ((-1.0, -2.0), (0.0,) * 4, r"4 [^:]* 3 [^:]*: b:0>1>2\. "),
        ((-1.0, math.nan), (0.0,) * 3, r"[^:\d]+: a:0>1\. "),
        ((-math.inf, 0.0), (0.0, math.nan, 0.0), r"[^:\d]+: a:0>1, b:0>1>2\. "),
    ],
)
def test_unusable_references_are_named(
    first: tuple[float, ...], second: tuple[float, ...], message: str
) -> None:
    found = reference_refusal([ReferenceLogprobs("a:0>1", first), ReferenceLogprobs("b:0>1>2", second)])
    assert re.match(message, found)


def test_a_non_finite_mismatched_reference_is_named() -> None:
    bad = ReferenceLogprobs("a:0>1", (-1.0, -2.0), math.nan)
    assert re.match(r"[^:\d]+: a:0>1\. ", reference_refusal([bad, GOOD[1]]))
