"""Tensors in memory that processes share."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import pytest
import torch

from ultramed_rl.actors.weight_sync import SharedTensors

SHAPES = [
    ("q", torch.float32, (4, 8)),  # 128 bytes
    ("k", torch.float32, (2, 8)),  # 64 bytes
    ("bias", torch.float32, (3,)),  # 12 bytes: what follows begins at the next 64
    ("norm", torch.bfloat16, (5,)),
]


def read(path: str, names: list[str], pipe: Connection) -> None:
    """Answer with what another process sees there, each time it is asked."""
    shared = SharedTensors(SHAPES, path)
    while pipe.recv():
        pipe.send([shared.tensor(name).tolist() for name in names])


def test_tensors_follow_each_other_on_cache_lines() -> None:
    assert SharedTensors(SHAPES).offsets == {"q": 0, "k": 128, "bias": 192, "norm": 256}


def test_another_process_sees_what_is_written_after_it_mapped() -> None:
    shared = SharedTensors(SHAPES)
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    names = ["q", "k"]
    reader = context.Process(target=read, args=(shared.path, names, theirs), daemon=True)
    reader.start()
    for value in (1.0, 2.0):
        shared.tensor("q").fill_(value)
        shared.tensor("k").fill_(-value)
        pipe.send(True)
        assert pipe.recv() == [[[value] * 8] * 4, [[-value] * 8] * 2]
    pipe.send(False)
    reader.join()


def test_each_tensor_owns_its_storage() -> None:
    # transformers' save_pretrained takes tensors of one storage for tied weights.
    shared = SharedTensors(SHAPES)
    first, second = shared.tensor("q"), shared.tensor("k")
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()
    assert first.untyped_storage().nbytes() == 128


def test_a_tensor_outlives_what_it_came_of_and_the_path_does_not() -> None:
    shared = SharedTensors(SHAPES)
    path, kept = shared.path, shared.tensor("q").fill_(3.0)
    del shared
    assert kept.sum() == 96.0
    with pytest.raises(ValueError, match=rf"{path}: .*cluster\.nodes=1"):
        SharedTensors(SHAPES, path)
