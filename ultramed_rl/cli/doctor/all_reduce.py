"""One rank of a communication check, as a script: BACKEND RANK RANKS FILE. Adds up rank + 1 over all ranks."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

_TIMEOUT = timedelta(seconds=60)


def main(backend: str, rank: int, ranks: int, meeting: str) -> None:
    import torch
    import torch.distributed as distributed

    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    place = f"file://{meeting}"
    distributed.init_process_group(backend, init_method=place, rank=rank, world_size=ranks, timeout=_TIMEOUT)
    number = torch.tensor([rank + 1.0], device=device)
    began = time.perf_counter()
    distributed.all_reduce(number)
    found, expected = number.item(), ranks * (ranks + 1) / 2
    milliseconds = 1000 * (time.perf_counter() - began)
    distributed.destroy_process_group()
    if found != expected:
        sys.exit(f"the sum is {found:g}, not {expected:g}")
    print(f"{milliseconds:.1f} ms")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
