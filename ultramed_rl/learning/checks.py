"""What must hold of preference data before the first optimizer step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from ultramed_rl.records import PreferenceGroup, ReferenceLogprobs, TokenizedChat
from ultramed_rl.token_ids import TokenIds, pack_ids

SHOWN = 8


def check_groups(
    groups: Sequence[PreferenceGroup], vocab_size: int, max_length: int, *, paired: bool = False
) -> None:
    """Refuse groups that cannot be learnt from; with `paired` also those without a better and a worse answer.

    Raises:
        ValueError: every broken rule with the ids that break it: an empty prompt or answer, two answers with
            the same tokens, a prompt that leaves no room within `max_length`, an answer that exceeds it, a
            token id outside the vocabulary, a non-finite reward, a group given twice.
    """
    broken: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for group in groups:
        for rule in _broken_rules(group, vocab_size, max_length):
            broken[rule].append(group.group_id)
        if paired and len(set(group.rewards)) < 2:
            broken["no better and worse answer"].append(group.group_id)
        if group.group_id in seen:
            broken["given twice"].append(group.group_id)
        seen.add(group.group_id)
    _refuse(broken, "drop or mend them, or look at the round's pairs.parquet")


def check_chats(chats: Sequence[TokenizedChat], vocab_size: int) -> None:
    """Raise ValueError with the ids of chats that hold token ids outside the vocabulary."""
    names = [c.conversation_id for c in chats if _are_outside([c.token_ids], vocab_size)]
    if names:
        rule = f"token id outside the vocabulary of {vocab_size}"
        _refuse({rule: names}, "use the tokenizer of the model that is trained")


def _are_outside(lists: Sequence[Sequence[int]], vocab_size: int) -> bool:
    """Whether any id of these lists is."""
    try:
        return not TokenIds.of_bytes(b"".join(map(pack_ids, lists))).within(vocab_size)
    except OverflowError:
        return True


def _broken_rules(group: PreferenceGroup, vocab_size: int, max_length: int) -> Iterator[str]:
    prompt, answers = group.prompt.token_ids, [c.token_ids for c in group.completions]
    if not prompt:
        yield "prompt=[] (empty)"
    if not answers or not all(answers):
        yield "answer=[] (empty)"
    for (i, one), (j, other) in combinations(enumerate(answers), 2):
        if one == other:
            yield f"equal answers {i}={j}"
    if len(prompt) >= max_length:
        yield f"prompt fills max_length={max_length}"
    elif len(prompt) + max(map(len, answers), default=0) > max_length:
        yield f"prompt + answer exceed max_length={max_length}"
    if _are_outside((prompt, *answers), vocab_size):
        yield f"token id outside the vocabulary of {vocab_size}"
    if len(group.rewards) != len(answers) or not all(math.isfinite(r) for r in group.rewards):
        yield "missing or non-finite reward"
    if not 0 <= group.desirable <= len(answers):
        yield f"desirable={group.desirable} of {len(answers)} answers"


def check_references(groups: Sequence[PreferenceGroup], references: Sequence[ReferenceLogprobs]) -> None:
    """Raise ValueError unless every group has its own finite reference logprobs, in the same order."""
    if [g.group_id for g in groups] != [r.group_id for r in references]:
        raise ValueError("reference logprobs are of other pairs; delete the round's reference.parquet")
    broken: dict[str, list[str]] = defaultdict(list)
    for group, reference in zip(groups, references, strict=True):
        count, wanted = len(reference.logprobs), len(group.completions)
        if count != wanted:
            broken[f"{count} reference logprobs of {wanted} answers"].append(group.group_id)
        if not all(map(math.isfinite, (*reference.logprobs, reference.beside or 0.0))):
            broken["non-finite reference logprobs"].append(group.group_id)
    _refuse(broken, "drop these prompts, or check the reference model")


def _refuse(broken: dict[str, list[str]], fix: str) -> None:
    lines = []
    for rule, ids in broken.items():
        more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
        lines.append(f"{rule}: {', '.join(ids[:SHOWN])}{more}")
    if lines:
        raise ValueError(f"{'; '.join(lines)}. Nothing was trained; {fix}")
