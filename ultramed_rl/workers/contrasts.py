"""Contrasts from a policy's own answers: sampled calmly and wildly, then paired."""

from __future__ import annotations

from collections.abc import Sequence

from ultramed_rl.config.rewards import ContrastSampling
from ultramed_rl.data.contrasts import Texts, build_contrasts
from ultramed_rl.learning.seeds import derive_seed
from ultramed_rl.models.tokenizer import ChatTokenizer
from ultramed_rl.records import Completion, Message, PreferenceGroup, Prompt, SamplingRequest
from ultramed_rl.tracking import Progress
from ultramed_rl.workers.sampling import SamplingWorkers


def sample_contrasts(
    data: ContrastSampling,
    prompts: Sequence[Prompt],
    workers: SamplingWorkers,
    tokenizer: ChatTokenizer,
    seed: int,
    progress: Progress,
) -> list[PreferenceGroup]:
    """Pairs out of the answers of policy 0. The same seed gives the same ones."""
    chosen = prompts[-data.prompts :]  # the end of the pool: rounds draw from all of it, seeded
    answers: dict[str, list[Completion]] = {}
    for name, temperature in (("calm", data.calm_temperature), ("wild", data.wild_temperature)):
        requests = [
            SamplingRequest(p, 1, temperature, 1.0, data.max_new_tokens, derive_seed(seed, name, p.prompt_id))
            for p in chosen
        ]
        with progress.phase(f"sample {name} answers", len(requests), "completions") as bar:
            answers[name] = workers.generate(requests, 0, bar.advance)

    def encode(messages: Sequence[Message], answer: str) -> list[int]:
        _, (tokens,) = tokenizer.encode_answers(messages, [answer])
        return tokens

    texts = Texts(encode, tokenizer.decode, tokenizer.end_id)
    return build_contrasts(chosen, answers["calm"], answers["wild"], texts=texts, seed=seed)
