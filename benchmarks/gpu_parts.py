"""What launch/gpu_check.sh measures: each function is a part, in a process of its own, and returns its figures.

Models have random weights and the shapes of well-known ones: no download. The training step, its packing and its scoring are
the product's; without DeepSpeed the rank is that of plain_rank.py.
"""

from __future__ import annotations

import gc
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.exactness import FAMILIES, compare, share_apart
from benchmarks.plain_rank import plain_rank
from ultramed_rl.actors.scorer import ReferenceWorker
from ultramed_rl.actors.tasks import PreferenceTask
from ultramed_rl.actors.trainer import TrainWorker
from ultramed_rl.actors.work import TrainingPlace
from ultramed_rl.cluster.memory import GIB, training_bytes
from ultramed_rl.config.cluster import ATTENTION, KERNELS, Devices, TrainerGroup
from ultramed_rl.config.models import Architecture, LoRA, Model
from ultramed_rl.config.objectives import DPO
from ultramed_rl.config.rounds import Training
from ultramed_rl.learning.costs import ModelShape, forward_flops
from ultramed_rl.learning.packing import AnswerGroup, pack_groups
from ultramed_rl.learning.preference_data import PreferenceSet
from ultramed_rl.models.attention import (
    SEGMENTS,
    AttentionInputs,
    SegmentLayout,
    register_segment_attention,
)
from ultramed_rl.models.kernels import check_kernels, kernel_attention
from ultramed_rl.models.load import PolicyModel
from ultramed_rl.models.lora import attach_lora
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs

Figures = dict[str, float | str]


class Skip(Exception):
    """Why a part cannot be measured here."""


@dataclass(frozen=True)
class Shape:
    """A model by transformers' type and widths, and how long its texts are."""

    kind: str
    widths: dict[str, Any] = field(hash=False)
    pack: int = 16384  # tokens of a forward pass
    prompt: int = 512
    answer: int = 768

    @property
    def architecture(self) -> Architecture:
        """As plans read it."""
        known = {k: v for k, v in self.widths.items() if k in Architecture.model_fields}
        return Architecture(**known)


def _shape(
    kind: str, hidden: int, mlp: int, layers: int, heads: int, kv: int, vocab: int, tied: bool
) -> Shape:
    return Shape(
        kind,
        dict(
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv,
            vocab_size=vocab,
            tie_word_embeddings=tied,
            max_position_embeddings=32768,
        ),
    )


SHAPES = {
    "0.5B": _shape("qwen2", 896, 4864, 24, 14, 2, 151936, True),
    "1.5B": _shape("qwen2", 1536, 8960, 28, 12, 2, 151936, True),
    "8B": _shape("llama", 4096, 14336, 32, 32, 8, 128256, False),
}


# -- what is trained and scored ------------------------------------------------------------------------------


def random_policy(shape: Shape, device: str, precision: str, lora: LoRA | None = None) -> PolicyModel:
    """A policy of this shape with random weights, made on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    register_segment_attention()
    config = AutoConfig.for_model(shape.kind, **shape.widths)
    with torch.device(device):
        lm = AutoModelForCausalLM.from_config(
            config, attn_implementation=SEGMENTS, dtype=getattr(torch, precision)
        )
    if lora is not None:
        attach_lora(lm, lora, "random")
    return PolicyModel(lm)


def pairs_of(shape: Shape, count: int) -> list[PreferenceGroup]:
    """Pairs of exactly these lengths, with tokens that differ."""
    vocab, sizes = shape.widths["vocab_size"], (shape.prompt, shape.answer, shape.answer)
    made = []
    for index in range(count):
        prompt, *answers = (
            tuple((7919 * (k + 3 * index + place) + 11) % vocab for k in range(size))
            for place, size in enumerate(sizes)
        )
        sides = tuple(Completion(f"p{index}", k, "", ids, "stop", 0.0, 0) for k, ids in enumerate(answers))
        made.append(PreferenceGroup(Prompt(f"p{index}", (), prompt), sides, (1.0, 0.0)))
    return made


def _training(shape: Shape) -> Training:
    """Two packs a step."""
    pairs = shape.pack // (shape.prompt + 2 * shape.answer)
    return Training(
        learning_rate=1e-6,
        schedule="constant",
        warmup=0.0,
        batch_size=2 * pairs,
        micro_batch_tokens=shape.pack,
        epochs=64,
        gradient_checkpointing=True,
    )


def step_of(worker: TrainWorker, shape: Shape) -> Training:
    """Set a task of two packs a step, and say how it is trained."""
    training = _training(shape)
    groups = pairs_of(shape, training.batch_size)
    references = [ReferenceLogprobs(g.group_id, (-9.0, -9.0)) for g in groups]
    data = PreferenceSet.at_hand(groups, references, shape.prompt + shape.answer)
    worker.set_task(PreferenceTask(worker.engine, worker.shape, data, DPO()))
    return training


def _steps(worker: TrainWorker, training: Training, seconds: float, most: int) -> list[dict[str, float]]:
    """Steps until the time is over, at least three; the first two, which allocate and choose kernels, left out."""
    until, found = time.monotonic() + seconds, []
    for metrics in worker.train(training, TrainingPlace(0, 1, 0, max_steps=most)):
        found.append(metrics)
        if len(found) >= 3 and time.monotonic() > until:
            break
    return found[2:]


def train(
    shape: Shape,
    device: str,
    seconds: float,
    *,
    lora: LoRA | None = None,
    precision: str = "bfloat16",
    most: int = 12,
) -> Figures:
    """The preference step of one rank: packed pairs, checkpointing, float32 masters."""
    plan = planned(shape, lora)
    worker = plain_rank(
        TrainWorker, random_policy(shape, device, precision, lora), device, precision, checkpointing=True
    )
    steps = _steps(worker, step_of(worker, shape), seconds, most)
    return {**_rates(steps), "peak GiB": worker.peak_memory() / GIB, "planned GiB": plan / GIB}


def _rates(steps: Sequence[dict[str, float]]) -> Figures:
    middle = statistics.median
    shares = {
        name.upper().replace("_", " "): middle(s[name] for s in steps) for name in ("mfu", "mfu_measured")
    }
    return {
        **shares,
        "tokens/s": middle(s["tokens"] / s["seconds"] for s in steps),
        "seconds a step": middle(s["seconds"] for s in steps),
        "steps": len(steps),
    }


def planned(shape: Shape, lora: LoRA | None) -> int:
    """Bytes on the device, by the arithmetic of `ultramed-rl plan`."""
    model = Model(path="random", precision="bfloat16", lora=lora)
    longest = shape.prompt + 2 * shape.answer
    own, _ = training_bytes(
        shape.architecture, model, TrainerGroup(zero_stage=0), _training(shape), "cuda", longest
    )
    return sum(own.values())


# -- parts: torch and transformers alone -----------------------------------------------------------------------


def exact(kernels: str, seconds: float) -> Figures:
    """Packed varlen attention, and these `cluster.kernels`, against eager: logprobs and gradients; raises where it is more than
    rounding."""
    figures: Figures = {}
    os.environ[KERNELS] = kernels
    for name, (kind, changes) in FAMILIES.items():
        for what, distance in compare(kind, changes, "cuda", torch.bfloat16).items():
            figures[f"{name}: {what}, packed"] = distance.packed
            figures[f"{name}: {what}, eager"] = distance.eager
            assert distance.is_rounding, f"{name}: {what} of packed rows are {distance}"
    return figures


def attention(size: str, seconds: float, device: str = "cuda", shapes: dict[str, Shape] = SHAPES) -> Figures:
    """A layer's packed attention, forwards and backwards, by each kernel of `cluster.attention` that is installed."""
    shape, architecture = shapes[size], shapes[size].architecture
    groups = [AnswerGroup.of(g) for g in pairs_of(shape, shape.pack // (shape.prompt + 2 * shape.answer))]
    batch, heads = pack_groups(groups), architecture.num_attention_heads
    layout, width = SegmentLayout(batch.segments), shape.widths["hidden_size"] // heads
    query, key, value = (
        torch.randn(1, n, batch.tokens, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        for n in (heads, *[architecture.num_key_value_heads] * 2)
    )
    upstream = torch.randn(1, batch.tokens, heads, width, device=device, dtype=torch.bfloat16)
    one_layer = ModelShape(body=0, hidden=0, vocab=0, attention_width=heads * width, layers=1)
    work = 3.5 * forward_flops(one_layer, batch, 0)  # as it is counted in arXiv 2307.08691, section 4.1

    def attend() -> tuple[torch.Tensor, ...]:
        output = kernel_attention(AttentionInputs(query, key, value, layout))
        return (output, *torch.autograd.grad(output, (query, key, value), upstream))

    figures, rates, plain = Figures(), dict[str, float](), None
    for kernel in get_args(Devices.model_fields["attention"].annotation):
        os.environ[ATTENTION] = kernel
        try:
            check_kernels()
        except ValueError:
            figures[kernel] = "not installed"
            continue
        found = attend()  # what is done once isn't counted
        plain = plain or found
        apart = max(share_apart(ours, theirs) for ours, theirs in zip(found, plain, strict=True))
        assert apart < 0.02, f"{kernel} is {apart:.3f} from torch's"
        until, taken = time.monotonic() + seconds / 3, [_seconds(attend) for _ in range(3)]
        while time.monotonic() < until and len(taken) < 100:
            taken.append(_seconds(attend))
        rates[kernel] = figures[f"{kernel}, TFLOP/s"] = work / statistics.median(taken) / 1e12
    fastest = max(rates, key=rates.__getitem__)
    if len(rates) > 1:
        figures[f"fastest: cluster.attention={fastest}, times torch"] = rates[fastest] / rates["torch"]
    return figures


def step(size: str, seconds: float, *, adapters: bool) -> Figures:
    """The preference step at one of `SHAPES`, all weights or LoRA's."""
    lora = LoRA(rank=16, alpha=32) if adapters else None
    total, plan = torch.cuda.get_device_properties(0).total_memory, planned(SHAPES[size], lora)
    if plan > 0.95 * total:
        raise Skip(f"by the plan it takes {plan / GIB:.0f} GiB of {total / GIB:.0f}")
    return train(SHAPES[size], "cuda", seconds, lora=lora)


def score(size: str, seconds: float, device: str = "cuda", shapes: dict[str, Shape] = SHAPES) -> Figures:
    """A frozen policy's summed logprobs of answers, packed as the reference and reward models are."""
    shape = shapes[size]
    worker = ReferenceWorker(0, device, "bfloat16", shape.pack)
    worker._adopt(random_policy(shape, device, "bfloat16"))
    groups = [AnswerGroup.of(g) for g in pairs_of(shape, 2 * shape.pack // (shape.prompt + 2 * shape.answer))]
    tokens = sum(group.packed_tokens for group in groups)
    until, rates = time.monotonic() + seconds, list[float]()
    while len(rates) < 3 or (time.monotonic() < until and len(rates) < 12):
        started = time.perf_counter()
        for _ in worker.score(groups):
            pass
        rates.append(tokens / (time.perf_counter() - started))
    return {"tokens/s": statistics.median(rates[1:]), "peak GiB": worker.peak_memory() / GIB}


# -- parts: vLLM -----------------------------------------------------------------------------------------------


def save_policy(shape: Shape, folder: Path) -> None:
    """A random policy with a byte tokenizer on disk; the GPU is as empty as before."""
    from tests.tiny import make_tokenizer

    random_policy(shape, "cuda", "bfloat16").lm.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    gc.collect()
    torch.cuda.empty_cache()


def rollout(size: str, seconds: float) -> Figures:
    """The rollout worker against `LLM.generate` of the same engine, in turn; then its sleep and waking."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import SamplingParams, TokensPrompt

    from ultramed_rl.actors.rollout import EngineArguments, RolloutWorker
    from ultramed_rl.actors.work import WorkBatch
    from ultramed_rl.config.cluster import RolloutGroup
    from ultramed_rl.records import SamplingRequest

    shape, worker = SHAPES[size], RolloutWorker(0)
    with tempfile.TemporaryDirectory() as folder:
        save_policy(shape, Path(folder))
        group = RolloutGroup(memory_fraction=0.6)
        arguments = EngineArguments(folder, "cuda", "bfloat16", 2048, group, "ipc", sleeps=True)
        worker.start(arguments, 2, 0)
    prompts = [g.prompt for g in pairs_of(shape, 64)]
    requests = [SamplingRequest(p, 4, 1.0, 1.0, 256, 10 * k) for k, p in enumerate(prompts)]

    def ours() -> float:
        started = time.perf_counter()
        made = worker.work(WorkBatch([(str(k), r) for k, r in enumerate(requests)], seconds=1e6)).done
        return sum(len(c.token_ids) for _, each in made for c in each) / (time.perf_counter() - started)

    def bare() -> float:
        worker.llm.reset_prefix_cache()
        asked = [TokensPrompt(prompt_token_ids=list(p.token_ids)) for p in prompts]
        how = [
            SamplingParams(n=4, max_tokens=256, seed=r.seed, stop_token_ids=[2], logprobs=0) for r in requests
        ]
        started = time.perf_counter()
        outputs = worker.llm.generate(asked, how, use_tqdm=False)
        return sum(len(c.token_ids) for o in outputs for c in o.outputs) / (time.perf_counter() - started)

    rates = [(ours(), bare()) for _ in range(3)][1:]
    mine, theirs = (statistics.median(each) for each in zip(*rates, strict=True))
    sleeping = {name: _seconds(act) for name, act in (("sleep", worker.offload), ("wake", worker.reload))}
    return {
        "tokens/s": mine,
        "bare vLLM, tokens/s": theirs,
        "ratio": mine / theirs,
        **{f"{name}, seconds": taken for name, taken in sleeping.items()},
    }


def _seconds(act: Any) -> float:
    finish = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    finish()
    started = time.perf_counter()
    act()
    finish()
    return time.perf_counter() - started


def sync(layout: str, size: str, seconds: float) -> Figures:
    """A policy rank's weights into a vLLM engine, each the product's Ray actor: by ipc on one GPU, by nccl between two."""
    with tempfile.TemporaryDirectory() as folder:
        save_policy(SHAPES[size], Path(folder))
        script = str(Path(__file__).with_name("weight_sync.py"))
        how = ["--device", "cuda", "--precision", "bfloat16", "--layout", layout, "--repeats", "3"]
        done = subprocess.run(
            [sys.executable, script, "--model", folder, *how], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return {"GB/s": found["ours"], "a plain copy, GB/s": found["peer"], "seconds": found["seconds"]}


# -- parts: two GPUs -------------------------------------------------------------------------------------------


def two_ranks(size: str, seconds: float, **group: Any) -> Figures:
    """The preference step of two DeepSpeed ranks with this `cluster.policy`; the figures of the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = ("127.0.0.1", probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        save_policy(SHAPES[size], Path(folder))
        arguments = (address, folder, size, seconds, group)
        torch.multiprocessing.spawn(_rank, args=arguments, nprocs=2)
        figures: Figures = json.loads((Path(folder) / "figures.json").read_text())
    return figures


def _rank(
    rank: int, address: tuple[str, int], folder: str, size: str, seconds: float, group: dict[str, Any]
) -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or "0,1"
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[rank]  # as Ray gives an actor its GPU
    from ultramed_rl.actors.deepspeed_setup import EngineSpec
    from ultramed_rl.actors.policy import PolicyWorker

    shape, worker = SHAPES[size], PolicyWorker(rank, 2, 0)
    spec = EngineSpec("cuda", "bfloat16", TrainerGroup(ranks=2, **group), _training(shape))
    worker.load(Model(path=folder), spec, address)
    # As many on both: a rank that stopped by its own clock would leave the other waiting.
    steps = _steps(worker, step_of(worker, shape), math.inf, max(4, min(12, int(seconds / 20))))
    if rank == 0:
        figures = {**_rates(steps), "peak GiB": worker.peak_memory() / GIB}
        (Path(folder) / "figures.json").write_text(json.dumps(figures))
