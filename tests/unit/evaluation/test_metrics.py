"""A round's metrics against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.evaluation.metrics import (
    AnswerMetrics,
    RoundMetrics,
    change_metrics,
    kl_to_reference,
    prompt_means,
    token_rates,
)
from ultramed_rl.records import (
    Completion,
    PreferenceGroup,
    Prompt,
    ReferenceLogprobs,
    ScoredCompletion,
    SelectionAudit,
)
from ultramed_rl.store.tables import write_records


def completion(prompt: str, sample: int, logprob: float = -5.0, **changes: object) -> Completion:
    fields = {"text": "t", "token_ids": (1, 2), "finish_reason": "stop", "policy_version": 0, **changes}
    return Completion(prompt, sample, logprob=logprob, **fields)  # type: ignore[arg-type]


def pair(chosen: Completion, rejected: Completion) -> PreferenceGroup:
    return PreferenceGroup(Prompt("p", ()), (chosen, rejected), (2.0, 0.5))


def test_kl_is_the_mean_log_ratio_without_reference_answers(tmp_path: Path) -> None:
    first = pair(completion("p", 0, -5.0), completion("p", 1, -8.0))
    second = pair(completion("p", 2, 0.0, finish_reason="reference"), completion("p", 3, -2.0))
    references = [
        ReferenceLogprobs(second.group_id, (-50.0, -5.0)),
        ReferenceLogprobs(first.group_id, (-6.0, -8.5)),
    ]
    write_records([first, second], PreferenceGroup, tmp_path / "pairs.parquet")
    write_records(references, ReferenceLogprobs, tmp_path / "reference.parquet")
    # (-5 + 6), (-8 + 8.5), (-2 + 5); the data's own answer was not sampled from the policy.
    assert kl_to_reference(tmp_path) == pytest.approx((1.0 + 0.5 + 3.0) / 3)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(7)), cut=st.integers(1, 7), files=st.integers(1, 4))
def test_kl_is_the_same_however_the_records_lie_in_their_files(
    order: list[int], cut: int, files: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("round")
    pairs = [pair(completion("p", 2 * i, -1.0 * i), completion("p", 2 * i + 1, -2.0)) for i in range(7)]
    references = [ReferenceLogprobs(pairs[i].group_id, (-3.0, -2.0 - i)) for i in order]
    for name, kind, records, size in (
        ("pairs", PreferenceGroup, pairs, cut),
        ("reference", ReferenceLogprobs, references, -(-7 // files)),
    ):
        (folder / f"{name}.parquet").mkdir()
        for number, start in enumerate(range(0, 7, size)):
            write_records(
                records[start : start + size], kind, folder / f"{name}.parquet" / f"{number:06d}.parquet"
            )
    assert kl_to_reference(folder) == pytest.approx(sum((3.0 - i) + i for i in range(7)) / 14)


def test_evaluations_are_compared_prompt_by_prompt() -> None:
    before, after = {"p": 1.0, "q": 4.0, "r": math.nan}, {"q": 3.0, "p": 3.0, "r": 9.0}
    found = change_metrics(before, after, 200, seed=0)
    assert found.pop("change") == pytest.approx((2.0 - 1.0) / 2)
    assert found == {"change_low": -1.0, "change_high": 2.0, "win_rate": 0.5, "prompts": 2.0}
    assert change_metrics({"r": math.nan}, {"r": 9.0}, 200, seed=0) == {}


def test_wins_that_length_buys_are_none_at_equal_length() -> None:
    """Of 40 prompts the 30 with a longer answer are won and the others lost."""
    names = [str(i) for i in range(40)]
    gaps = {name: 10.0 if i < 30 else -10.0 for i, name in enumerate(names)}
    after = {name: gap / 10 for name, gap in gaps.items()}
    found = change_metrics(dict.fromkeys(names, 0.0), after, 200, 0, gaps)
    assert found["win_rate"] == 0.75
    assert found["win_rate_lc"] == pytest.approx(0.5, abs=0.05)


def test_prompt_means_average_finite_samples() -> None:
    scored = [ScoredCompletion(completion("p", i), float(i)) for i in range(3)]
    lost = ScoredCompletion(completion("q", 0), math.inf)
    found = prompt_means([*scored, ScoredCompletion(completion("p", 3), math.nan), lost])
    assert found["p"] == 1.0 and math.isnan(found["q"]) and len(found) == 2


def test_answers_rewards_and_pairs() -> None:
    long = completion("p", 1, token_ids=(1, 2, 3, 4), finish_reason="length", text=" ")
    own = completion("p", 2, token_ids=(1,) * 50, finish_reason="reference")
    scored = [
        ScoredCompletion(completion("p", 0), 2.0, {"model": 1.0, "length": -1.0}),
        ScoredCompletion(long, math.nan, {"model": math.nan, "length": -2.0}),
        ScoredCompletion(own, 5.0, {"model": 4.0, "length": 0.0}),
    ]
    found = RoundMetrics()
    found.add_answers(Prompt("p", (), token_ids=(1, 2, 3)), scored)
    found.add_pair(pair(completion("p", 0), long))
    metrics = found.metrics(SelectionAudit(prompts=3, pairs=1, tied=2))
    expected = {
        "completions": 2,  # the data's own is none
        "tokens": 2 + 4,
        "length_mean": 3.0,
        "finished_share": 0.5,
        "empty_share": 0.5,
        "reward_mean": 3.5,
        "reward_p50": 3.5,
        "reward_non_finite": 1,
        "reward_model_mean": 2.5,
        "reward_length_mean": -1.0,
        "pairs": 1,
        "pairs_tied": 2,
        "margin_mean": 1.5,
        "chosen_length": 2,
        "rejected_length": 4,
        "tokens_scored": 3 + 2 + 4 + 50,
        "tokens_reference": 2 + 4,  # the pair's prompt has no tokens here
    }
    assert {name: metrics[name] for name in expected} == expected
    assert AnswerMetrics(scored).metrics().items() <= metrics.items()


def test_token_rates_are_of_phases_that_were_timed() -> None:
    metrics = {"tokens": 4, "tokens_scored": 7, "tokens_reference": 7}
    assert list(token_rates(metrics, {"completions": 2.0, "scored": 5.0, "pairs": 3.0}).values()) == [
        2.0,
        1.4,
    ]
