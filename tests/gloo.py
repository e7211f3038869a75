"""Ranks of one process: a thread each, with gloo's own process group between them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")


def on_ranks(count: int, work: Callable[[dist.ProcessGroup], Result]) -> list[Result]:
    """What `work` gives on each of so many ranks, by rank."""
    store = dist.HashStore()

    def rank(number: int) -> Result:
        group = dist.ProcessGroup(store, number, count)
        gloo = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), number, count, timedelta(seconds=120))
        group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
        return work(group)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(rank, range(count)))
