"""A round's pairs read from its files: in the order of its prompts, however the answers came."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultramed_rl.learning.packing import AnswerGroup
from ultramed_rl.records import Completion, PreferenceGroup, Prompt, ReferenceLogprobs
from ultramed_rl.store.shards import RoundPairs, read_references
from ultramed_rl.store.tables import write_records


def group(number: int, lengths: tuple[int, ...] = (3, 5)) -> PreferenceGroup:
    prompt = Prompt(f"p{number}", ({"role": "user", "content": "?"},), tuple(range(1, 2 + number)))
    answers = [
        Completion(f"p{number}", k, "a", tuple(range(size)), "stop", -1.0, 0)
        for k, size in enumerate(lengths)
    ]
    return PreferenceGroup(prompt, tuple(answers), tuple(-float(k) for k in range(len(lengths))))


def write(folder: Path, groups: list[PreferenceGroup], came: list[int], size: int) -> None:
    """A round of these prompts, one more that gave no pair, and files of `size` pairs in the order in which they came."""
    (folder / "pairs.parquet").mkdir(parents=True)
    prompts = [g.prompt for g in groups]
    write_records([*prompts[:1], group(99).prompt, *prompts[1:]], Prompt, folder / "prompts.parquet")
    for start in range(0, len(came), size):
        part = [groups[i] for i in came[start : start + size]]
        write_records(part, PreferenceGroup, folder / "pairs.parquet" / f"{start:06d}.parquet")
    references = [
        ReferenceLogprobs(groups[i].group_id, (-float(i), -1.0)) for i in sorted(came, reverse=True)
    ]
    write_records(references, ReferenceLogprobs, folder / "reference.parquet")


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(7)), st.integers(1, 8), st.sets(st.integers(0, 6)))
def test_pairs_stand_in_the_order_of_the_prompts(
    tmp_path_factory: pytest.TempPathFactory, came: list[int], size: int, loaded: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    groups = [group(n, tuple(range(2 + n % 3, 4 + 2 * (n % 3)))) for n in range(7)]
    write(folder, groups, came, size)
    pairs = RoundPairs(folder)
    pairs.load(loaded)
    assert list(pairs) == groups and pairs.ids == [g.group_id for g in groups]
    answers = [AnswerGroup(g.prompt.token_ids, [c.token_ids for c in g.completions]) for g in groups]
    assert pairs.answer_counts.tolist() == [len(a.answers) for a in answers]
    assert pairs.packed_tokens.tolist() == [a.packed_tokens for a in answers]
    assert pairs.padded_tokens.tolist() == [a.padded_tokens for a in answers]
    wanted = sorted(loaded, reverse=True)
    found = read_references(folder, [pairs.ids[i] for i in wanted])
    assert [r.logprobs for r in found] == [(-float(i), -1.0) for i in wanted]


def test_files_of_a_whole_round_and_another_process(tmp_path: Path) -> None:
    groups = [group(n) for n in range(3)]
    write(tmp_path, groups, [2, 0, 1], 3)
    again = pickle.loads(pickle.dumps(RoundPairs(tmp_path)))
    assert again[1:] == groups[1:] and np.array_equal(again.answer_counts, [2, 2, 2])
    with pytest.raises(IndexError):
        again[3]


def test_a_pair_without_reference_logprobs_is_refused_by_the_file(tmp_path: Path) -> None:
    write(tmp_path, [group(0), group(1)], [0], 1)
    with pytest.raises(ValueError, match=r"reference\.parquet: .*\b1\b"):
        read_references(tmp_path, [group(0).group_id, group(1).group_id])
