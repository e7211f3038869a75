"""A vLLM engine as a Ray actor."""

from __future__ import annotations

import gc
import logging
import math
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ultramed_rl.actors.options import score_options
from ultramed_rl.actors.seeded_sampling import install as install_seeded_sampling
from ultramed_rl.actors.trainer import peak_memory
from ultramed_rl.actors.weight_sync import WeightBucket
from ultramed_rl.actors.work import WorkBatch, WorkResult
from ultramed_rl.records import Completion, OptionRequest, SamplingRequest
from ultramed_rl.token_ids import TokenIds

_ALL = frozenset({"weights", "kv_cache"})  # vLLM's tags of what can sleep


@dataclass(frozen=True)
class EngineArguments:
    """What a rollout engine is started with."""

    model: str
    device: str
    precision: str
    max_length: int
    max_num_seqs: int
    tensor_parallel: int
    enforce_eager: bool
    kv_cache_bytes: int | None
    memory_fraction: float
    transfer_backend: str
    sleeps: bool
    trust_remote_code: bool = False


class RolloutWorker:
    """One engine. `policy_version` says which weights it holds; every completion carries it."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.policy_version = -1
        self._under_way: dict[str, SamplingRequest] = {}
        self._asleep: set[str] = set()  # what vLLM has taken off the GPU
        self._updating = False

    def start(self, arguments: EngineArguments, stop_token: int | None, version: int) -> None:
        """Load the model into vLLM. Without a stop token it weighs options and answers nothing."""
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        self.arguments, self.stop_token = arguments, stop_token
        if arguments.device == "cpu":
            install_seeded_sampling()
        self.llm = LLM(
            model=arguments.model,
            tokenizer=arguments.model,
            dtype=arguments.precision,
            max_model_len=arguments.max_length,
            max_num_seqs=arguments.max_num_seqs,
            tensor_parallel_size=arguments.tensor_parallel,
            enforce_eager=arguments.enforce_eager,
            trust_remote_code=arguments.trust_remote_code,
            weight_transfer_config=WeightTransferConfig(backend=arguments.transfer_backend),
            generation_config="vllm",
            language_model_only=True,  # of a model that also sees: nothing is shown to it
            # Free whitespace would let a small model write nothing else.
            structured_outputs_config={"backend": "guidance", "disable_any_whitespace": True},
            **self._device_arguments(),
        )
        self._refuse_nan()
        self.policy_version = version

    def _refuse_nan(self) -> None:
        """vLLM would sample from logits that are no numbers without a word.

        Raises:
            ValueError: the model's weights hold NaN.
        """
        from vllm import SamplingParams, TokensPrompt

        one = SamplingParams(max_tokens=1, temperature=0.0, logprobs=0, detokenize=False)
        (output,) = self.llm.generate([TokensPrompt(prompt_token_ids=[0])], one, use_tqdm=False)
        if math.isnan(output.outputs[0].cumulative_logprob or 0.0):
            raise ValueError(
                f"model {self.arguments.model!r}: its logits are not finite, so its weights are not; use another "
                "checkpoint"
            )

    def _device_arguments(self) -> dict[str, Any]:
        arguments = self.arguments
        if arguments.device == "cpu":
            # vLLM's CPU sampler cannot rewind a seeded generator after a partial prefill, so prompts
            # are prefilled whole.
            budget = max(4096, arguments.max_length)
            return {
                "kv_cache_memory_bytes": arguments.kv_cache_bytes,
                "block_size": 32,  # the default of 128 is longer than most prompts: no prefix would be shared
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": budget,
            }
        extra: dict[str, Any] = {"gpu_memory_utilization": arguments.memory_fraction}
        if arguments.kv_cache_bytes is not None:
            extra["kv_cache_memory_bytes"] = arguments.kv_cache_bytes
        if arguments.tensor_parallel > 1:
            extra["distributed_executor_backend"] = "ray"
        return {**extra, "enable_sleep_mode": arguments.sleeps}

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
            found = score_options(self.llm, [request for _, request in questions], self.policy_version)
            report.done.extend((scored.question_id, scored) for scored in found)
        self._step(started + work.seconds, report)
        return replace(report, ended=time.time())

    def _add(self, requests: Sequence[tuple[str, SamplingRequest]], report: WorkResult) -> None:
        assert self.stop_token is not None or not requests, "an engine that only weighs options"
        if requests and not self._under_way:
            # What is cached would change rounding, and so a resumed run's samples.
            self.llm.reset_prefix_cache()
        for key, request in requests:
            try:
                self._begin(key, request)
            except (
                ValueError
            ) as error:  # of this request: too long for the engine, a schema that it cannot hold
                report.failed.append((key, str(error)))

    def _begin(self, key: str, request: SamplingRequest) -> None:
        from vllm import SamplingParams, TokensPrompt

        self.llm.llm_engine.add_request(
            key,
            TokensPrompt(prompt_token_ids=list(request.prompt.token_ids)),
            SamplingParams(
                n=request.n,
                temperature=request.temperature,
                top_p=request.top_p,
                max_tokens=request.max_new_tokens,
                seed=request.seed,
                stop_token_ids=[self.stop_token],
                logprobs=0,
                output_kind=_final_only(),
                structured_outputs=_structure(request.schema),
            ),
        )
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
        return [
            Completion(
                prompt_id=request.prompt.prompt_id,
                sample=answer.index,
                text=answer.text,
                token_ids=TokenIds(answer.token_ids),
                finish_reason=answer.finish_reason or "unknown",
                logprob=float(answer.cumulative_logprob or 0.0),
                policy_version=self.policy_version,
            )
            for answer in sorted(output.outputs, key=lambda a: a.index)
        ]

    def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        """Open this end of the weights' way, while ranks open theirs in `meet_engines`."""
        self.llm.init_weight_transfer_engine({"init_info": init_info})

    def pull_weights(self, bucket: WeightBucket, version: int) -> None:
        """Take a bucket of weights, while ranks send it in `push_weights`. With the last one the engine holds this
        policy version."""
        if bucket.first:
            self._begin_update()
        self.llm.update_weights({"update_info": bucket.info})
        if bucket.last:
            self.llm.finish_weight_update(str(version))
            self._updating = False
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

    def version(self) -> int:
        """The policy version this engine holds; -1 in the middle of an update."""
        return self.policy_version

    def offload(self) -> None:
        """Give the GPU to other roles. Level 1 keeps the weights in host memory; on CPU nothing moves."""
        if self.arguments.sleeps and self._asleep != _ALL:
            self.reload()  # vLLM takes an engine that is half awake for asleep, and would leave it so
            self.llm.sleep(level=1)
            self._asleep = set(_ALL)
        gc.collect()

    def reload_weights(self) -> None:
        """Bring back the weights alone, for an update: a cache beside the policy's weights would be memory for nothing."""
        self._wake({"weights"})

    def reload(self) -> None:
        """Bring back all that is not here."""
        self._wake(_ALL)

    def _wake(self, tags: Collection[str]) -> None:
        asleep = self._asleep.intersection(tags)
        if asleep:
            self.llm.wake_up(tags=sorted(asleep, reverse=True))
            self._asleep -= asleep

    def peak_memory(self) -> int:
        """Bytes at the peak of this process."""
        return peak_memory(self.arguments.device)


def _structure(schema: str) -> Any:
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(json=schema) if schema else None


def _final_only() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind.FINAL_ONLY
