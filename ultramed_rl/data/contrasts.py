"""Training pairs for a reward model that a run makes from its own starting policy's answers.

A small policy can't be asked which of two answers is medically right: at 135M parameters that is near chance,
and a reward model of the same size wouldn't learn it from a few hundred pairs. What it can both judge and
improve is whether an answer is coherent, whether it comes to an end, and whether it is about the question:

    coherent   an answer sampled at low temperature     over  one sampled at high temperature
    complete   an answer, or its first sentences        over  the beginning of a longer answer to the same prompt, cut off
    on_topic   an answer                                over  the answer to another prompt
    correct    a vignette's right final answer          over  the same sentence with a wrong letter

Each pair differs in one respect, so held-out accuracy by kind says what the reward model has learnt; expect
`correct` near one half. Length is no such respect: a policy would soon learn that it pays. So

    coherent   both ended with as many tokens, or both are cut to those of the shorter
    complete   the cut one has as many tokens as the whole one
    on_topic   prompts are matched two by two by their answers' lengths, and each loses to the other
    correct    the wrong letter whose sentence is nearest in length

and of pairs that are still of different length as many have the longer side chosen as rejected (`balance_lengths`).
All is pure and seeded by prompt: the same answers give the same pairs.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ultramed_rl.data.vignettes import answer_sentence, read_letter, read_options
from ultramed_rl.learning.seeds import seeded_number
from ultramed_rl.records import Completion, Message, PreferenceGroup, Prompt
from ultramed_rl.token_ids import TokenIds

_FEWEST = 4  # tokens in which coherence shows
KINDS = ("coherent", "complete", "on_topic", "correct")
# A mark after three letters or a bracket and before a space: neither "2.5" nor "e.g." nor "Dr." nor the "1." of a list ends one.
_SENTENCE_END = re.compile(r"(?<=[^\W\d]{3}|[^\W\d]{2}[)\"'’”])[.!?][\"')’”]?(?=\s|$)")


@dataclass(frozen=True)
class Texts:
    """What contrasts need of a tokenizer."""

    encode: Callable[[Sequence[Message], str], list[int]]  # an answer to a chat, with its end of turn
    decode: Callable[[Sequence[int]], str]
    end_token: int


@dataclass(frozen=True)
class _Answer:
    """A sampled answer without its end of turn."""

    completion: Completion
    body: Sequence[int]
    texts: Texts

    @classmethod
    def of(cls, completion: Completion, texts: Texts) -> _Answer:
        ids = completion.token_ids
        return cls(completion, ids[:-1] if ids and ids[-1] == texts.end_token else ids, texts)

    @property
    def finished(self) -> bool:
        return self.completion.finish_reason == "stop" and bool(self.completion.text.strip())

    def cut(self, tokens: int) -> Completion:
        """So many tokens of it, without an end."""
        return self._part(self.body[:tokens], "length")

    def ended(self, tokens: int) -> Completion:
        """So many tokens of it, and an end after them."""
        whole = self.finished and tokens == len(self.body)
        return self.completion if whole else self._part((*self.body[:tokens], self.texts.end_token), "stop")

    def sentence_ends(self) -> list[int]:
        """How many tokens its beginnings have that end with a sentence, shortest first; of a finished answer itself too."""
        found = {len(self.body)} if self.finished else set()
        places = range(len(self.body) + 1)
        for sentence in _SENTENCE_END.finditer(self.texts.decode(self.body)):
            first = bisect_left(places, sentence.end(), key=self._characters)
            # Perhaps with line ends after it.
            after = bisect_right(places, sentence.end(), key=self._characters)
            found |= set(places[first:after])
        return sorted(found)

    def _characters(self, tokens: int) -> int:
        return len(self.texts.decode(self.body[:tokens]).rstrip())

    def _part(self, tokens: Sequence[int], reason: str) -> Completion:
        text = self.texts.decode([t for t in tokens if t != self.texts.end_token])
        return replace(self.completion, text=text, token_ids=TokenIds(tokens), finish_reason=reason)


def build_contrasts(
    prompts: Sequence[Prompt],
    calm: Sequence[Completion],
    wild: Sequence[Completion],
    *,
    texts: Texts,
    seed: int,
) -> list[PreferenceGroup]:
    """All contrasts, prompt by prompt in the order of KINDS, as pairs whose prompt carries the kind.

    `calm` and `wild` hold one completion or more of each prompt, at low and high temperature. An answer that was cut off is
    never preferred to one that ended. Identical pairs are left out.

    Raises:
        ValueError: a prompt without calm or wild answers, or no calm answer that ended.
    """
    ids = [prompt.prompt_id for prompt in prompts]
    calm_by_id, wild_by_id = (
        _by_prompt(ids, answers, name, texts) for answers, name in ((calm, "calm"), (wild, "wild"))
    )
    if not any(answer.finished for answers in calm_by_id.values() for answer in answers):
        raise ValueError(
            f"contrasts: none of {len(calm)} calm answers ended by itself; raise reward.train.data."
            "max_new_tokens, or ask for shorter answers in prompts.suffix"
        )
    strangers, pairs = _strangers(calm_by_id, seed), list[PreferenceGroup]()
    for prompt in prompts:
        name = prompt.prompt_id
        sides = [
            ("coherent", _coherent(calm_by_id[name], wild_by_id[name])),
            ("complete", _complete(calm_by_id[name])),
            ("on_topic", strangers.get(name)),
            ("correct", _correct(prompt, texts, seed)),
        ]
        pairs += [_contrast(prompt, *both, kind) for kind, both in sides if both is not None]
    distinct = [p for p in pairs if p.chosen.text.strip() != p.rejected.text.strip()]
    kept = {
        p.group_id for kind in KINDS for p in balance_lengths([p for p in distinct if p.prompt.kind == kind])
    }
    return [pair for pair in distinct if pair.group_id in kept]


def balance_lengths(pairs: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """Without as many pairs as keep length from telling which side is chosen: those of equal length stay, and of the others
    as many whose chosen side is the longer as the shorter, those nearest in length."""
    gaps = [len(p.chosen.token_ids) - len(p.rejected.token_ids) for p in pairs]
    places = sorted(range(len(pairs)), key=lambda i: abs(gaps[i]))
    longer, shorter = [i for i in places if gaps[i] > 0], [i for i in places if gaps[i] < 0]
    count = min(len(longer), len(shorter))
    left_out = {*longer[count:], *shorter[count:]}
    return [pair for i, pair in enumerate(pairs) if i not in left_out]


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


def _by_prompt(
    ids: Sequence[str], completions: Sequence[Completion], name: str, texts: Texts
) -> dict[str, list[_Answer]]:
    by_id: dict[str, list[_Answer]] = {i: [] for i in ids}
    for completion in completions:
        by_id.setdefault(completion.prompt_id, []).append(_Answer.of(completion, texts))
    if len(by_id) != len(ids) or not all(by_id.values()):
        given = sum(map(bool, by_id.values()))
        raise ValueError(
            f"contrasts: {len(completions)} {name} answers of {given} prompts for {len(ids)} prompts; "
            "give each prompt one at least"
        )
    return by_id


_Sides = tuple[Completion, Completion]  # the better one first


def _coherent(calm: Sequence[_Answer], wild: Sequence[_Answer]) -> _Sides | None:
    """Two answers that ended with equally many tokens; else the two with most to compare, cut to the shorter one."""
    both = [(c, w) for c in calm for w in wild if c.completion.text.strip()]
    for c, w in both:
        if c.finished and w.finished and len(c.body) == len(w.body):
            return c.completion, w.completion
    cuts = [(min(len(c.body), len(w.body)), c, w) for c, w in both]
    tokens, c, w = max(cuts, key=lambda cut: cut[0], default=(0, calm[0], wild[0]))
    return (c.cut(tokens), w.cut(tokens)) if tokens >= _FEWEST else None


def _complete(calm: Sequence[_Answer]) -> _Sides | None:
    """Whole sentences with their end, and equally many tokens of an answer that goes on; the longest that there are."""
    ends = [(answer, answer.sentence_ends()) for answer in calm]
    # The end of turn is a token too: the other one has a token more of its text.
    fitting = [
        (n, whole, other)
        for whole, of_whole in ends
        for other, of_other in ends
        for n in of_whole
        if n - 1 not in of_whole  # as where a line ends after the sentence
        and n + 1 <= len(other.body)
        and n + 1 not in of_other
    ]
    for n, whole, other in sorted(fitting, key=lambda found: -found[0]):
        sides = whole.ended(n), other.cut(n + 1)
        if len({side.text.strip() for side in sides}) == 2:
            return sides
    return None


def _strangers(calm: Mapping[str, Sequence[_Answer]], seed: int) -> dict[str, _Sides]:
    """Each prompt's first finished answer over that of another prompt: the nearest in length two and two, so that all that
    one side has more the other has more elsewhere. One may be left over."""
    own = {name: next((a.completion for a in answers if a.finished), None) for name, answers in calm.items()}
    finished = {name: answer for name, answer in own.items() if answer is not None}
    order = sorted(finished, key=lambda n: (len(finished[n].token_ids), seeded_number(seed, "on_topic", n)))
    sides: dict[str, _Sides] = {}
    while order:
        name = order.pop(0)
        text = finished[name].text.strip()
        other = next((n for n in order if finished[n].text.strip() != text), None)
        if other is not None:
            order.remove(other)
            sides[name], sides[other] = (finished[name], finished[other]), (finished[other], finished[name])
    return sides


def _correct(prompt: Prompt, texts: Texts, seed: int) -> _Sides | None:
    letter = read_letter(prompt.answer) if prompt.kind == "vignette" and prompt.answer else None
    options = read_options(prompt.messages[-1]["content"])
    wrong = [other for other in options if other != letter]
    if letter not in options or not wrong:
        return None

    def says(option: str) -> Completion:
        text = answer_sentence(options, option)
        ids = TokenIds(texts.encode(prompt.messages, text))
        return Completion(prompt.prompt_id, 0, text, ids, "reference", 0.0, 0)

    right = says(letter)
    first = seeded_number(seed, "correct", prompt.prompt_id) % len(wrong)
    others = [says(option) for option in wrong[first:] + wrong[:first]]
    return right, min(others, key=lambda other: abs(len(other.token_ids) - len(right.token_ids)))


def _contrast(prompt: Prompt, chosen: Completion, rejected: Completion, kind: str) -> PreferenceGroup:
    """A pair whose ids are its own among its prompt's: each kind has two sample numbers."""
    first = 2 * KINDS.index(kind)
    sides = (
        replace(side, prompt_id=prompt.prompt_id, sample=first + place)
        for place, side in enumerate((chosen, rejected))
    )
    return PreferenceGroup(replace(prompt, kind=kind), tuple(sides), (1.0, 0.0))
