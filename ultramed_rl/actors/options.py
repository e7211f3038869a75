"""Likelihoods of a question's options by a vLLM engine: they share what they begin with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ultramed_rl.records import OptionLogprobs, OptionRequest

_MOST_LOGPROBS = 128  # of one token, that vLLM gives for a request
Tokens = tuple[int, ...]


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


def score_options(
    llm: Any, requests: Sequence[OptionRequest], version: int, adapter: Any = None
) -> Iterator[OptionLogprobs]:
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
                engine.add_request(identity, prompt, one_token, lora_request=adapter)
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
