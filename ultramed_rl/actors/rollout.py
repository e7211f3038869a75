"""A vLLM engine as a Ray actor: it samples answers, weighs options, and takes weights."""

from __future__ import annotations

import gc
import logging
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ultramed_rl.actors.weight_sync import WeightBucket
from ultramed_rl.actors.work import WorkBatch, Worker, WorkResult
from ultramed_rl.config.cluster import EngineGroup
from ultramed_rl.records import (
    Completion,
    OptionLogprobs,
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
_MOST_LOGPROBS = 128  # of one token, that vLLM gives for a request
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class EngineArguments:
    """What an engine is started with."""

    model: str
    device: str
    precision: str
    max_length: int
    group: EngineGroup
    transfer_backend: str
    sleeps: bool
    trust_remote_code: bool = False
    thinking: Thinking | None = None


class RolloutWorker(Worker):
    """One engine. `policy_version` says which weights it holds; every completion carries it."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.policy_version = -1
        self._under_way: dict[str, SamplingRequest] = {}
        self._asleep: set[str] = set()  # what vLLM has taken off the GPU
        self._updating = False

    def start(self, arguments: EngineArguments, stop_token: int | None, version: int) -> None:
        """Load the model into vLLM. Without a stop token it weighs options and answers nothing. Raises ValueError:
        the model's weights hold NaN."""
        from vllm import LLM, SamplingParams, TokensPrompt
        from vllm.config import WeightTransferConfig

        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        group, self.arguments, self.stop_token = arguments.group, arguments, stop_token
        self.device = arguments.device
        if arguments.device == "cpu":
            sample_with_few_numbers()
        self.llm = LLM(
            model=arguments.model,
            tokenizer=arguments.model,
            dtype=arguments.precision,
            max_model_len=arguments.max_length,
            max_num_seqs=group.max_num_seqs,
            tensor_parallel_size=group.tensor_parallel,
            enforce_eager=group.enforce_eager,
            trust_remote_code=arguments.trust_remote_code,
            weight_transfer_config=WeightTransferConfig(backend=arguments.transfer_backend),
            generation_config="vllm",
            language_model_only=True,  # of a model that also sees: nothing is shown to it
            # Free whitespace would let a small model write nothing else.
            structured_outputs_config={"backend": "guidance", "disable_any_whitespace": True},
            **self._device_arguments(),
        )
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
        return own | {"gpu_memory_utilization": group.memory_fraction, "enable_sleep_mode": arguments.sleeps}

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
            scored = score_options(self.llm, [request for _, request in questions], self.policy_version)
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
                self.llm.llm_engine.add_request(key, prompt, sampling)
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
        if self.arguments.sleeps and self._asleep != _ALL:
            self.reload()  # vLLM takes an engine that is half awake for asleep, and would leave it so
            self.llm.sleep(level=1)  # which keeps the weights in host memory
            self._asleep = set(_ALL)
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


def token_choices(answer: Any, stop_token: int | None) -> tuple[TokenChoice, ...]:
    """Of a vLLM output with logprobs each token and the likeliest in its place, without the end of turn."""
    return tuple(
        TokenChoice(
            found[token].decoded_token or "", {(c.decoded_token or ""): c.logprob for c in found.values()}
        )
        for token, found in zip(answer.token_ids, answer.logprobs, strict=True)
        if token != stop_token
    )


# -- options of a question ------------------------------------------------------------------------------


def branches(options: Sequence[Tokens]) -> dict[Tokens, Tokens]:
    """Every proper beginning of an option, and the tokens that some option goes on with there."""
    tree: dict[Tokens, dict[int, None]] = {}
    for option in options:
        for place, token in enumerate(option):
            tree.setdefault(option[:place], {})[token] = None
    return {beginning: tuple(tokens) for beginning, tokens in tree.items()}


def add_up(options: Sequence[Tokens], logprobs: Mapping[tuple[Tokens, int], float]) -> tuple[float, ...]:
    """Each option's summed logprob, given that of a token after a beginning."""
    return tuple(sum(logprobs[option[:k], token] for k, token in enumerate(option)) for option in options)


def score_options(llm: Any, requests: Sequence[OptionRequest], version: int) -> Iterator[OptionLogprobs]:
    """The options' logprobs under the engine's model, in nats; each request's as soon as it is done.

    The options form a tree. At each of its branches one token's logprobs are asked for, of just the tokens that some
    option goes on with; the context is computed once, and the engine's prefix cache holds it for the branches after
    the first. Options of one token each, such as the letters of a multiple choice, need a single request.
    """
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    engine = llm.llm_engine
    asked: dict[str, tuple[int, Tokens]] = {}
    for number, request in enumerate(requests):
        for beginning, tokens in branches(request.options).items():
            for start in range(0, len(tokens), _MOST_LOGPROBS):
                identity = f"{number}/{len(asked)}"
                asked[identity] = (number, beginning)
                one_token = SamplingParams(
                    temperature=0.0,
                    max_tokens=1,
                    logprob_token_ids=list(tokens[start : start + _MOST_LOGPROBS]),
                    output_kind=RequestOutputKind.FINAL_ONLY,
                    detokenize=False,
                )
                prompt = TokensPrompt(prompt_token_ids=[*request.context, *beginning])
                engine.add_request(identity, prompt, one_token)
    missing = Counter(number for number, _ in asked.values())
    known: dict[int, dict[tuple[Tokens, int], float]] = defaultdict(dict)
    while engine.has_unfinished_requests():
        for output in (output for output in engine.step() if output.finished):
            number, beginning = asked.pop(output.request_id)
            entries = output.outputs[0].logprobs[0]
            known[number].update({(beginning, token): entry.logprob for token, entry in entries.items()})
            missing[number] -= 1
            if not missing[number]:
                values = add_up(requests[number].options, known.pop(number))
                yield OptionLogprobs(requests[number].question_id, values, version)


# -- seeded sampling on CPU -----------------------------------------------------------------------------


def sample_rows(probs: torch.Tensor, generators: Mapping[int, torch.Generator]) -> torch.Tensor:
    """[B] tokens, one for each row of `probs` [B, V], drawn with the row's own generator.

    A row's token depends on its probabilities and its generator alone, whatever else is in the batch. Rows need not
    sum to one; a token without probability is never drawn.
    """
    drawn = torch.stack([torch.rand((), generator=generators[row]) for row in range(len(probs))])
    # In double precision: u < 1 then keeps u * total below the total, so that the last token drawn has probability.
    reached = probs.cumsum(dim=-1, dtype=torch.float64)
    points = drawn.to(torch.float64).unsqueeze(1) * reached[:, -1:]
    return torch.searchsorted(reached, points, right=True).squeeze(1)


def sample_with_few_numbers() -> None:
    """Let vLLM's CPU sampler of this process draw one random number a row where every row has a seed; twice is once.

    vLLM fills a row of noise as long as the vocabulary for each request that has a seed of its own, after it has filled
    them all without: a third of a step of a small model. The inverse of the cumulative distribution needs one uniform
    number a row, and draws from exactly the same distribution.
    """
    from vllm.v1.sample.ops import topk_topp_sampler as ops

    theirs = ops.TopKTopPSampler.forward_cpu
    if theirs.__module__ == __name__:
        return

    def forward_cpu(
        self: Any,
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if len(generators) < len(logits) or self.logprobs_mode in ops.PROCESSED_LOGPROBS_MODES:
            tokens: tuple[torch.Tensor, torch.Tensor | None] = theirs(self, logits, generators, k, p)
            return tokens
        probs = ops.apply_top_k_top_p(logits, k, p).softmax(dim=-1, dtype=torch.float32)
        return sample_rows(probs, generators), None

    ops.TopKTopPSampler.forward_cpu = forward_cpu
