"""A vLLM engine as a Ray actor: it samples answers, weighs options, and takes weights."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultramed_rl.actors.options import score_options
from ultramed_rl.actors.seeded_sampling import sample_with_few_numbers
from ultramed_rl.actors.weight_sync import ADAPTER, WeightBucket
from ultramed_rl.actors.work import WorkBatch, Worker, WorkResult
from ultramed_rl.config.cluster import EngineGroup
from ultramed_rl.config.models import LORA_RANKS
from ultramed_rl.models.lora import ADAPTER_FILE
from ultramed_rl.records import (
    Completion,
    OptionRequest,
    SamplingRequest,
    TokenChoice,
    WeighedCompletion,
    WeighedRequest,
)
from ultramed_rl.thoughts import Thinking
from ultramed_rl.token_ids import TokenIds

_ALL = frozenset({"weights", "kv_cache"})  # vLLM's tags of what can sleep
_LIKELIEST = 20  # tokens of a place that come with a weighed request: as many as vLLM gives by default
# vLLM's names: here a scale for each output of a weight and for each token.
QUANTIZATIONS = {None: None, "fp8": "fp8_per_channel"}


@dataclass(frozen=True)
class EngineArguments:
    """What an engine is started with.

    Attributes:
        sleep_level: vLLM's, of one that takes turns on its GPU: 1 takes the weights to host memory, 2 forgets them, and
            an update brings others. 0 never sleeps.
        lora_rank: of a policy whose adapters alone are sent; else 0.
        adapter: its folder, where the engine begins with one.
    """

    model: str
    device: str
    precision: str
    max_length: int
    group: EngineGroup
    transfer_backend: str
    sleep_level: int = 0
    lora_rank: int = 0
    adapter: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None  # of a hub id
    thinking: Thinking | None = None


class RolloutWorker(Worker):
    """One engine. `policy_version` says which weights it holds; every completion carries it."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.policy_version = -1
        self._under_way: dict[str, SamplingRequest] = {}
        self._asleep: set[str] = set()  # what vLLM has taken off the GPU
        self._updating = False
        self._forgot = False  # whether the weights are gone since it slept
        self._adapter: Any = None  # vLLM's request for the policy's adapters

    def start(self, arguments: EngineArguments, stop_token: int | None, version: int) -> None:
        """Load the model into vLLM. Without a stop token it weighs options and answers nothing. Raises ValueError:
        the model's weights hold NaN, or this GPU cannot compute in 8 bits."""
        from vllm import LLM, SamplingParams, TokensPrompt

        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        group, self.arguments, self.stop_token = arguments.group, arguments, stop_token
        self.device = arguments.device
        if arguments.device == "cpu":
            sample_with_few_numbers()
        elif group.quantization == "fp8" and (capability := torch.cuda.get_device_capability()) < (8, 9):
            raise ValueError(
                f"quantization=fp8: needs a GPU of compute capability 8.9 or newer, and this one is of "
                f"{capability[0]}.{capability[1]}; set it to null"
            )
        self.llm = LLM(
            model=arguments.model,
            tokenizer=arguments.model,
            revision=arguments.revision,
            tokenizer_revision=arguments.revision,
            dtype=arguments.precision,
            quantization=QUANTIZATIONS[group.quantization],
            max_model_len=arguments.max_length,
            max_num_seqs=group.max_num_seqs,
            tensor_parallel_size=group.tensor_parallel,
            enforce_eager=group.enforce_eager,
            trust_remote_code=arguments.trust_remote_code,
            generation_config="vllm",
            language_model_only=True,  # of a model that also sees: nothing is shown to it
            # Free whitespace would let a small model write nothing else.
            structured_outputs_config={"backend": "guidance", "disable_any_whitespace": True},
            **self._device_arguments(),
            **self._sync_arguments(),
        )
        if arguments.adapter is not None:
            self._load_adapter(arguments.adapter)
        # vLLM would sample from logits that are no numbers without a word.
        one = SamplingParams(max_tokens=1, temperature=0.0, logprobs=0, detokenize=False)
        (output,) = self.llm.generate([TokensPrompt(prompt_token_ids=[0])], one, use_tqdm=False)
        if math.isnan(output.outputs[0].cumulative_logprob or 0.0):
            raise ValueError(
                f"model {arguments.model!r}: its logits are not finite, so its weights are not; use another checkpoint"
            )
        self.policy_version = version

    def _device_arguments(self) -> dict[str, Any]:
        arguments, group = self.arguments, self.arguments.group
        own: dict[str, Any] = {}
        if group.kv_cache_gib is not None:
            own["kv_cache_memory_bytes"] = int(group.kv_cache_gib * 2**30)
        if arguments.device == "cpu":
            return own | {
                "block_size": 32,  # the default of 128 is longer than most prompts: no prefix would be shared
                # vLLM's CPU sampler cannot rewind a seeded generator after a partial prefill.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(4096, arguments.max_length),
            }
        if group.tensor_parallel > 1:
            own["distributed_executor_backend"] = "ray"
        return own | {
            "gpu_memory_utilization": group.memory_fraction,
            "enable_sleep_mode": arguments.sleep_level > 0,
        }

    def _sync_arguments(self) -> dict[str, Any]:
        from vllm.config import WeightTransferConfig

        if self.arguments.transfer_backend != ADAPTER:
            backend = self.arguments.transfer_backend
            return {"weight_transfer_config": WeightTransferConfig(backend=backend)}
        room = next(rank for rank in LORA_RANKS if rank >= self.arguments.lora_rank)
        return {"enable_lora": True, "max_lora_rank": room, "max_loras": 1}

    def work(self, work: WorkBatch) -> WorkResult:
        """Take up new requests and go on with the old ones, until all are done or the turn's seconds are over.

        A request ends with all of its n answers at once, or all of its options' logprobs. An error of the engine
        itself is raised: such an engine is good for nothing more.
        """
        started = time.time()
        report = WorkResult(started=started)
        assert self.policy_version >= 0, (
            f"policy_version={self.policy_version}: in the middle of a weight update there is none to sample from"
        )
        self._cancel(work.cancelled)
        questions = [(key, r) for key, r in work.requests if isinstance(r, OptionRequest)]
        self._add([(key, r) for key, r in work.requests if isinstance(r, SamplingRequest)], report)
        if questions:
            assert not self._under_way, "options are scored by an engine that does nothing else"
            asked = [request for _, request in questions]
            scored = score_options(self.llm, asked, self.policy_version, self._adapter)
            report.done.extend((options.question_id, options) for options in scored)
        self._step(started + work.seconds, report)
        return replace(report, ended=time.time())

    def _add(self, requests: Sequence[tuple[str, SamplingRequest]], report: WorkResult) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        assert self.stop_token is not None or not requests, "an engine that only weighs options"
        if requests and not self._under_way:
            # What is cached would change rounding, and so a resumed run's samples.
            self.llm.reset_prefix_cache()
        for key, request in requests:
            parameters = {
                "n": request.n,
                "temperature": request.temperature,
                "top_p": request.top_p,
                "max_tokens": request.max_new_tokens,
                "seed": request.seed,
                "stop_token_ids": [self.stop_token],
                "logprobs": _LIKELIEST if isinstance(request, WeighedRequest) else 0,
                "output_kind": RequestOutputKind.FINAL_ONLY,
            }
            prompt = TokensPrompt(prompt_token_ids=list(request.prompt.token_ids))
            try:
                form = StructuredOutputsParams(json=request.schema) if request.schema else None
                sampling = SamplingParams(**parameters, structured_outputs=form)
                self.llm.llm_engine.add_request(key, prompt, sampling, lora_request=self._adapter)
            except ValueError as error:  # too long for the engine, or a schema that it cannot hold
                report.failed.append((key, str(error)))
            else:
                self._under_way[key] = request

    def _cancel(self, keys: Sequence[str]) -> None:
        here = [key for key in keys if self._under_way.pop(key, None) is not None]
        if here:
            self.llm.llm_engine.abort_request(here)

    def _step(self, until: float, report: WorkResult) -> None:
        engine = self.llm.llm_engine
        while self._under_way and engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished and output.request_id in self._under_way:
                    request = self._under_way.pop(output.request_id)
                    report.done.append((output.request_id, self._completions(request, output)))
            if time.time() >= until:
                return

    def _completions(self, request: SamplingRequest, output: Any) -> list[Completion]:
        found: list[Completion] = []
        for answer in sorted(output.outputs, key=lambda a: a.index):
            fields: dict[str, Any] = {
                "prompt_id": request.prompt.prompt_id,
                "sample": answer.index,
                "text": answer.text,
                "token_ids": TokenIds(answer.token_ids),
                "finish_reason": answer.finish_reason or "unknown",
                "logprob": float(answer.cumulative_logprob or 0.0),
                "policy_version": self.policy_version,
                **self._split(answer),
            }
            if isinstance(request, WeighedRequest):
                choices = token_choices(answer, self.stop_token)[-request.places :]
                found.append(WeighedCompletion(**fields, choices=choices))
            else:
                found.append(Completion(**fields))
        return found

    def _split(self, answer: Any) -> dict[str, int]:
        """Tokens and characters of an answer's reasoning, by a completion's fields."""
        if self.arguments.thinking is None:
            return {}
        decode = partial(self.llm.get_tokenizer().decode, skip_special_tokens=True)
        tokens, start = self.arguments.thinking.split(answer.text, answer.token_ids, decode)
        return {"thought_tokens": tokens, "answer_start": start}

    def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        """Open this end of the weights' way, while ranks open theirs in `meet_engines`."""
        if self.arguments.transfer_backend != ADAPTER:
            self.llm.init_weight_transfer_engine({"init_info": init_info})

    def pull_weights(self, bucket: WeightBucket, version: int) -> None:
        """Take a bucket of weights, while ranks send it in `push_weights`. With the last one the engine holds this
        policy version."""
        if "adapter" in bucket.info:
            self._take_adapter(bucket.info, version)
            return
        if bucket.first:
            self._begin_update()
        self.llm.update_weights({"update_info": bucket.info})
        if bucket.last:
            self.llm.finish_weight_update(str(version))
            self._updating = False
            if self._forgot:
                missing = sorted({name for names in self.llm.apply_model(unfilled) for name in names})
                assert not missing, f"no update brings what the engine forgot when it slept: {missing[:5]}"
                self._forgot = False
            self.llm.reset_prefix_cache()
            self.policy_version = version

    def _begin_update(self) -> None:
        """From here to the last bucket the engine holds no complete policy. An update whose sender died is closed
        before; an engine that cannot close it ends."""
        self.policy_version = -1
        self._cancel(list(self._under_way))
        if self._updating:
            try:
                self.llm.finish_weight_update(None)
            except Exception:
                logging.getLogger(__name__).exception("a weight update that was given up cannot be closed")
                os._exit(1)
        self.llm.start_weight_update()
        self._updating = True

    def _take_adapter(self, info: dict[str, Any], version: int) -> None:
        self.policy_version = -1
        self._cancel(list(self._under_way))
        with tempfile.TemporaryDirectory(prefix="ultramed_rl-adapter-") as folder:
            (Path(folder) / ADAPTER_FILE).write_bytes(info["adapter"])
            (Path(folder) / "adapter_config.json").write_text(json.dumps(info["config"]))
            self._load_adapter(folder)
        self.llm.reset_prefix_cache()
        self.policy_version = version

    def _load_adapter(self, folder: str) -> None:
        """In the place of the one before. Raises ValueError: adapters of layers that vLLM gives none."""
        from vllm.lora.request import LoRARequest

        self.llm.llm_engine.add_lora(LoRARequest("policy", 1, folder, load_inplace=True))
        self._adapter = LoRARequest("policy", 1, folder)  # which asks for what is loaded

    def version(self) -> int:
        """The policy version this engine holds; -1 in the middle of an update."""
        return self.policy_version

    def offload(self) -> None:
        level = self.arguments.sleep_level
        if level and self._asleep != _ALL:
            self.reload()  # vLLM takes an engine that is half awake for asleep, and would leave it so
            self.llm.sleep(level=level)
            self._asleep = set(_ALL)
            if level == 2:
                self.policy_version, self._forgot = -1, True
        gc.collect()

    def reload_weights(self) -> None:
        """Bring back the weights alone, for an update: a cache beside the policy's weights would be memory for nothing."""
        self._wake({"weights"})

    def reload(self) -> None:
        self._wake(_ALL)

    def _wake(self, tags: Collection[str]) -> None:
        asleep = self._asleep.intersection(tags)
        if asleep:
            self.llm.wake_up(tags=sorted(asleep, reverse=True))
            self._asleep -= asleep
            if self._forgot and "weights" in asleep:
                self.llm.apply_model(empty)


# -- weights that sleep forgets -------------------------------------------------------------------------


def empty(model: nn.Module) -> None:
    """Mark every weight as not there. Buffers, such as rotary frequencies, vLLM has kept and brought back."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data.fill_(math.nan)


def unfilled(model: nn.Module) -> list[str]:
    """Names of weights that nothing was written to since `empty`: their first and last number are NaN."""
    weights = [(n, w.detach()) for n, w in model.named_parameters() if w.is_floating_point() and w.numel()]
    if not weights:
        return []
    ends = [[w[(place,) * w.dim()].float() for place in (0, -1)] for _, w in weights]
    gone = torch.stack([torch.stack(pair) for pair in ends]).isnan().all(dim=1).tolist()
    return [name for (name, _), is_gone in zip(weights, gone, strict=True) if is_gone]


def token_choices(answer: Any, stop_token: int | None) -> tuple[TokenChoice, ...]:
    """Of a vLLM output with logprobs each token and the likeliest in its place, without the end of turn."""
    return tuple(
        TokenChoice(
            found[token].decoded_token or "", {(c.decoded_token or ""): c.logprob for c in found.values()}
        )
        for token, found in zip(answer.token_ids, answer.logprobs, strict=True)
        if token != stop_token
    )
