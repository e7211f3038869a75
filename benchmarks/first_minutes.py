"""How long does a run take before it computes? The quickstart until its workers stand, phase by phase.

    python benchmarks/first_minutes.py            # with the model that is in the cache
    python benchmarks/first_minutes.py --first    # with an empty cache: the model is converted too

The run is the product's command, which tells of its phases (`--json`). `ours` is the time from the command to the end of
`start the workers` without the phases that sample and train the run's reward model: imports, conversion, Ray, engines and
workers. The run is ended there. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from line import print_line

COMPUTING = ("sample calm answers", "sample wild answers", "train reward model")
LAST = "start the workers"
WANTED = {True: 45.0, False: 30.0}  # seconds of a first run, and again


def phases_of(config: str, folder: Path, first: bool) -> list[tuple[str, float, float]]:
    """Each phase's name, and when it began and ended, in seconds since the command, until all workers stand."""
    command = [
        sys.executable,
        "-m",
        "ultramed_rl.cli",
        "run",
        config,
        "run.name=first",
        f"run.directory={folder}",
    ]
    cache = {"ULTRAMED_RL_CACHE": str(folder / "cache")} if first else {}
    started = time.time()
    process = subprocess.Popen(
        [*command, "tracking.wandb=disabled", "--json"],
        env=os.environ | cache,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    begun: dict[str, float] = {}
    phases = []
    for row in process.stdout:
        event = json.loads(row)
        if event["event"] == "phase_started":
            begun[event["phase"]] = event["time"] - started
        elif event["event"] == "phase_finished":
            phases.append((event["phase"], begun[event["phase"]], event["time"] - started))
            if event["phase"] == LAST:
                break
    process.send_signal(signal.SIGTERM)
    process.wait()
    if not phases or phases[-1][0] != LAST:
        sys.exit(f"the run ended with code {process.returncode} before its workers stood")
    return phases


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--config", default="configs/quickstart.yaml")
    arguments.add_argument("--first", action="store_true", help="with an empty cache")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        phases = phases_of(options.config, Path(folder), options.first)
    for name, begun, ended in phases:
        print(f"{begun:7.1f} to {ended:7.1f} s  {name}", flush=True)
    computing = sum(ended - begun for name, begun, ended in phases if name in COMPUTING)
    waited, wanted = phases[-1][2] - computing, WANTED[options.first]
    print_line(
        {
            "benchmark": "first_minutes",
            "ours": round(waited, 1),
            "peer": wanted,
            "ratio": round(waited / wanted, 3),
            "unit": "s",
            "peer_name": "wanted",
            "phases": [[name, round(begun, 1), round(ended, 1)] for name, begun, ended in phases],
            "computing": round(computing, 1),
            "work": "the quickstart until its workers stand, without what it samples and trains",
        }
    )


if __name__ == "__main__":
    main()
