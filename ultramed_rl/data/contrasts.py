"""Training pairs for a reward model that a run makes from its own starting policy's answers.

A small policy can't be asked which of two answers is medically right: at 135M parameters that is near chance,
and a reward model of the same size wouldn't learn it from a few hundred pairs. What it can both judge and
improve is whether an answer is coherent, whether it comes to an end, and whether it is about the question:

    coherent   an answer sampled at low temperature        over  one sampled at high temperature
    complete   an answer that ended by itself              over  its own first 30-80 %, cut off
    on_topic   an answer                                   over  the answer to another prompt
    correct    a vignette's right final answer             over  the same sentence with a wrong letter

Each pair differs in one respect, so held-out accuracy by kind says what the reward model has learnt; expect
`correct` near one half. All is pure and seeded by prompt: the same answers give the same pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ultramed_rl.data.vignettes import answer_sentence, read_letter, read_options
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Completion, Message, PreferenceGroup, Prompt

KINDS = ("coherent", "complete", "on_topic", "correct")
CUT_LOW, CUT_HIGH = 0.3, 0.8  # share of the tokens that a cut answer keeps


@dataclass(frozen=True)
class Texts:
    """What contrasts need of a tokenizer."""

    encode: Callable[[Sequence[Message], str], list[int]]  # an answer to a chat, with its end of turn
    decode: Callable[[Sequence[int]], str]
    end_token: int


def build_contrasts(
    prompts: Sequence[Prompt],
    calm: Sequence[Completion],
    wild: Sequence[Completion],
    *,
    texts: Texts,
    seed: int,
) -> list[PreferenceGroup]:
    """All contrasts, prompt by prompt in the order of KINDS, as pairs whose prompt carries the kind.

    `calm` and `wild` hold one completion per prompt, at low and high temperature. Only calm answers that
    stopped by themselves and aren't empty are preferred. Identical or repeated pairs are left out.

    Raises:
        ValueError: a prompt without its two answers, or no calm answer that can be preferred.
    """
    ids = [prompt.prompt_id for prompt in prompts]
    calm_by_id, wild_by_id = (_by_prompt(ids, calm, "calm"), _by_prompt(ids, wild, "wild"))
    finished = {i: c for i, c in calm_by_id.items() if c.finish_reason == "stop" and c.text.strip()}
    if not finished:
        raise ValueError(
            f"contrasts: none of {len(ids)} calm answers ended by itself; raise reward.train.data."
            "max_new_tokens, or ask for shorter answers in prompts.suffix"
        )
    # Every prompt's stranger is the next in a seeded circle, so nobody meets itself unless it is alone.
    circle = sorted(finished, key=lambda i: seeded_number(seed, "on_topic", i))
    strangers = dict(zip(circle, circle[1:] + circle[:1], strict=True))
    # Messages are dicts, so a Prompt has no hash; its id stands for it.
    unique: dict[tuple[object, ...], PreferenceGroup] = {}
    for prompt in prompts:
        answer = finished.get(prompt.prompt_id)
        pairs = list(_correct(prompt, texts, seed))
        if answer is not None:
            stranger = finished[strangers[prompt.prompt_id]]
            pairs = [*_of_answer(prompt, answer, wild_by_id[prompt.prompt_id], stranger, texts, seed), *pairs]
        for pair in pairs:
            if pair.chosen.token_ids != pair.rejected.token_ids:
                unique[prompt.prompt_id, pair.chosen.token_ids, pair.rejected.token_ids] = pair
    return list(unique.values())


def split_contrasts(
    contrasts: Sequence[PreferenceGroup], held_out: float, seed: int
) -> tuple[list[PreferenceGroup], list[PreferenceGroup]]:
    """(training, held-out) contrasts, split by prompt: a share `held_out` of the prompts, at least one.

    An on_topic pair goes with its own prompt, whichever prompt its rejected answer was given to.

    Raises:
        ValueError: fewer than two prompts, or none left to train on.
    """
    assert 0.0 < held_out < 1.0, held_out
    ids = sorted({c.prompt.prompt_id for c in contrasts}, key=lambda i: seeded_number(seed, "contrasts", i))
    count = max(1, round(held_out * len(ids)))
    if count >= len(ids):
        raise ValueError(
            f"contrasts of {len(ids)} prompts can't be split with held_out={held_out}; raise reward.train."
            "data.prompts, or max_new_tokens so that more answers end"
        )
    chosen = set(ids[:count])
    training = [c for c in contrasts if c.prompt.prompt_id not in chosen]
    return training, [c for c in contrasts if c.prompt.prompt_id in chosen]


def _by_prompt(ids: Sequence[str], completions: Sequence[Completion], name: str) -> dict[str, Completion]:
    by_id = {c.prompt_id: c for c in completions}
    if len(completions) != len(ids) or by_id.keys() != set(ids):
        raise ValueError(
            f"contrasts: {len(completions)} {name} answers of {len(by_id)} prompts for {len(ids)} prompts; "
            "give each prompt exactly one"
        )
    return {i: by_id[i] for i in ids}


def _of_answer(
    prompt: Prompt, answer: Completion, wild: Completion, stranger: Completion, texts: Texts, seed: int
) -> Iterator[PreferenceGroup]:
    """The contrasts with a calm answer as the better one."""
    if wild.token_ids and wild.text.strip() != answer.text.strip():
        yield _contrast(prompt, answer, wild, "coherent")
    ended = answer.token_ids[-1] == texts.end_token
    body = answer.token_ids[:-1] if ended else answer.token_ids
    if len(body) >= 2:
        share = CUT_LOW + (CUT_HIGH - CUT_LOW) * seeded_number(seed, "complete", prompt.prompt_id) / 2**64
        part = body[: min(max(round(share * len(body)), 1), len(body) - 1)]
        cut = replace(answer, text=texts.decode(part), token_ids=part, finish_reason="length")
        yield _contrast(prompt, answer, cut, "complete")
    if stranger.text.strip() != answer.text.strip():
        yield _contrast(prompt, answer, stranger, "on_topic")


def _correct(prompt: Prompt, texts: Texts, seed: int) -> Iterator[PreferenceGroup]:
    letter = read_letter(prompt.answer) if prompt.kind == "vignette" and prompt.answer else None
    options = read_options(prompt.messages[-1]["content"])
    wrong = [other for other in options if other != letter]
    if letter in options and wrong:
        other = wrong[seeded_number(seed, "correct", prompt.prompt_id) % len(wrong)]
        sentences = [answer_sentence(options, one) for one in (letter, other)]
        encoded = [tuple(texts.encode(prompt.messages, text)) for text in sentences]
        right, wrong_one = (
            Completion(prompt.prompt_id, 0, text, ids, "reference", 0.0, 0)
            for text, ids in zip(sentences, encoded, strict=True)
        )
        yield _contrast(prompt, right, wrong_one, "correct")


def _contrast(prompt: Prompt, chosen: Completion, rejected: Completion, kind: str) -> PreferenceGroup:
    """A pair whose ids are its own among its prompt's: each kind has two sample numbers."""
    first = 2 * KINDS.index(kind)
    sides = (
        replace(side, prompt_id=prompt.prompt_id, sample=first + place)
        for place, side in enumerate((chosen, rejected))
    )
    return PreferenceGroup(replace(prompt, kind=kind), tuple(sides), (1.0, 0.0))
