"""Tensors in memory that processes share."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import pytest
import torch

from ultramed_rl.actors.segment import Segment, Slot, lay_out

SHAPES = [
    ("q", torch.float32, (4, 8)),  # 128 bytes
    ("k", torch.float32, (2, 8)),  # 64 bytes
    ("bias", torch.float32, (3,)),  # 12 bytes: what follows begins at the next 64
    ("norm", torch.bfloat16, (5,)),
]


def read(path: str, slots: list[Slot], names: list[str], pipe: Connection) -> None:
    """Answer with what another process sees there, each time it is asked."""
    segment = Segment(slots, path)
    while pipe.recv():
        pipe.send(segment.rows(names).tolist())


def test_slots_follow_each_other_on_cache_lines() -> None:
    slots = lay_out(SHAPES)
    assert [(slot.offset, slot.end) for slot in slots] == [(0, 128), (128, 192), (192, 204), (256, 266)]


def test_another_process_sees_what_is_written_after_it_mapped() -> None:
    segment = Segment(lay_out(SHAPES))
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    names = ["q", "k"]
    reader = context.Process(target=read, args=(segment.path, lay_out(SHAPES), names, theirs), daemon=True)
    reader.start()
    for value in (1.0, 2.0):
        segment.tensor("q").fill_(value)
        segment.tensor("k").fill_(-value)
        pipe.send(True)
        assert pipe.recv() == [[value] * 8] * 4 + [[-value] * 8] * 2
    pipe.send(False)
    reader.join()


def test_rows_are_a_view_only_where_they_lie_together() -> None:
    segment = Segment(
        lay_out([("a", torch.float32, (16,)), ("b", torch.float32, (3,)), ("c", torch.float32, (2,))])
    )
    for value, name in enumerate("abc"):
        segment.tensor(name).fill_(value)
    assert segment.rows(["a", "b"]).data_ptr() == segment.tensor("a").data_ptr()
    apart = segment.rows(["b", "c"])  # 52 bytes lie between them
    assert apart.tolist() == [1.0, 1.0, 1.0, 2.0, 2.0] and apart.data_ptr() != segment.tensor("b").data_ptr()
    turned = segment.rows(["b", "a"])
    assert turned.tolist() == [1.0] * 3 + [0.0] * 16, "the order asked for, not the order in memory"


def test_each_tensor_owns_its_storage() -> None:
    # transformers' save_pretrained takes tensors of one storage for tied weights.
    segment = Segment(lay_out(SHAPES))
    first, second = segment.tensor("q"), segment.tensor("k")
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    assert first.untyped_storage().nbytes() == 128


def test_tensors_outlive_their_segment_and_its_path_does_not() -> None:
    segment = Segment(lay_out(SHAPES))
    path, kept = segment.path, segment.tensor("q").fill_(3.0)
    del segment
    assert kept.sum() == 96.0
    with pytest.raises(ValueError, match=rf"{path}: .*cluster\.nodes=1"):
        Segment(lay_out(SHAPES), path)
