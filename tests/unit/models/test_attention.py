"""Packed answers have the logprobs, rewards and gradients of the separate sequences prompt + answer.

The other side of every comparison is transformers' own model on one unpadded sequence at a time.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import FAMILIES
from ultramed_rl.learning.packing import AnswerGroup, pack_groups, sum_by_answer
from ultramed_rl.models.attention import SEGMENTS, SHORT, SegmentLayout, segment_attention, why_not_packed
from ultramed_rl.models.load import PolicyModel, load_policy, load_reward

VOCAB = 97
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# name: (transformers' model type, changes to SHAPE)
PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "qwen2-window-above": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "gemma": ("gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "gemma3-window": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"],
            "query_pre_attn_scalar": 9,
        },
    ),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),  # its configuration asks for dropout, which is switched off
    "dropout": ("llama", {"attention_dropout": 0.1}),
    "qwen3-moe": (
        "qwen3_moe",
        {"head_dim": 16, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2},
    ),
    "mixtral-window": ("mixtral", {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek": ("deepseek_v3", FAMILIES["deepseek_v3"] | {"hidden_size": 32, "v_head_dim": 12}),
    "gemma2-window": (
        "gemma2",
        {
            "head_dim": 16,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"],
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gpt-oss-window": (
        "gpt_oss",
        {
            "head_dim": 16,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
    ),
}
# name: (transformers' model type, changes, what the reason names)
PADDED: dict[str, tuple[str, dict[str, Any], str]] = {
    "falcon-alibi": ("falcon", {"alibi": True}, "falcon"),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}, "bloom"),
    "lfm2": (
        "lfm2",
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        "lfm2",
    ),
    "nemotron": ("nemotron", {}, "nemotron"),  # hands no keywords on to its layers
    "granite": ("granite", {"logits_scaling": 4.0, "attention_multiplier": 0.5}, "granite"),
    "cohere": ("cohere", {"logit_scale": 0.25}, "cohere"),
    "jetmoe": (
        "jetmoe",
        {"kv_channels": 8, "num_key_value_heads": 2, "num_local_experts": 2},
        "jetmoe",
    ),
}

GROUPS = [
    AnswerGroup([5, 6, 7, 8, 9, 10, 11], [[12, 13, 14], [15, 3, 4, 16, 17]]),
    AnswerGroup([18, 19, 20], [[21]]),
    AnswerGroup([22, 23, 24, 25, 26], [[27, 28], [29, 30, 31, 32], [33]]),
]


def make_config(kind: str, changes: dict[str, Any], **more: Any) -> Any:
    from transformers import AutoConfig

    shape = GPT2 if kind == "gpt2" else SHAPE
    return AutoConfig.for_model(kind, **{**shape, **changes, **more})


def randomise(model: Any) -> None:
    """Every parameter, biases and norms too, at a scale that makes attention and logits far from uniform."""
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.dim() == 1 else 1.2 / parameter.shape[-1] ** 0.5
            parameter.add_(torch.randn_like(parameter) * spread)


def save(folder: Path, kind: str, changes: dict[str, Any]) -> str:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(kind, changes))
    randomise(model)
    model.save_pretrained(folder)
    return str(folder)


def plain_model(path: str) -> Any:
    """Falcon's eager attention adds alibi twice (transformers 5.15), its SDPA once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    attention = "sdpa" if AutoConfig.from_pretrained(path).model_type == "falcon" else "eager"
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=attention
    ).eval()


def plain_logprobs(lm: Any, groups: list[AnswerGroup]) -> list[torch.Tensor]:
    """Logprobs of each answer's tokens, by one unpadded forward pass of the whole model for each."""
    found = []
    for group in groups:
        for answer in group.answers:
            ids = torch.tensor([[*group.prompt, *answer]])
            logprobs = torch.log_softmax(lm(input_ids=ids, use_cache=False).logits[0].float(), -1)
            places = torch.arange(len(group.prompt) - 1, ids.shape[1] - 1)
            found.append(logprobs[places, torch.tensor(answer)])
    return found


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def packed_gradients(policy: PolicyModel) -> dict[str, torch.Tensor]:
    batch = pack_groups(GROUPS)
    sums = sum_by_answer(policy(batch), batch)
    return gradients(policy.lm, sums @ answer_weights())


def answer_weights() -> torch.Tensor:
    return torch.tensor([1.0, -0.7, 0.3, 2.0, -1.1, 0.5])


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Of every parameter: within 1e-5 of its largest entry, and of its norm."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = found[name] - gradient
        assert float(gradient.norm()) > 0, name
        assert float(difference.abs().max() / gradient.abs().max()) <= 1e-5, name
        assert float(difference.norm() / gradient.norm()) <= 1e-5, name


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folder of a model by name; each is made once."""

    @functools.cache
    def make(name: str) -> str:
        kind, changes = (PADDED if name in PADDED else PACKED)[name][:2]
        return save(tmp_path_factory.mktemp(name), kind, changes)

    return make


@pytest.mark.parametrize("name", PACKED)
def test_packed_logprobs_and_gradients_equal_those_of_separate_sequences(
    saved: Callable[[str], str], name: str
) -> None:
    policy, plain = load_policy(saved(name), "float32"), plain_model(saved(name))
    assert policy.lm.config._attn_implementation == SEGMENTS

    expected = plain_logprobs(plain, GROUPS)
    batch = pack_groups(GROUPS)
    found = policy(batch)
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0.0)
    assert float(found.detach().std()) > 0.3  # the test would see a wrong token

    loss = torch.stack([x.sum() for x in expected]) @ answer_weights()
    assert_same_gradients(packed_gradients(policy), gradients(plain, loss))


@pytest.mark.parametrize("name", ["llama", "mistral-window", "qwen3"])
def test_gradient_checkpointing_changes_no_gradient(saved: Callable[[str], str], name: str) -> None:
    policy, plain = load_policy(saved(name), "float32"), plain_model(saved(name))
    policy.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy.train()
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    policy.lm.get_decoder().layers[0].mlp.register_forward_pre_hook(count)
    loss = torch.stack([x.sum() for x in plain_logprobs(plain, GROUPS)]) @ answer_weights()
    assert_same_gradients(packed_gradients(policy), gradients(plain, loss))
    assert calls == 2  # computed again in backward: checkpointing was on


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_an_answers_logprobs_do_not_depend_on_its_place_in_the_pack(
    saved: Callable[[str], str], name: str
) -> None:
    policy = load_policy(saved(name), "float32").eval()

    @torch.no_grad()
    def by_answer(groups: list[AnswerGroup]) -> dict[tuple[int, ...], torch.Tensor]:
        batch = pack_groups(groups)
        parts = policy(batch).split(batch.lengths.tolist())
        keys = [(*g.prompt, *a) for g in groups for a in g.answers]
        return dict(zip(keys, parts, strict=True))

    expected = by_answer(GROUPS)
    others = {
        "groups": [GROUPS[2], GROUPS[0], GROUPS[1]],
        "answers": [AnswerGroup(g.prompt, list(g.answers)[::-1]) for g in GROUPS],
        "both": [AnswerGroup(g.prompt, list(g.answers)[::-1]) for g in GROUPS[::-1]],
        "apart": [AnswerGroup(g.prompt, [a]) for g in GROUPS for a in g.answers],
    }
    for order, groups in others.items():
        found = by_answer(groups)
        assert found.keys() == expected.keys()
        for key, logprobs in expected.items():
            torch.testing.assert_close(found[key], logprobs, atol=1e-5, rtol=0.0, msg=order)


def test_an_answer_sees_neither_its_sibling_nor_another_group(saved: Callable[[str], str]) -> None:
    policy = load_policy(saved("llama"), "float32")
    embedded: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    policy.lm.get_input_embeddings().register_forward_hook(keep)
    batch = pack_groups(GROUPS)
    sums = sum_by_answer(policy(batch), batch)
    sums[1].backward()  # the second answer of the first group: places 10 .. 14
    touched = embedded[0].grad[0].abs().sum(-1).nonzero().flatten().tolist()
    assert touched == [*range(7), *range(10, 14)]  # its last token predicts nothing


@pytest.mark.parametrize("name", PADDED)
def test_models_that_cannot_pack_say_why_and_give_the_logprobs_of_separate_sequences(
    saved: Callable[[str], str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="ultramed_rl"):
        policy = load_policy(saved(name), "float32").eval()
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("ultramed_rl")]
    kind, _, reason = PADDED[name]
    assert kind in message and reason in message and "\n" not in message
    assert policy.lm.config._attn_implementation != SEGMENTS

    plain = plain_model(saved(name))
    expected = plain_logprobs(plain, GROUPS)
    torch.testing.assert_close(policy(pack_groups(GROUPS)), torch.cat(expected), atol=1e-5, rtol=0.0)
    loss = torch.stack([x.sum() for x in expected]) @ answer_weights()
    assert_same_gradients(packed_gradients(policy), gradients(plain, loss))


def test_a_model_that_packs_warns_of_nothing(
    saved: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="ultramed_rl"):
        load_policy(saved("llama"), "float32")
    assert not [r for r in caplog.records if r.name.startswith("ultramed_rl")]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "nemotron"])
def test_packed_rewards_equal_the_classifiers_own(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    changes = PADDED[kind][1] if kind in PADDED else {}
    config = make_config(kind, changes, num_labels=1)
    classifier = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    randomise(classifier)
    classifier.save_pretrained(tmp_path)
    reward = load_reward(str(tmp_path), "float32").eval()
    assert (reward.lm.config._attn_implementation == SEGMENTS) == (kind != "nemotron")

    with torch.no_grad():
        sequences = [[*g.prompt, *a] for g in GROUPS for a in g.answers]
        expected = [classifier(input_ids=torch.tensor([ids])).logits[0, 0] for ids in sequences]
        found = reward(pack_groups(GROUPS))
    assert found.shape == (6,) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0.0)
    assert float(found.std()) > 0.1


@pytest.mark.parametrize("name", PACKED)
def test_there_is_no_reason_against_models_that_pack(name: str) -> None:
    assert reason_against(*PACKED[name]) is None


@pytest.mark.parametrize("name", PADDED)
def test_the_reason_against_packing_names_the_model_and_the_cause(name: str) -> None:
    kind, changes, words = PADDED[name]
    reason = reason_against(kind, changes)
    assert reason is not None and words in reason


# An attention that needs more than keys, or state: model types that must never slip in.
REFUSED = ["granitemoehybrid", "qwen3_next", "minimax", "mimo_v2_flash", "llama4_text", "mamba"]


@pytest.mark.parametrize("kind", REFUSED)
def test_attention_that_needs_more_than_keys_is_refused(kind: str) -> None:
    reason = reason_against(kind, {}, default_shape=True)
    assert reason is not None and kind in reason


def reason_against(kind: str, changes: dict[str, Any], default_shape: bool = False) -> str | None:
    from transformers import AutoConfig

    return why_not_packed(
        AutoConfig.for_model(kind, **changes) if default_shape else make_config(kind, changes)
    )


def test_segment_attention_by_hand() -> None:
    """Queries and keys of zeros: every output is the mean of the values it may see."""
    batch = pack_groups([AnswerGroup([1, 2], [[3, 4], [5]]), AnswerGroup([6], [[7]])])
    layout = SegmentLayout(batch.segments)
    zeros = torch.zeros(1, 2, 7, 4)
    value = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]).view(1, 1, 7, 1).expand(1, 1, 7, 4)

    def attend(window: int | None) -> list[float]:
        output, _ = segment_attention(
            torch.nn.Module(), zeros, zeros[:, :1], value, None, sliding_window=window, segments=layout
        )
        assert output.shape == (1, 7, 2, 4)
        assert torch.equal(output, output[:, :, :1, :1].expand_as(output))
        return [round(x, 4) for x in output[0, :, 0, 0].tolist()]

    assert attend(None) == [1.0, 1.5, round(7 / 3, 4), 3.75, round(19 / 3, 4), 32.0, 48.0]
    # A window of two: itself and the one before it in its own sequence.
    assert attend(2) == [1.0, 1.5, 3.0, 6.0, 9.0, 32.0, 48.0]


@pytest.mark.parametrize("longest", [12, SHORT + 44])
def test_bfloat16_gives_the_exact_attention_and_gradients_to_its_own_rounding(longest: int) -> None:
    half = [1] * (longest // 2)
    segments = pack_groups([AnswerGroup(half, [half, [1, 1, 1]]), AnswerGroup([1, 1], [[1, 1]])]).segments
    generator, size = torch.Generator().manual_seed(0), segments[-1].stop
    shapes = [(1, heads, size, 16) for heads in (4, 2, 2)]
    inputs = [torch.randn(s, generator=generator).bfloat16().requires_grad_() for s in shapes]
    upstream = torch.randn(1, size, 4, 16, generator=generator).bfloat16()
    output, _ = segment_attention(torch.nn.Module(), *inputs, None, segments=SegmentLayout(segments))
    assert output.dtype == torch.bfloat16
    found = [output, *torch.autograd.grad(output, inputs, upstream)]

    seen = torch.zeros(size, size, dtype=torch.bool)
    for s in segments:
        seen[s.start : s.stop, s.prefix_start : s.prefix_stop] = True
        seen[s.start : s.stop, s.start : s.stop] = torch.ones(s.queries, s.queries).tril().bool()
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    query, key, value = doubles[0], *(x.repeat_interleave(2, 1) for x in doubles[1:])
    weights = (query @ key.mT / 16**0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    exact = (weights @ value).transpose(1, 2)
    expected = [exact, *torch.autograd.grad(exact, doubles, upstream.double())]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs).norm() < 2**-7 * theirs.norm()  # half a step of bfloat16 is 2**-9


def test_attention_dropout_and_a_missing_layout_are_refused() -> None:
    zeros = torch.zeros(1, 1, 2, 4)
    with pytest.raises(AssertionError, match="segments=None"):
        segment_attention(torch.nn.Module(), zeros, zeros, zeros, None)
    layout = SegmentLayout(pack_groups([AnswerGroup([1], [[2]])]).segments)
    with pytest.raises(AssertionError, match=r"dropout=0\.1"):
        segment_attention(torch.nn.Module(), zeros, zeros, zeros, None, dropout=0.1, segments=layout)


def test_keys_of_segments_for_the_fused_kernel_by_hand() -> None:
    layout = SegmentLayout(
        pack_groups([AnswerGroup([1, 2], [[3, 4], [5]]), AnswerGroup([6], [[7]])]).segments
    )
    cpu = torch.device("cpu")
    assert layout.key_places(cpu).tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4, 5, 5, 6]
    queries, keys, longest_query, longest_key = layout.offsets(cpu)
    assert queries.tolist() == [0, 2, 4, 5, 6, 7] and keys.tolist() == [0, 2, 6, 9, 10, 12]
    assert queries.dtype == keys.dtype == torch.int32
    assert (longest_query, longest_key) == (2, 4)
