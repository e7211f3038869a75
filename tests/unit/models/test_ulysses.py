"""Ranks that share a row compute what one rank computes of it alone, and their gradients add up to that one's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.gloo import on_ranks
from tests.tiny import make_model, make_reward, tiny_run
from tests.unit.models.test_attention import (
    GROUPS,
    PACKED,
    PADDED,
    answer_weights,
    assert_same_gradients,
    make_config,
    packed_gradients,
    save,
)
from ultramed_rl.config import parse_config
from ultramed_rl.config.base import Problems
from ultramed_rl.learning.packing import AnswerGroup, pack_groups, pack_sequences
from ultramed_rl.models.attention import SegmentLayout, check_sharing, segment_attention
from ultramed_rl.models.checks import check_models
from ultramed_rl.models.load import load_policy, load_reward
from ultramed_rl.models.ulysses import RowShare

# -- the cut -----------------------------------------------------------------------------------------------


class Ranks:
    """As many as `count`, of which this is one; they say nothing to each other."""

    def __init__(self, number: int, count: int) -> None:
        self.rank, self.size = lambda: number, lambda: count


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(2, 5))
def test_parts_tile_the_row_and_every_prediction_has_one_rank(answers: list[int], count: int) -> None:
    batch = pack_groups([AnswerGroup([7] * n, [[8] * n, [9]]) for n in answers])
    parts: list[Any] = [RowShare.of(batch, Ranks(rank, count)) for rank in range(count)]  # type: ignore[arg-type]
    assert len({part.input_ids.shape[1] for part in parts}) == 1
    whole = torch.cat([part.input_ids for part in parts], 1)
    added = whole.shape[1] - batch.tokens
    assert 0 <= added < count
    assert torch.equal(whole[:, : batch.tokens], batch.input_ids)
    positions = torch.cat([part.position_ids for part in parts], 1)
    assert torch.equal(positions[:, : batch.tokens], batch.position_ids)
    for part in parts:
        assert part.segments[: len(batch.segments)] == batch.segments
        assert sum(s.queries for s in part.segments) == whole.shape[1]
    owned = [part.owned(batch.places) for part in parts]
    assert sorted(index for own, _ in owned for index in own.tolist()) == list(range(len(batch.targets)))
    for part, (own, where) in zip(parts, owned, strict=True):
        assert (where + part.start).tolist() == batch.predictors[own].tolist()


def test_an_answer_that_is_cut_by_hand() -> None:
    """prompt 1 2 3, answer 4 5 6 7: 3 predicts 4, and is the second rank's; the last token predicts nothing."""
    batch = pack_groups([AnswerGroup([1, 2, 3], [[4, 5, 6, 7]])])
    first, second, third, fourth = (RowShare.of(batch, Ranks(rank, 4)) for rank in range(4))  # type: ignore[arg-type]
    assert [part.input_ids.tolist() for part in (first, second, third, fourth)] == [
        [[1, 2]], [[3, 4]], [[5, 6]], [[7, 0]],
    ]  # fmt: skip
    found = [[x.tolist() for x in part.owned(batch.places)] for part in (first, second, third, fourth)]
    assert found == [[[], []], [[0, 1], [0, 1]], [[2, 3], [0, 1]], [[], []]]


# -- attention ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "keys", "count"), [(4, 4, 2), (4, 2, 2), (4, 2, 4), (4, 1, 4), (6, 3, 2), (12, 6, 4), (8, 2, 4)]
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_share_of_the_heads_sees_what_all_heads_see(
    heads: int, keys: int, count: int, precision: torch.dtype
) -> None:
    """Also where key heads are fewer than ranks, or don't divide into shares."""
    torch.manual_seed(0)
    batch = pack_groups([GROUPS[0], GROUPS[2], AnswerGroup([5, 6, 7], [[8, 9]])])
    tokens = batch.tokens
    assert tokens == 32  # which 2 and 4 divide
    whole = [torch.randn(1, n, tokens, 8, dtype=precision) for n in (heads, keys, keys)]
    for x in whole:
        x.requires_grad_()
    towards = torch.randn(1, tokens, heads, 8, dtype=precision)
    module = torch.nn.Module()
    expected, _ = segment_attention(module, *whole, None, segments=SegmentLayout(batch.segments))
    expected.backward(towards)

    def share(ranks: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        size = tokens // count
        own = slice(ranks.rank() * size, (ranks.rank() + 1) * size)
        parts = [x.detach()[:, :, own].requires_grad_() for x in whole]
        found, _ = segment_attention(module, *parts, None, segments=SegmentLayout(batch.segments, ranks))
        found.backward(towards[:, own])
        return found.detach(), [x.grad for x in parts]

    results = on_ranks(count, share)
    tolerance = {"atol": 1e-5, "rtol": 0.0} if precision == torch.float32 else {"atol": 5e-2, "rtol": 2e-2}
    torch.testing.assert_close(torch.cat([found for found, _ in results], 1), expected, **tolerance)
    for place, x in enumerate(whole):
        gradients: list[Any] = [own[place] for _, own in results]
        torch.testing.assert_close(torch.cat(gradients, 2), x.grad, **tolerance)


# -- models ------------------------------------------------------------------------------------------------


_FAMILIES = (
    *("llama", "llama-tied", "qwen2", "qwen3", "gemma", "gemma3-window", "gpt2", "qwen3-moe", "phi3"),
    *("deepseek", "gemma2-window", "gpt-oss-window", "mixtral-window"),
)


@pytest.mark.parametrize(
    ("name", "checkpointing"), [*((name, False) for name in _FAMILIES), ("llama", True), ("qwen3", True)]
)
def test_logprobs_are_a_whole_models_on_each_rank_and_gradients_add_up(
    tmp_path: Path, name: str, checkpointing: bool
) -> None:
    path, batch = save(tmp_path, *PACKED[name]), pack_groups(GROUPS)
    policy = load_policy(path, "float32")
    expected, gradients = policy(batch).detach(), packed_gradients(policy)
    for count in (2, 4):
        policies = [load_policy(path, "float32").train() for _ in range(count)]

        def share(ranks: Any, policies: list[Any] = policies) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            own = policies[ranks.rank()]
            own.share_rows(ranks)
            if checkpointing:
                own.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            return own(batch).detach(), packed_gradients(own)

        results = on_ranks(count, share)
        for logprobs, _ in results:
            torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0.0)
        # An expert that no token of a rank's was for has no gradient there.
        added = {
            key: sum((own[key] for _, own in results if key in own), torch.zeros_like(value))
            for key, value in gradients.items()
        }
        assert_same_gradients(added, gradients)


def test_rewards_are_a_whole_models_on_each_rank_and_gradients_add_up(tmp_path: Path) -> None:
    path = str(make_reward(tmp_path))
    batch = pack_groups(GROUPS)

    def learn(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        rewards = model(batch)
        (rewards @ answer_weights()).backward()
        return rewards.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    expected, gradients = learn(load_reward(path, "float32"))
    models = [load_reward(path, "float32") for _ in range(4)]

    def share(ranks: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        models[ranks.rank()].share_rows(ranks)
        return learn(models[ranks.rank()])

    results = on_ranks(4, share)
    for rewards, _ in results:
        torch.testing.assert_close(rewards, expected, atol=1e-5, rtol=0.0)
    added = {name: sum(own[name] for _, own in results) for name in gradients}
    assert_same_gradients(added, gradients)  # type: ignore[arg-type]


def test_ranks_without_a_prediction_of_their_own_have_the_others(tmp_path: Path) -> None:
    """Two tokens for four ranks; and a chat of which only the end is learnt."""
    policies = [load_policy(save(tmp_path, *PACKED["llama"]), "float32") for _ in range(5)]
    long = pack_sequences([([5 + i % 80 for i in range(40)], [i > 36 for i in range(40)])])
    for batch in (pack_groups([AnswerGroup([5], [[6]])]), long):
        expected = policies[4](batch).detach()

        def share(ranks: Any, batch: Any = batch) -> torch.Tensor:
            policies[ranks.rank()].share_rows(ranks)
            logprobs = policies[ranks.rank()](batch)
            logprobs.sum().backward()
            found: torch.Tensor = logprobs.detach()
            return found

        for logprobs in on_ranks(4, share):
            torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0.0)


# -- what cannot be shared ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "count", "said"),
    [
        ("llama", {}, 3, "4"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 2, "dynamic"),
        ("bloom", {}, 2, "bloom"),
    ],
)
def test_a_model_whose_rows_cannot_be_shared_is_named(
    name: str, changes: dict[str, Any], count: int, said: str
) -> None:
    kind, own = {**PACKED, **PADDED}[name][:2]
    with pytest.raises(ValueError) as refusal:
        check_sharing(make_config(kind, {**own, **changes}), count, "/models/mine")
    message = str(refusal.value)
    assert message.startswith(f"sequence_parallel={count}: /models/mine: ") and said in message


def test_a_model_of_its_own_code_is_padded_and_not_shared() -> None:
    check_sharing(make_config("llama", {}), 4, "mine")
    with pytest.raises(ValueError, match="sequence_parallel=4"):
        check_sharing(make_config("llama", {}), 4, "mine", packed=False)


def test_a_run_whose_models_rows_cannot_be_shared_is_refused_before_it_starts(tmp_path: Path) -> None:
    make_model(tmp_path / "policy", "phimoe")
    make_model(tmp_path / "reward", "qwen3", classifier=True)
    three = {"replicas": 3, "sequence_parallel": 3}
    changes = {"policy__max_length": 64, "prompts__max_prompt_tokens": 32}
    run = tiny_run(
        tmp_path, **changes, cluster__policy={"ranks": 2, "sequence_parallel": 2}, cluster__reward=three
    )
    with pytest.raises(Problems) as refusal:
        check_models(parse_config(run))
    policy, reward = sorted(refusal.value.problems)
    assert policy.startswith("cluster.policy.sequence_parallel=2: ") and "phimoe" in policy
    assert reward.startswith("cluster.reward.sequence_parallel=3: ") and "4" in reward
