"""What the peer's scripts share: a job as a JSON file, JSON lines between them, and seconds by part."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class Stage:
    """One script's job, from the file that its argument names; `finish` writes its report beside it."""

    def __init__(self) -> None:
        self._last = time.time()
        self._file, self._seconds = Path(sys.argv[1]), dict[str, float]()
        self.job: dict[str, Any] = json.loads(self._file.read_text())

    def end(self, part: str) -> None:
        """The part that began where the last one ended is over."""
        now = time.time()
        self._seconds[part], self._last = now - self._last, now

    def finish(self, **figures: Any) -> None:
        """Write seconds by part, and what else is worth telling."""
        self._file.with_suffix(".report").write_text(json.dumps({"seconds": self._seconds, **figures}))


def trl_settings(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a job says of training, in the words that TRL's trainers share."""
    training = job["training"]
    return {
        "output_dir": job["output"],
        "per_device_train_batch_size": job["peer_pass"],
        "gradient_accumulation_steps": training["batch_size"] // job["peer_pass"],
        "num_train_epochs": training["epochs"],
        "learning_rate": training["learning_rate"],
        "lr_scheduler_type": training["schedule"],
        "warmup_steps": training["warmup"],  # a share, as it is below 1
        "max_grad_norm": training["max_grad_norm"],
        "adam_beta2": 0.95,
        "beta": job["beta"],
        "bf16": False,  # autocast would cast float32 weights in each pass: slower than weights in bfloat16
        "gradient_checkpointing": False,  # online it would also generate without a cache
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
    }


def read_jsonl(path: str) -> list[dict[str, Any]]:
    """All rows."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write_jsonl(path: str, rows: Iterable[dict[str, Any]]) -> None:
    """One row a line."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
