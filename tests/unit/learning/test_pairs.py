"""Pair selection: rules by hand, each audit count by hand, and the invariants over random rounds."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ultramed_rl.learning.pairs import RULES, PairSelector
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ScoredCompletion, SelectionAudit

NAN = math.nan


def score(rewards: list[float], texts: list[str] | None = None, name: str = "p") -> list[ScoredCompletion]:
    """Samples 0, 1, ... of a prompt; a text of k characters has k tokens."""
    texts = texts or [f"t{i}" for i in range(len(rewards))]
    return [
        ScoredCompletion(Completion(name, i, text, tuple(map(ord, text)), "stop", 0.0, 0), reward)
        for i, (reward, text) in enumerate(zip(rewards, texts, strict=True))
    ]


def select(
    scored: list[ScoredCompletion], names: str = "p", **changes: Any
) -> tuple[list[PreferenceGroup], SelectionAudit]:
    rule: dict[str, Any] = {"rejected": "worst", "min_margin": 0.0, "max_length_ratio": None, "seed": 0}
    selector = PairSelector(**{**rule, "round_index": 0, **changes})
    found = [
        selector.choose(Prompt(name, ()), [s for s in scored if s.completion.prompt_id == name])
        for name in names
    ]
    return [pair for pair in found if pair is not None], selector.audit


def samples(scored: list[ScoredCompletion], **changes: Any) -> tuple[int, int]:
    ((pair,), _) = select(scored, **changes)
    return pair.chosen.sample, pair.rejected.sample


def test_worst_takes_the_extremes_and_the_lowest_sample_of_equals() -> None:
    assert samples(score([1.0, 3.0, 0.0, 3.0, 0.0])) == (1, 2)
    assert samples(score([1.0, 3.0, 0.0, 3.0, 0.0])[::-1]) == (1, 2)


def test_near_low_takes_the_one_nearest_to_two_sigma_below() -> None:
    # 34 rewards, mean 0, sum of squares 902, sigma 5.151, target -10.30. -9 is 1.30 off, -20 is 9.70 off.
    scored = score([-20.0, -9.0, *[0.0] * 30, 14.0, 15.0])
    assert samples(scored, rejected="near_low") == (33, 1)
    assert samples(scored, rejected="worst") == (33, 0)
    # Mean 1, population sigma sqrt(2/3) = 0.816, target -0.633: below all of them.
    assert samples(score([1.0, 0.0, 2.0]), rejected="near_low") == (2, 1)


def test_random_depends_on_the_prompt_and_the_round_but_not_on_the_order() -> None:
    rewards = [float(r) for r in range(20)]
    one, other = score(rewards, name="a"), score(rewards, name="b")
    (a, b), _ = select(one + other, "ab", rejected="random")
    (b_again, a_again), _ = select(other[::-1] + one, "ba", rejected="random")
    assert (a, b) == (a_again, b_again)
    drawn = {samples(score(rewards), rejected="random", round_index=i)[1] for i in range(200)}
    assert drawn == set(range(19))  # all the lower-ranked, never the chosen


@pytest.mark.parametrize(
    ("scored", "changes", "count"),
    [
        (score([1.0, 1.0, 1.0]), {}, "tied"),
        (score([2.0, 1.0], ["same", " same\n"]), {}, "identical"),
        (score([1.0, 0.75]), {"min_margin": 0.5}, "small_margin"),
        (score([1.0, 0.5]), {"min_margin": 0.5}, "pairs"),
        (score([1.0, 0.5], ["abcdef", "abc"]), {"max_length_ratio": 2.0}, "pairs"),
        (score([1.0, 0.5], ["abc", "abcdefg"]), {"max_length_ratio": 2.0}, "length_ratio"),
        (score([1.0, 0.5], ["abc", ""]), {"max_length_ratio": 9.0}, "length_ratio"),
        (
            score([1.0, 0.75], ["abc", "abcdefg"]),
            {"max_length_ratio": 2.0, "min_margin": 0.5},
            "small_margin",
        ),
        (score([1.0, NAN]), {}, "non_finite"),
        (score([math.inf, -math.inf]), {}, "non_finite"),
        (score([NAN, 1.0, 0.0]), {}, "pairs"),
        (score([1.0]), {}, "too_few"),
        (score([1.0, 0.0], ["", "  "]), {}, "too_few"),
        (score([1.0, 0.0], ["", "text"]), {}, "tied"),  # only the empty one could be preferred
    ],
)
def test_each_prompt_is_in_one_count(
    scored: list[ScoredCompletion], changes: dict[str, Any], count: str
) -> None:
    pairs, audit = select(scored, **changes)
    assert audit == SelectionAudit(**{"prompts": 1, "pairs": 0, count: 1})
    assert len(pairs) == audit.pairs


def test_empty_text_is_never_chosen_but_may_be_rejected() -> None:
    assert samples(score([9.0, 2.0, 1.0], ["", "good", "poor"])) == (1, 2)
    assert samples(score([2.0, 1.0, -1.0], ["good", "poor", " "])) == (0, 2)


def test_duplicates_of_the_chosen_text_are_passed_over() -> None:
    assert samples(score([3.0, 2.0, 0.0], ["same", "other", "same "])) == (0, 1)


def test_infinite_rewards_are_set_aside() -> None:
    assert samples(score([math.inf, 1.0, 0.0, -math.inf])) == (1, 2)


def test_margin_and_order_of_prompts() -> None:
    pairs, audit = select(score([1.0, 0.0], name="b") + score([0.0, 2.5], name="a"), "ab")
    assert [p.prompt.prompt_id for p in pairs] == ["a", "b"]
    assert [p.margin for p in pairs] == [2.5, 1.0]
    assert (audit.prompts, audit.pairs) == (2, 2)


@pytest.mark.parametrize(
    ("scored", "names", "changes", "said"),
    [
        (score([1.0, 0.0]), "px", {}, r"\bx\b"),
        (score([1.0]) + score([1.0]), "p", {}, r"'p', 0"),
        (score([1.0]), "p", {"rejected": "best"}, "rejected='best': .*worst, random, near_low"),
    ],
)
def test_mistakes_of_ours(
    scored: list[ScoredCompletion], names: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(AssertionError, match=said):
        select(scored, names, **changes)


def test_an_answer_of_another_prompt_is_refused() -> None:
    selector = PairSelector(rejected="worst", min_margin=0.0, max_length_ratio=None, seed=0, round_index=0)
    with pytest.raises(AssertionError, match=r"'y', 0\b.*\bp\b"):
        selector.choose(Prompt("p", ()), score([1.0, 0.0], name="y"))


rewards = st.one_of(st.integers(-2, 2).map(float), st.floats(-1e6, 1e6), st.sampled_from([NAN, math.inf]))
candidate = st.tuples(rewards, st.text("ab ", max_size=4))


@given(
    st.lists(st.lists(candidate, min_size=1, max_size=6), max_size=5),
    st.sampled_from(RULES),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([None, 1.5]),
    st.integers(0, 3),
)
def test_invariants(
    groups: list[list[tuple[float, str]]], rule: str, margin: float, ratio: float | None, seed: int
) -> None:
    names = "abcde"[: len(groups)]
    scored = [
        s
        for name, g in zip(names, groups, strict=True)
        for s in score([r for r, _ in g], [t for _, t in g], name)
    ]
    pairs, audit = select(
        scored, names, rejected=rule, min_margin=margin, max_length_ratio=ratio, seed=seed, round_index=1
    )
    counts = asdict(audit)
    assert counts.pop("prompts") == len(groups) == sum(counts.values())
    assert audit.pairs == len(pairs)
    ids = [p.prompt.prompt_id for p in pairs]
    assert ids == sorted(set(ids))
    for p in pairs:
        assert len(p.completions) == 2 and p.rewards[0] > p.rewards[1] and p.margin >= margin
        assert p.chosen.text.strip() and p.chosen.text.strip() != p.rejected.text.strip()
        lengths = sorted((len(p.chosen.token_ids), len(p.rejected.token_ids)))
        assert ratio is None or lengths[1] <= ratio * lengths[0]


def ranking(scored: list[ScoredCompletion], **changes: Any) -> list[tuple[int, float]]:
    """(sample, reward) of the only group."""
    ((group,), _) = select(scored, listwise=True, **changes)
    return [(c.sample, r) for c, r in zip(group.completions, group.rewards, strict=True)]


def test_listwise_keeps_all_finite_answers_best_first() -> None:
    scored = score([1.0, NAN, 3.0, -2.0, 1.5, math.inf])
    assert ranking(scored) == ranking(scored[::-1]) == [(2, 3.0), (4, 1.5), (0, 1.0), (3, -2.0)]
    # Equal rewards stand in the order of their samples; the best may be one of several.
    assert ranking(score([0.0, 2.0, 0.0, 2.0])) == [(1, 2.0), (3, 2.0), (0, 0.0), (2, 0.0)]


def test_listwise_takes_each_text_once() -> None:
    scored = score([1.0, 3.0, 1.0, 3.0, 0.0], ["b", "a", " b", "a\n", "c"])
    assert ranking(scored) == [(1, 3.0), (0, 1.0), (4, 0.0)]


def test_listwise_has_one_wanted_answer_and_takes_no_notice_of_the_rule_for_pairs() -> None:
    scored = score([float(r) for r in (5, 1, 4, 2)])
    groups = [select(scored, listwise=True, rejected=rule)[0] for rule in RULES]
    assert groups[0] == groups[1] == groups[2]
    assert groups[0][0].desirable == 1 and groups[0][0].group_id == "p:0>2>3>1"


@pytest.mark.parametrize(
    ("scored", "changes", "count"),
    [
        (score([1.0, 1.0, 1.0]), {}, "tied"),
        (score([2.0, 1.0], ["same", " same\n"]), {}, "identical"),
        (score([1.0, 0.9, 0.75]), {"min_margin": 0.5}, "small_margin"),
        (score([1.0, 0.9, 0.5]), {"min_margin": 0.5}, "pairs"),
        (score([1.0, 0.5, 0.0], ["abc", "ab", "abcdefg"]), {"max_length_ratio": 2.0}, "length_ratio"),
        (score([1.0, NAN]), {}, "non_finite"),
        (score([1.0]), {}, "too_few"),
        (score([1.0, 0.0], ["", "  "]), {}, "too_few"),
    ],
)
def test_listwise_puts_each_prompt_in_one_count(
    scored: list[ScoredCompletion], changes: dict[str, Any], count: str
) -> None:
    groups, audit = select(scored, listwise=True, **changes)
    assert audit == SelectionAudit(**{"prompts": 1, "pairs": 0, count: 1})
    assert len(groups) == audit.pairs


def test_listwise_never_ranks_an_empty_text_above_an_answer() -> None:
    """A pair drops an empty text that scores above the chosen answer; so must a list."""
    assert ranking(score([9.0, 2.0, 1.0], ["", "good", "poor"])) == [(1, 2.0), (2, 1.0)]
    assert ranking(score([2.0, 1.0, -1.0], ["good", "poor", " "])) == [(0, 2.0), (1, 1.0), (2, -1.0)]


@given(
    st.lists(st.sampled_from(["", "a", "b ", "b", "c"]), min_size=1, max_size=7),
    st.fixed_dictionaries({text: rewards for text in ("", "a", "b", "c")}),
    st.sampled_from([0.0, 0.5]),
)
def test_listwise_invariants(texts: list[str], reward_of: dict[str, float], margin: float) -> None:
    """A text has one reward, as reward models give it."""
    scored = score([reward_of[text.strip()] for text in texts], texts)
    groups, audit = select(scored, listwise=True, min_margin=margin)
    pairs, _ = select(scored, min_margin=margin)
    assert audit.pairs == len(groups) == len(pairs)  # a prompt has a list where it has a pair
    for group, pair in zip(groups, pairs, strict=True):
        assert group.chosen == pair.chosen
        assert list(group.rewards) == sorted(group.rewards, reverse=True)
        assert all(math.isfinite(r) for r in group.rewards) and group.margin >= margin
        kept = [c.text.strip() for c in group.completions]
        assert len(set(kept)) == len(kept) >= 2 and kept[0]
        finite = {t.strip() for t in texts if math.isfinite(reward_of[t.strip()])}
        assert finite - {""} <= set(kept) <= finite
