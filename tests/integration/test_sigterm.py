"""SIGTERM to a real command: one line, what is done is kept, and a second one ends it at once."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from tests.fake_api import Said, fake_api, reply
from ultramed_rl.cli import app

ROWS = 24


def write_config(root: Path, url: str) -> Path:
    """A data stage that asks an API for each of its rows."""
    rows = [
        {"id": f"S,{n}", "conversations": [{"from": "human", "value": f"Is drug {n} safe?"}]}
        for n in range(ROWS)
    ]
    (root / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generator = {"type": "api", "base_url": url, "model": "m", "structured": "prompt", "concurrency": 2}
    config = {
        "type": "data",
        "run": {"name": "score", "directory": str(root / "runs")},
        "input": [str(root / "in.jsonl")],
        "step": {"type": "score"},
        "cluster": {"device": "cpu", "devices_per_node": 1, "device_memory_gib": 8},
        "tracking": {"wandb": "disabled"},
        "max_failed_share": 1.0,
        "generators": {"m": generator},
    }
    (root / "score.yaml").write_text(yaml.safe_dump(config))
    return root / "score.yaml"


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path: Path) -> None:
    """The process is this one's Python with the real handlers; what it waits for is a server that takes its time."""

    def slow(_: dict[str, Any]) -> Said:
        return Said(reply('{"justification": "asks", "score": 8}').body, delay_s=0.1)

    with fake_api(slow) as (url, api):
        file = write_config(tmp_path, url)
        command = [sys.executable, "-m", "ultramed_rl.cli", "data", "score", str(file)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while len(api.bodies) < 6 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        last = said.splitlines()[-1]
        assert process.returncode == 143 and "Traceback" not in said, said
        assert "SIGTERM" in last and last.endswith(f"ultramed-rl data score {file} --resume"), said
        assert json.loads((tmp_path / "runs/score/status.json").read_text())["state"] == "interrupted"
        asked = len(api.bodies)
        again = shlex.split(last[last.index("ultramed-rl data") :])
        assert CliRunner().invoke(app, again[1:]).exit_code == 0
        assert len(api.bodies) - asked <= ROWS - 4, "what was answered before was asked again"
    counts = json.loads((tmp_path / "runs/score/records.json").read_text())["metrics"]
    assert counts["records"] == ROWS


def test_a_second_sigterm_ends_it_at_once() -> None:
    """Also one that is in the midst of its clean end, which takes for ever here."""
    code = (
        "import sys, time\n"
        "from ultramed_rl.tracking.heartbeat import Terminated, take_sigterm\n"
        "take_sigterm()\n"
        "try:\n"
        "    print('up', flush=True)\n"
        "    time.sleep(60)\n"
        "except Terminated:\n"
        "    print('ending', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for word in ("up", "ending"):
        assert process.stdout.readline().strip() == word
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == -signal.SIGTERM
