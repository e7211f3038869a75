"""Somebody who can reach a Ray and knows its address, and nothing else."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os, sys, ray

ray.init(address=sys.argv[1], log_to_driver=False)
look = ray.remote(lambda: os.environ.get("WANDB_API_KEY")).options(num_cpus=0)
print("joined and saw", ray.get(look.remote(), timeout=60))
"""


def join_as_stranger(address: str) -> str:
    """All that a driver with an empty environment says when it joins this Ray and runs code there."""
    environment = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray goes from 127.0.0.1 to another address of the machine
        "RAY_NUM_REDIS_GET_RETRIES": "1",  # instead of 20, a second each
    }
    command = [sys.executable, "-c", CODE, address]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    return done.stdout + done.stderr
