"""The kernels of a GPU, called on this CPU through references in plain torch that have their signatures: they get the
segments that the CPU's own attention has, and give its outputs and gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import AuxOutput, AuxRequest, BlockMask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from ultramed_rl.config.cluster import ATTENTION, KERNELS
from ultramed_rl.learning.packing import AnswerGroup, pack_groups, pack_sequences
from ultramed_rl.models.attention import AttentionInputs, SegmentLayout, segment_attention
from ultramed_rl.models.kernels import FLASH, LIGER, check_kernels, fuse_layers, kernel_attention

SHARED = SegmentLayout(
    pack_groups([AnswerGroup([1] * 5, [[1] * 4, [1] * 7]), AnswerGroup([1], [[1, 1]])]).segments
)
WHOLE = SegmentLayout(pack_sequences([([1] * n, [True] * n) for n in (4, 9, 1)]).segments)


def dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hidden: torch.Tensor,
    scale: float,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[H, Q, D], [K, N, D] -> [H, Q, D], and the logs of the sums [H, Q]."""
    key, value = (x.repeat_interleave(len(query) // len(x), 0) for x in (key, value))
    scores = query @ key.mT * scale
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ value, scores.logsumexp(-1)


def varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> torch.Tensor:
    """flash_attn_varlen_func of flash-attn 2.8, as its README defines it."""
    assert (
        q.shape[-1] == k.shape[-1] == v.shape[-1] and cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    )
    assert int(cu_seqlens_k.diff().max()) == max_seqlen_k and int(cu_seqlens_q.diff().max()) == max_seqlen_q
    parts = []
    for queries, keys, values in zip(
        *(
            x.split(ends.diff().tolist())
            for x, ends in ((q, cu_seqlens_q), (k, cu_seqlens_k), (v, cu_seqlens_k))
        ),
        strict=True,
    ):
        distance = torch.arange(len(keys) - len(queries), len(keys))[:, None] - torch.arange(len(keys))
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        if causal or window_size[1] == 0:
            hidden |= distance < 0
        if window_size[0] >= 0:
            hidden |= distance > window_size[0]
        scale = softmax_scale or q.shape[-1] ** -0.5
        parts.append(dense(*(x.transpose(0, 1) for x in (queries, keys, values)), hidden, scale, softcap)[0])
    return torch.cat(parts, 1).transpose(0, 1)


def torch_varlen(
    query: Any, key: Any, value: Any, *limits: Any, scale: Any, window_size: Any, enable_gqa: bool
) -> Any:
    """varlen_attn of torch."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    return varlen(query, key, value, *limits, softmax_scale=scale, window_size=window_size)


def dense_flex(
    query: Any,
    key: Any,
    value: Any,
    *,
    score_mod: Any,
    block_mask: BlockMask,
    scale: float | None,
    **how: Any,
) -> tuple[torch.Tensor, AuxOutput]:
    """flex_attention, which has no backward on a CPU."""
    assert how["return_aux"] == AuxRequest(lse=True) and how["enable_gqa"] == (query.shape[1] != key.shape[1])
    places = torch.arange(query.shape[2])
    seen = block_mask.mask_mod(None, None, places[:, None], places[None, :])
    cap = 0.0 if score_mod is None else float(score_mod(torch.tensor(1e9), 0, 0, 0, 0))
    output, logs = dense(query[0], key[0], value[0], ~seen, scale or query.shape[-1] ** -0.5, cap)
    return output[None], AuxOutput(lse=logs[None], max_scores=None)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Chooses one of the kernels, all of which are references."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", torch_varlen)
    monkeypatch.setattr(
        "transformers.integrations.flex_attention.compile_friendly_flex_attention", dense_flex
    )
    for name, module in FLASH.items():
        fake = ModuleType(module)
        early = name == "flash_attn_3"
        vars(fake)["flash_attn_varlen_func"] = (lambda *a, **k: (varlen(*a, **k), None)) if early else varlen
        monkeypatch.setitem(sys.modules, module, fake)
    yield lambda name: monkeypatch.setenv(ATTENTION, name)


def inputs(layout: SegmentLayout, width: int = 8, value_width: int = 8) -> list[torch.Tensor]:
    generator, size = torch.Generator().manual_seed(0), layout.segments[-1].stop
    shapes = [(1, 4, size, width), (1, 2, size, width), (1, 2, size, value_width)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def results(output: torch.Tensor, given: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output, and the gradients of something that weighs all of it."""
    upstream = torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)
    return [output, *torch.autograd.grad(output, given, upstream)]


@pytest.mark.parametrize("layout", [SHARED, WHOLE], ids=["shared", "whole"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("kernel", ["torch", *FLASH])
def test_every_kernel_gives_the_attention_of_the_cpu(
    kernels: Callable[[str], None],
    kernel: str,
    sinks: bool,
    softcap: float | None,
    window: int | None,
    layout: SegmentLayout,
) -> None:
    kernels(kernel)
    given, fifth = (
        inputs(layout),
        torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64, requires_grad=True),
    )
    aux = fifth if sinks else None
    wanted, _ = segment_attention(
        torch.nn.Module(),
        *given,
        None,
        scaling=0.3,
        sliding_window=window,
        softcap=softcap,
        s_aux=aux,
        segments=layout,
    )
    found = kernel_attention(AttentionInputs(*given, layout, 0.3, window, softcap, aux))
    learnt = [*given, fifth] if sinks else given
    for ours, theirs in zip(results(found, learnt), results(wanted, learnt), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)  # a CPU adds short segments in float32


@pytest.mark.parametrize("kernel", ["torch", *FLASH])
def test_values_may_be_narrower_than_keys(kernels: Callable[[str], None], kernel: str) -> None:
    kernels(kernel)
    given = inputs(SHARED, width=8, value_width=6)
    wanted, _ = segment_attention(torch.nn.Module(), *given, None, segments=SHARED)
    found = kernel_attention(AttentionInputs(*given, SHARED))
    assert found.shape == wanted.shape == (1, SHARED.segments[-1].stop, 4, 6)
    for ours, theirs in zip(results(found, given), results(wanted, given), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("layout", [SHARED, WHOLE], ids=["shared", "whole"])
def test_repeated_keys_give_their_gradients_back_without_a_sort(
    kernels: Callable[[str], None], layout: SegmentLayout
) -> None:
    """An index with brackets goes back by index_put, which on a GPU sorts; and what isn't repeated is not copied."""
    calls: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    kernels("torch")
    given = inputs(layout)
    with Watch():
        results(kernel_attention(AttentionInputs(*given, layout)), given)
    assert not {"index", "index_put", "_index_put_impl_", "sort"} & set(calls)
    repeated = 2 * (layout is SHARED)  # keys, and values
    assert calls.count("index_select") == calls.count("index_add") + calls.count("index_add_") == repeated


@pytest.mark.parametrize("window", [None, 3])
def test_torchs_flex_attention_takes_the_mask_and_the_cap(window: int | None) -> None:
    """The real one, uncompiled: a CPU has it forward alone and without the logs of the sums."""
    query, key, value = (x.detach().float() for x in inputs(SHARED, width=16, value_width=16))
    output = flex_attention(
        query, key, value, block_mask=SHARED.block_mask(window, query.device), scale=0.3, enable_gqa=True
    )
    wanted, _ = segment_attention(
        torch.nn.Module(), query, key, value, None, scaling=0.3, sliding_window=window, segments=SHARED
    )
    torch.testing.assert_close(output.transpose(1, 2), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"), [(ATTENTION, "flash_attn"), (ATTENTION, "flash_attn_3"), (KERNELS, "liger")]
)
def test_a_package_that_is_not_there_is_named_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    key = "attention" if name == ATTENTION else "kernels"
    with pytest.raises(ValueError, match=rf"cluster\.{key}={value}\b.*cluster\.{key}=torch"):
        check_kernels()
    monkeypatch.setenv(name, "torch")
    check_kernels()


@pytest.mark.parametrize(
    ("kind", "activation", "fused"),
    [
        ("llama", {}, {"swiglu": True, "geglu": False}),
        ("llama", {"hidden_act": "relu"}, {"swiglu": False, "geglu": False}),
        ("gemma2", {}, {"swiglu": False, "geglu": True}),
        ("gemma2", {"hidden_activation": "gelu"}, {"swiglu": False, "geglu": False}),
        ("qwen3_moe", {}, None),
        ("gpt2", {}, None),
    ],
)
def test_liger_fuses_what_it_computes_alike(
    monkeypatch: pytest.MonkeyPatch, kind: str, activation: dict[str, str], fused: dict[str, bool] | None
) -> None:
    from transformers import AutoConfig

    decoder, found = ModuleType("decoder"), list[dict[str, Any]]()
    lm = SimpleNamespace(get_decoder=lambda: decoder)
    vars(decoder)["config"] = AutoConfig.for_model(kind, **activation)
    fake = ModuleType("liger_kernel.transformers")
    vars(fake)["_apply_liger_kernel_to_instance"] = lambda model, **what: found.append(what)
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    fuse_layers(lm)
    assert not found
    monkeypatch.setenv(KERNELS, "liger")
    fuse_layers(lm)
    never = {
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }  # they would replace the model's forward
    assert found == ([{"rope": True, "rms_norm": True, **never, **fused}] if fused else [])
    assert (kind in LIGER) == (fused is not None)
