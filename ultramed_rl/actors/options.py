"""Likelihoods of options that continue one context, on a vLLM engine.

The options form a tree. At each of its branches one token's logprobs are asked for, of just the tokens that some
option goes on with; the context is computed once, and the engine's prefix cache holds it for the branches after
the first. Options of one token each, such as the letters of a multiple choice, need a single request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ultramed_rl.records import OptionLogprobs, OptionRequest

Tokens = tuple[int, ...]
# vLLM takes no more tokens than this per request.
_MOST_TOKENS = 128


def branches(options: Sequence[Tokens]) -> dict[Tokens, Tokens]:
    """Every proper beginning of an option, and the tokens that some option goes on with there."""
    found: dict[Tokens, dict[int, None]] = {}
    for option in options:
        for place, token in enumerate(option):
            found.setdefault(option[:place], {})[token] = None
    return {beginning: tuple(tokens) for beginning, tokens in found.items()}


def add_up(options: Sequence[Tokens], logprobs: Mapping[tuple[Tokens, int], float]) -> tuple[float, ...]:
    """Each option's summed logprob, given that of a token after a beginning."""
    return tuple(sum(logprobs[option[:k], token] for k, token in enumerate(option)) for option in options)


def score_options(llm: Any, requests: Sequence[OptionRequest], version: int) -> Iterator[OptionLogprobs]:
    """The options' logprobs under the engine's model, in nats; each request's as soon as it is done."""
    from vllm import TokensPrompt

    engine = llm.llm_engine
    known: dict[int, dict[tuple[Tokens, int], float]] = {}
    open_branches: dict[int, int] = {}
    asked: dict[str, tuple[int, Tokens]] = {}
    for number, request in enumerate(requests):
        known[number], open_branches[number] = {}, 0
        for beginning, tokens in branches(request.options).items():
            for start in range(0, len(tokens), _MOST_TOKENS):
                identity = f"{number}/{len(asked)}"
                asked[identity] = (number, beginning)
                open_branches[number] += 1
                prompt = TokensPrompt(prompt_token_ids=[*request.context, *beginning])
                engine.add_request(identity, prompt, _next_token(tokens[start : start + _MOST_TOKENS]))
    while engine.has_unfinished_requests():
        for output in engine.step():
            if not output.finished:
                continue
            number, beginning = asked.pop(output.request_id)
            found = output.outputs[0].logprobs[0]
            known[number].update({(beginning, token): entry.logprob for token, entry in found.items()})
            open_branches[number] -= 1
            if not open_branches[number]:
                request = requests[number]
                values = add_up(request.options, known.pop(number))
                yield OptionLogprobs(request.question_id, values, version)


def _next_token(tokens: Sequence[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1,
        logprob_token_ids=list(tokens),
        output_kind=RequestOutputKind.FINAL_ONLY,
        detokenize=False,
    )
